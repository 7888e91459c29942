"""The kernels of the GPU: launches of kernels.cu, and products by cuBLAS; the names and formulas of `kernels.cpu`.

Products take the precision to multiply float32 in; `in_precision` gives all kernels with theirs.

Compiled when first used, and kept on disk by CuPy. Nothing here waits for the GPU. `scratch` is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from importlib.resources import files
from math import prod
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np

from distsgd.core.device import Array, Shape, array_module
from distsgd.core.kernels.convolution import Window
from distsgd.core.random import Stream
from distsgd.gpu.cublas import multiply

FUSES = False
TYPES = {"f": "float", "d": "double"}
"""What kernels.cu is compiled for, by the dtype's character."""

Number: TypeAlias = float | Array
"""What may change from step to step: a number, or float64 without dimensions on the GPU; see kernels.cu."""

_NOWHERE = np.uint64(0)
_THREADS = 256
_MOST_BLOCKS = 1 << 16


def compiler_options(kind: str) -> tuple[str, ...]:
    """For NVRTC. No contraction of a*b+c into one rounding, so that an update's bits are those of the CPU."""
    return ("--std=c++17", "--fmad=false", f"-DREAL={kind}")


def source() -> str:
    """kernels.cu, which lies beside this file."""
    return files("distsgd.gpu").joinpath("kernels.cu").read_text(encoding="utf-8")


@lru_cache(maxsize=64)
def _kernel(xp: Any, name: str, dtype: str) -> Any:
    return _module(xp, dtype).get_function(name)


@lru_cache(maxsize=4)
def _module(xp: Any, dtype: str) -> Any:
    return xp.RawModule(code=source(), options=compiler_options(TYPES[dtype]))


