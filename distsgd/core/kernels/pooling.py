"""Pooling with NumPy: operations on whole images, one for each place in the window; (channels, height, width, n)."""

from __future__ import annotations

import numpy as np

from distsgd.core.device import Array
from distsgd.core.kernels.convolution import Window
from distsgd.core.kernels.vectors import strided


def max_pool(x: Array, window: Window) -> Array:
    """y[c, h, w] := the largest of x[c, h s + i, w s + j] over the window's i and j."""
    return _largest(_windows(x, window))


def max_pool_backward(x: Array, y: Array, dy: Array, window: Window) -> Array:
    """dx: each dy goes to the first of its window's largest values, in the order of rows."""
    chosen = _first_equals(_windows(x, window), y)
    if _tiles(x, window):
        dx = np.empty_like(x)
        np.multiply(dy, chosen, out=_windows(dx, window))
        return dx
    dx = np.zeros_like(x)
    for place, into in zip(_places(chosen), _places(_windows(dx, window)), strict=True):
        into += dy * place
    return dx


def max_pool_apart(x: Array, rows: int) -> tuple[Array, Array]:
    """As max_pool, where windows of `rows` rows tile x and its columns are kept apart as the window has columns.

    x is (channels, height, apart, out_width, n): see convolve. Returns y and which place of the window each y is from,
    (rows, apart, channels, out_height, out_width, n), all that backward needs.
    """
    windows = _apart(x, rows)
    y = _largest(windows)
    return y, _first_equals(windows, y)


def max_pool_apart_backward(chosen: Array, dy: Array, rows: int) -> Array:
    """dx (channels, height, apart, out_width, n), from what max_pool_apart has chosen."""
    *outer, out_height, out_width, n = dy.shape
    dx = np.empty((*outer, out_height * rows, chosen.shape[1], out_width, n), dy.dtype)
    np.multiply(dy, chosen, out=_apart(dx, rows))
    return dx


def average_pool(x: Array, window: Window) -> Array:
    """y[c, h, w] := the mean of x[c, h s + i, w s + j] over the window's i and j."""
    first, *others = _places(_windows(x, window))
    y: Array = first.copy()
    for place in others:
        np.add(y, place, out=y)
    y *= 1.0 / (window.size[0] * window.size[1])
    return y


def average_pool_backward(x: Array, dy: Array, window: Window) -> Array:
    """dx: each dy is spread evenly over its window."""
    dx = np.zeros_like(x)
    part = dy * (1.0 / (window.size[0] * window.size[1]))
    for into in _places(_windows(dx, window)):
        into += part
    return dx


def _largest(windows: Array) -> Array:
    first, *others = _places(windows)
    y: Array = np.maximum(first, others[0]) if others else first.copy()
    for place in others[1:]:
        np.maximum(y, place, out=y)
    return y


def _first_equals(windows: Array, y: Array) -> Array:
    """For each place in the window, where y stands there and at no place before; each y is found once."""
    chosen = np.equal(windows, y, out=np.empty(windows.shape, bool))
    first, *others = _places(chosen)
    for k, place in enumerate(others):
        np.greater(place, first, out=place)  # of truth values: the one and not the other
        if k + 1 < len(others):
            first = np.logical_or(first, place)
    return chosen


def _tiles(x: Array, window: Window) -> bool:
    """Whether each pixel lies in exactly one window."""
    return window.size == window.stride and not x.shape[-3] % window.size[0] and not x.shape[-2] % window.size[1]


def _windows(x: Array, window: Window) -> Array:
    """What lies at each place of the window: a view (*window's size, channels, out_height, out_width, n)."""
    (step_h, step_w), (*outer, row, column, example) = window.stride, x.strides
    shape = (*window.size, *x.shape[:-3], *window.output(*x.shape[-3:-1]), x.shape[-1])
    return strided(x, shape, (row, column, *outer, step_h * row, step_w * column, example))


def _apart(x: Array, rows: int) -> Array:
    """The same for windows that tile x, whose columns are kept apart."""
    (*outer, height, apart, width, n), (*steps, row, group, column, example) = x.shape, x.strides
    shape = (rows, apart, *outer, height // rows, width, n)
    return strided(x, shape, (row, group, *steps, rows * row, column, example))


def _places(windows: Array) -> list[Array]:
    """The views of single places, in the order of rows."""
    return [place for row in windows for place in row]
