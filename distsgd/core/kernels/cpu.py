"""The kernels of the CPU: those of the modules beside this one, and here the loss of classes, and one optimizer step on
one block.

A step's functions work in place, are elementwise and use correctly rounded operations alone (+, -, *, /, square root),
so that their bits depend neither on where a block begins and ends nor on the CPU. Their arrays are one-dimensional,
contiguous, of one length and one dtype, short enough that a block and its temporaries stay in cache. Scalars are Python
floats. `grads` is overwritten: the caller doesn't need it afterwards. Symbols: w params, g grads, η learning_rate.
"""

from __future__ import annotations

from math import prod

import numpy as np

from distsgd.core.device import Array, Shape
from distsgd.core.kernels.products import multiply
from distsgd.core.kernels.squares import block_squares
from distsgd.core.kernels.vectors import add_positive, masked, numbers_up_to, positive, row_sums
from distsgd.core.lazy import lazily, names_in
from distsgd.core.random import Stream, words_of
from distsgd.core.random import keep_mask as mask_of_words

NAMES = {
    "core.kernels.convolution": ("convolve", "gradients", "input_gradient", "weight_gradient"),
    "core.kernels.normalization": ("normalize", "normalize_backward", "transform", "transform_backward"),
    "core.kernels.pooling": (
        "average_pool", "average_pool_backward", "max_pool", "max_pool_apart", "max_pool_apart_backward",
        "max_pool_backward",
    ),
}  # fmt: skip
"""Kernels of images, by their module, which is imported when one is first used."""

__all__ = ["FUSES", "adagrad", "adam", "add_positive", "add_scaled", "block_squares", "keep_mask", "masked",
    "momentum", "multiply", "nesterov", "positive", "rmsprop", "row_sums", "scale", "sgd", "softmax_cross_entropy",
    *names_in(NAMES),
]  # fmt: skip
__getattr__, __dir__ = lazily(__name__, NAMES)

FUSES = True
"""Whether layers with `fused` are faster together, such as a convolution and the pooling after it."""

sum_of_rows = None
"""A kernel that adds all rows in one pass, where a device has one; here rows are added in pairs, in the cache."""


def softmax_cross_entropy(outputs: Array, labels: Array, want_grad: bool) -> tuple[Array, Array | None]:
    """(-log p[label] of each example (n,), the gradient p - t (classes, n) where it is wanted), with p := softmax."""
    z = outputs - np.maximum.reduce(outputs, axis=0)  # the largest becomes 0, so that exp can't overflow
    p = np.exp(z)
    total = np.add.reduce(p, axis=0)
    own = np.multiply(labels, len(labels), dtype=np.intp)  # by one number each: two take three times as long
    own += numbers_up_to(len(labels))
    losses = np.log(total)
    losses -= z.reshape(-1)[own]
    if not want_grad:
        return losses, None
    p /= total
    p.reshape(-1)[own] -= 1.0
    return losses, p


def keep_mask(like: Array, shape: Shape, keep: float, place: Stream) -> Array:
    """A boolean mask where `like` lies, true with probability `keep`, from half a word of the stream an element."""
    return mask_of_words(shape, keep, words_of(place, (prod(shape) + 1) // 2))


def add_scaled(target: Array, source: Array, factor: float, scratch: Array) -> None:
    """target := target + factor source: coupled weight decay, with g as target and w as source."""
    np.multiply(source, factor, out=scratch)
    np.add(target, scratch, out=target)


def scale(target: Array, factor: float) -> None:
    """target := factor target: decoupled weight decay, with w as target and 1 - ηλ as factor."""
    np.multiply(target, factor, out=target)


def sgd(params: Array, grads: Array, learning_rate: float) -> None:
    """w := w - ηg."""
    np.multiply(grads, learning_rate, out=grads)
    np.subtract(params, grads, out=params)


def momentum(
    params: Array, grads: Array, velocity: Array, learning_rate: float, momentum: float, dampening: float
) -> None:
    """v := μv + (1 - dampening) g;  w := w - ηv."""
    if dampening != 0.0:
        np.multiply(grads, 1.0 - dampening, out=grads)
    np.multiply(velocity, momentum, out=velocity)
    np.add(velocity, grads, out=velocity)
    np.multiply(velocity, learning_rate, out=grads)
    np.subtract(params, grads, out=params)


def nesterov(
    params: Array, grads: Array, velocity: Array, learning_rate: float, momentum: float, scratch: Array
) -> None:
    """v := μv + g;  w := w - η(g + μv)."""
    np.multiply(velocity, momentum, out=velocity)
    np.add(velocity, grads, out=velocity)
    np.multiply(velocity, momentum, out=scratch)
    np.add(grads, scratch, out=grads)
    np.multiply(grads, learning_rate, out=grads)
    np.subtract(params, grads, out=params)


def adagrad(
    params: Array, grads: Array, square_sum: Array, learning_rate: float, epsilon: float, scratch: Array
) -> None:
    """s := s + g²;  w := w - ηg / (√s + ε)."""
    np.square(grads, out=scratch)
    np.add(square_sum, scratch, out=square_sum)
    _subtract_quotient(params, grads, square_sum, learning_rate, epsilon, scratch)


def rmsprop(
    params: Array, grads: Array, square_mean: Array, learning_rate: float, alpha: float, epsilon: float, scratch: Array
) -> None:
    """s := alpha s + (1 - alpha) g²;  w := w - ηg / (√s + ε)."""
    np.square(grads, out=scratch)
    np.multiply(scratch, 1.0 - alpha, out=scratch)
    np.multiply(square_mean, alpha, out=square_mean)
    np.add(square_mean, scratch, out=square_mean)
    _subtract_quotient(params, grads, square_mean, learning_rate, epsilon, scratch)


def adam(
    params: Array,
    grads: Array,
    first_moment: Array,
    second_moment: Array,
    step_size: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    scratch: Array,
) -> None:
    """m := β₁m + g;  v := β₂v + g²;  w := w - step_size m / (√v + ε).

    Adam's own averages are (1 - β₁) m and (1 - β₂) v. These factors are folded into `step_size` and `epsilon`, with
    the corrections for bias: see `distsgd.optim.optimizers.Adam.scalars`.
    """
    np.multiply(first_moment, beta1, out=first_moment)
    np.add(first_moment, grads, out=first_moment)
    np.square(grads, out=grads)
    np.multiply(second_moment, beta2, out=second_moment)
    np.add(second_moment, grads, out=second_moment)
    _subtract_quotient(params, first_moment, second_moment, step_size, epsilon, scratch)


def _subtract_quotient(
    params: Array, numerator: Array, square: Array, step_size: float, epsilon: float, scratch: Array
) -> None:
    """w := w - step_size numerator / (√square + ε)."""
    np.sqrt(square, out=scratch)
    np.add(scratch, epsilon, out=scratch)
    np.divide(numerator, scratch, out=scratch)
    np.multiply(scratch, step_size, out=scratch)
    np.subtract(params, scratch, out=params)
