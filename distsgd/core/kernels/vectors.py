"""Operations along long rows with NumPy, by means of read-only vectors of one value, and memory for such rows.

NumPy's arrays begin at multiples of 16 bytes, so that three of four begin inside of a cache line, and each load of an
AVX-512 register reads two. Rows whose distance is a power of two compete for the same few lines of the cache. Neither
changes what is computed: an array's place in memory isn't part of its bits.
"""

from __future__ import annotations

from ctypes import addressof, c_char
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from distsgd.core.device import Array, Shape

LINE = 64
"""Bytes of a cache line, and of the widest register."""
_BLOCK = 32_768
"""Elements that a pass leaves in the cache for the next one."""


def empty(shape: Shape, dtype: np.dtype[Any]) -> Array:
    """As np.empty, but for the place: the first element begins a line."""
    size = prod(shape) * dtype.itemsize
    memory = np.empty(size + LINE, np.uint8)
    first = -address(memory) % LINE
    return np.ndarray(shape, dtype, memory, first)


def address(array: Array) -> int:
    """Where a contiguous array begins. `array.ctypes` takes three times as long."""
    return addressof(c_char.from_buffer(array))  # type: ignore[arg-type]


def row_length(count: int, dtype: np.dtype[Any]) -> int:
    """Numbers from one row of `count` numbers to the next, so that rows begin lines, an odd number of lines apart."""
    return (-(-count * dtype.itemsize // LINE) | 1) * LINE // dtype.itemsize


def empty_rows(shape: Shape, dtype: np.dtype[Any]) -> Array:
    """An uninitialized array whose rows, along the last axis, lie so."""
    return empty((*shape[:-1], row_length(shape[-1], dtype)), dtype)[..., : shape[-1]]


def strided(array: Array, shape: Shape, strides: tuple[int, ...], first: int = 0) -> Array:
    """A view of a contiguous array, from a byte of it on; `as_strided` takes five times as long."""
    return np.ndarray(shape, array.dtype, array, first, strides)


def row_sums(rows: Array, out: Array) -> None:
    """out[r] := Σ rows[r, k]."""
    np.matmul(rows, ones(rows.shape[-1], rows.dtype), out)  # by position: for a small product, the keyword costs time


def positive(x: Array) -> Array:
    """max(x, 0), along rows as long as there are in one image: zeros of that length are kept."""
    rows = x.reshape(prod(x.shape[: max(1, x.ndim - 3)]) if x.ndim > 1 else 1, -1)
    out = None if x.size < _BLOCK else empty(rows.shape, x.dtype)
    y: Array = np.maximum(rows, zeros(rows.shape[1], x.dtype), out=out)
    return y.reshape(x.shape)


def add_positive(a: Array, b: Array) -> Array:
    """max(a + b, 0) of arrays of one shape, in one pass over both."""
    y = empty(a.shape, a.dtype)
    if not (a.flags.c_contiguous and b.flags.c_contiguous):
        return np.maximum(np.add(a, b, out=y), 0.0, out=y)
    flat_a, flat_b, flat_y, below = a.reshape(-1), b.reshape(-1), y.reshape(-1), zeros(_BLOCK, a.dtype)
    for start in range(0, y.size, _BLOCK):
        part = slice(start, start + _BLOCK)
        into = np.add(flat_a[part], flat_b[part], out=flat_y[part])
        np.maximum(into, below[: into.size], out=into)
    return y


def masked(dy: Array, y: Array) -> Array:
    """dy where y > 0, else 0: what is left of the gradient of max(x, 0) = y."""
    if y.size < _BLOCK or dy.dtype != y.dtype or not (dy.flags.c_contiguous and y.flags.c_contiguous):
        return dy * (y > 0)
    dx = empty(dy.shape, dy.dtype)
    mask_into(dx.reshape(-1), dy.reshape(-1), y.reshape(-1))
    return dx


def mask_into(dx: Array, dy: Array, y: Array) -> None:
    """dx := masked(dy, y) of one-dimensional arrays; a product with booleans would take twice as long."""
    above, factor = np.empty(min(_BLOCK, y.size), bool), empty((min(_BLOCK, y.size),), y.dtype)
    for start in range(0, y.size, _BLOCK):
        part = slice(start, start + _BLOCK)
        length = y[part].size
        np.copyto(factor[:length], np.greater(y[part], 0.0, out=above[:length]))
        np.multiply(dy[part], factor[:length], out=dx[part])


@lru_cache(maxsize=64)
def ones(count: int, dtype: np.dtype[Any]) -> Array:
    """A matrix times it is the sum over each row, three to five times faster than a reduction."""
    return _locked(np.ones(count, dtype))


@lru_cache(maxsize=64)
def numbers_up_to(count: int) -> Array:
    """0, 1, … count - 1."""
    return _locked(np.arange(count))


@lru_cache(maxsize=64)
def zeros(count: int, dtype: np.dtype[Any]) -> Array:
    """NumPy's maximum is two to five times faster against a row of zeros than against a number."""
    return _locked(np.zeros(count, dtype))


def _locked(array: Array) -> Array:
    array.flags.writeable = False
    return array