def _launch(name: str, like: Array, threads: int, *arguments: Any) -> None:
    """Starts so many threads; a kernel knows nothing of strides, so arrays have to be contiguous."""
    for argument in arguments:
        if hasattr(argument, "flags") and not argument.flags.c_contiguous:
            raise ValueError(f"kernel {name}: expected contiguous arrays, got one of shape {argument.shape} that isn't")
    blocks = min(-(-max(threads, 1) // _THREADS), _MOST_BLOCKS)
    _kernel(array_module(like), name, like.dtype.char)((blocks,), (_THREADS,), arguments)


def _on_each(name: str, first: Array, *arguments: Any) -> None:
    """Starts a thread for each element of the first array; the kernel takes their number last."""
    _launch(name, first, first.size, first, *arguments, first.size)


def _number(value: Number) -> tuple[float, Any]:
    """As kernels.cu takes a STEP_NUMBER."""
    return (value, _NOWHERE) if isinstance(value, float) else (0.0, value)


def add_scaled(target: Array, source: Array, factor: float, scratch: Array) -> None:
    """target := target + factor source."""
    _on_each("add_scaled", target, source, factor)


def scale(target: Array, factor: Number) -> None:
    """target := factor target."""
    _on_each("scale", target, *_number(factor))


def sgd(params: Array, grads: Array, learning_rate: Number) -> None:
    """w := w - ηg."""
    _on_each("sgd", params, grads, *_number(learning_rate))


def momentum(
    params: Array, grads: Array, velocity: Array, learning_rate: Number, momentum: float, dampening: float
) -> None:
    """v := μv + (1 - dampening) g;  w := w - ηv."""
    _on_each("momentum", params, grads, velocity, *_number(learning_rate), momentum, 1.0 - dampening)


def nesterov(
    params: Array, grads: Array, velocity: Array, learning_rate: Number, momentum: float, scratch: Array
) -> None:
    """v := μv + g;  w := w - η(g + μv)."""
    _on_each("nesterov", params, grads, velocity, *_number(learning_rate), momentum)


def adagrad(
    params: Array, grads: Array, square_sum: Array, learning_rate: Number, epsilon: float, scratch: Array
) -> None:
    """s := s + g²;  w := w - ηg / (√s + ε)."""
    _on_each("adagrad", params, grads, square_sum, *_number(learning_rate), epsilon)


def rmsprop(
    params: Array, grads: Array, square_mean: Array, learning_rate: Number, alpha: float, epsilon: float, scratch: Array
) -> None:
    """s := alpha s + (1 - alpha) g²;  w := w - ηg / (√s + ε)."""
    _on_each("rmsprop", params, grads, square_mean, *_number(learning_rate), alpha, 1.0 - alpha, epsilon)


def adam(
    params: Array,
    grads: Array,
    first_moment: Array,
    second_moment: Array,
    step_size: Number,
    beta1: float,
    beta2: float,
    epsilon: Number,
    scratch: Array,
) -> None:
    """m := β₁m + g;  v := β₂v + g²;  w := w - step_size m / (√v + ε)."""
    numbers = (*_number(step_size), beta1, beta2, *_number(epsilon))
    _on_each("adam", params, grads, first_moment, second_moment, *numbers)


def find_non_finite(values: Array, non_finite: Array) -> None:
    """non_finite[0] := 1 where a value isn't finite; else it is unchanged."""
    _launch("find_non_finite", values, values.size, values, non_finite, values.size)


def find_non_finite_losses(records: Array, non_finite: Array, like: Array) -> None:
    """non_finite[0] := 1 where the loss sum of a microbatch's record isn't finite; else it is unchanged."""
    microbatches, width = records.shape
    _launch("find_non_finite_losses", like, microbatches, records, non_finite, width, microbatches)


def hold_after_non_finite(non_finite: Array, numbers: Array, like: Array) -> None:
    """All numbers become NaN where an element of non_finite isn't 0: kernels that read them then write nothing."""
    _launch("hold_after_non_finite", like, numbers.size, non_finite, non_finite.size, numbers, numbers.size)


def sum_of_rows(rows: Sequence[Array], sums: Sequence[int]) -> Callable[[Array, float], None]:
    """A function (out, divisor) that writes the rows' sum, over the divisor, into `out`, which is none of the rows.

    rows   in the order of the sum, each contiguous; they keep their addresses as long as the function is used
    sums   how many additions follow each row, each of the last two sums on the stack

    Prepared once, because the rows' addresses are copied to the GPU.
    """
    xp, kept = array_module(rows[0]), list(rows)
    addresses = xp.asarray(np.array([row.data.ptr for row in rows], np.uint64))  # type: ignore[attr-defined]
    additions = xp.asarray(np.array(sums, np.int64))

    def add(out: Array, divisor: float) -> None:
        for row in kept:
            if row.shape != out.shape or not row.flags.c_contiguous:
                raise ValueError(f"kernel sum_rows: expected contiguous rows of shape {out.shape}, got {row.shape}")
        _launch("sum_rows", out, out.size, out, addresses, additions, len(kept), divisor, out.size)

    return add


def block_squares(values: Array, block: int) -> Array:
    """Σ v² of each block, in float64."""
    blocks = -(-values.size // block)
    sums: Array = array_module(values).empty(blocks, np.float64)
    _launch("block_squares", values, blocks * _THREADS, values, sums, blocks, block, values.size)
    return sums


def row_sums(rows: Array, out: Array) -> None:
    """out[r] := Σ rows[r, k]."""
    rows = array_module(rows).ascontiguousarray(rows)
    _launch("row_sums", rows, len(rows) * _THREADS, rows, out, *rows.shape)


def positive(x: Array) -> Array:
    """max(x, 0)."""
    return np.maximum(x, 0.0)


def masked(dy: Array, y: Array) -> Array:
    """dy where y > 0, else 0."""
    return dy * (y > 0)


def softmax_cross_entropy(outputs: Array, labels: Array, want_grad: bool) -> tuple[Array, Array | None]:
    """(-log p[label] of each example (n,), the gradient p - t (classes, n) where it is wanted), with p := softmax."""
    xp, (classes, count) = array_module(outputs), outputs.shape
    outputs, labels = xp.ascontiguousarray(outputs), labels.astype(np.int64, copy=False)
    losses, gradient = xp.empty(count, outputs.dtype), xp.empty_like(outputs) if want_grad else None
    into = _NOWHERE if gradient is None else gradient
    _launch("softmax_cross_entropy", outputs, count, outputs, labels, losses, into, classes, count)
    return losses, gradient


def keep_mask(like: Array, shape: Shape, keep: float, place: Stream) -> Array:
    """A boolean mask that is true with probability `keep`: the same integers as on the CPU."""
    (key, counter, clock), count = place, prod(shape)
    mask: Array = array_module(like).empty(shape, bool)
    words = [np.uint64(word) for word in (round(keep * 2.0**32), *key, *counter)]
    _launch("keep_mask", like, -(-count // 8), mask, *words, _NOWHERE if clock is None else clock, count)
    return mask


def max_pool(x: Array, window: Window) -> Array:
    """y[c, h, w] := the largest of x[c, h s + i, w s + j] over the window's i and j."""
    y, numbers = _pooled(x, window)
    _launch("max_pool", x, y.size, x, y, *numbers)
    return y


def max_pool_backward(x: Array, y: Array, dy: Array, window: Window) -> Array:
    """dx: each dy goes to the first of its window's largest values, in the order of rows."""
    xp = array_module(x)
    dx: Array = xp.empty_like(x)
    _launch("max_pool_backward", x, x.size, x, y, xp.ascontiguousarray(dy), dx, *_numbers(x.shape, window))
    return dx


def average_pool(x: Array, window: Window) -> Array:
    """y[c, h, w] := the mean of x[c, h s + i, w s + j] over the window's i and j."""
    y, numbers = _pooled(x, window)
    _launch("average_pool", x, y.size, x, y, 1.0 / prod(window.size), *numbers)
    return y


def average_pool_backward(x: Array, dy: Array, window: Window) -> Array:
    """dx: each dy is spread evenly over its window."""
    xp = array_module(x)
    dx: Array = xp.empty_like(x)
    part = 1.0 / prod(window.size)
    _launch("average_pool_backward", x, x.size, xp.ascontiguousarray(dy), dx, part, *_numbers(x.shape, window))
    return dx


def convolve(x: Array, weight: Array, window: Window, precision: str = "float32") -> Array:
    """y[f, h, w] := Σ weight[f, c, i, j] x[c, h s + i - before, w s + j - before], as one product with im2col's."""
    out_height, out_width = window.output(*x.shape[1:3])
    y = multiply(weight.reshape(len(weight), -1), _columns(x, window), precision=precision)
    return y.reshape(len(weight), out_height, out_width, x.shape[3])


def weight_gradient(x: Array, dy: Array, window: Window, dweight: Array, precision: str = "float32") -> None:
    """dweight[f, c, i, j] := Σ dy[f, h, w] x[c, h s + i - before, w s + j - before], overwritten."""
    filters = len(dweight)
    multiply(dy.reshape(filters, -1), _columns(x, window).T, dweight.reshape(filters, -1), precision)


def input_gradient(
    weight: Array, dy: Array, window: Window, height: int, width: int, precision: str = "float32"
) -> Array:
    """dx[c, h s + i - before, w s + j - before] := Σ weight[f, c, i, j] dy[f, h, w]: convolve's transpose."""
    filters, channels = weight.shape[:2]
    columns = multiply(weight.reshape(filters, -1).T, dy.reshape(filters, -1), precision=precision)
    shape = (channels, height, width, dy.shape[3])
    if window.is_pointwise:
        return columns.reshape(shape)
    dx: Array = array_module(dy).empty(shape, dy.dtype)
    _launch("col2im", dx, dx.size, columns, dx, *_numbers(shape, window))
    return dx


def gradients(
    x: Array,
    weight: Array,
    dy: Array,
    window: Window,
    dweight: Array,
    needs_dx: bool = True,
    precision: str = "float32",
) -> Array | None:
    """weight_gradient, and input_gradient where dx is needed."""
    weight_gradient(x, dy, window, dweight, precision)
    return input_gradient(weight, dy, window, x.shape[1], x.shape[2], precision) if needs_dx else None


def normalize(rows: Array, scale: Array, shift: Array, epsilon: float) -> tuple[Array, Array, Array, Array]:
    """(y, mean, m2, inverse): y := scale (rows - mean) inverse + shift with inverse := 1 / √(m2 / count + epsilon)."""
    xp, (features, count) = array_module(rows), rows.shape
    y, mean, m2, inverse = xp.empty_like(rows), *(xp.empty(features, rows.dtype) for _ in range(3))
    made = (y, mean, m2, inverse)
    _launch("normalize", rows, features * _THREADS, rows, scale, shift, float(epsilon), *made, features, count)
    return y, mean, m2, inverse


def normalize_backward(
    rows: Array, mean: Array, inverse: Array, scale: Array, dy: Array, dscale: Array, dshift: Array
) -> Array:
    """dx, with dscale := Σ dy x̂ and dshift := Σ dy overwritten, x̂ being (rows - mean) inverse."""
    features, count = rows.shape
    dx: Array = array_module(rows).empty_like(dy)
    arrays = (rows, mean, inverse, scale, dy, dscale, dshift, dx)
    _launch("normalize_backward", rows, features * _THREADS, *arrays, features, count)
    return dx


def transform(rows: Array, mean: Array, factor: Array, shift: Array) -> Array:
    """(rows - mean) factor + shift."""
    y: Array = rows - mean[:, None]
    y *= factor[:, None]
    y += shift[:, None]
    return y


def transform_backward(
    rows: Array, mean: Array, inverse: Array, scale: Array, dy: Array, dscale: Array, dshift: Array
) -> Array:
    """As normalize_backward, where mean and inverse aren't functions of rows: dx := dy scale inverse."""
    row_sums(dy * (rows - mean[:, None]), dscale)
    dscale *= inverse
    row_sums(dy, dshift)
    dx: Array = dy * (scale * inverse)[:, None]
    return dx


def _pooled(x: Array, window: Window) -> tuple[Array, tuple[int, ...]]:
    """(memory for the output, the shape and window as kernels take them)."""
    shape = (x.shape[0], *window.output(*x.shape[1:3]), x.shape[3])
    return array_module(x).empty(shape, x.dtype), _numbers(x.shape, window)


def _columns(x: Array, window: Window) -> Array:
    """(channels·kh·kw, out_height·out_width·n): each output's window as a column."""
    if window.is_pointwise:
        return x.reshape(len(x), -1)
    places, outputs = prod(window.size), prod(window.output(*x.shape[1:3]))
    columns: Array = array_module(x).empty((len(x) * places, outputs * x.shape[3]), x.dtype)
    _launch("im2col", x, columns.size, x, columns, *_numbers(x.shape, window))
    return columns


def _numbers(shape: Shape, window: Window) -> tuple[int, ...]:
    """(channels, then what kernels.cu calls WINDOW)."""
    channels, height, width, n = shape
    return (channels, *window.size, *window.stride, *window.before, height, width, *window.output(height, width), n)


_PRODUCTS = ("multiply", "convolve", "gradients", "weight_gradient", "input_gradient")


@lru_cache(maxsize=4)
def in_precision(precision: str) -> Any:
    """All of these kernels, whose products round float32 to `precision` as it goes in; they add in float32."""
    kernels = {name: value for name, value in globals().items() if not name.startswith("_")}
    return SimpleNamespace(**kernels | {name: partial(kernels[name], precision=precision) for name in _PRODUCTS})
