"""One optimizer step on one block of the flat buffers, in place, with NumPy.

Every function is elementwise and uses correctly rounded operations alone (+, -, *, /, square root), so its bits depend
neither on where a block begins and ends nor on the CPU. All arrays are one-dimensional, contiguous, of one length and
one dtype, short enough that a block and its temporaries stay in cache. Scalars are Python floats. `grads` is
overwritten, for the caller needs it no more. Short names here: w params, g grads, η learning_rate.
"""

from __future__ import annotations

import numpy as np

from distsgd.device import Array


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
    the corrections for bias: see `distsgd.optimizers.Adam.scalars`.
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
