"""Pooling with NumPy: operations on whole images, one for each place in the window; (channels, height, width, n)."""

from __future__ import annotations

import numpy as np

from distsgd.core.device import Array
from distsgd.core.kernels.convolution import Window


def max_pool(x: Array, window: Window) -> Array:
    """y[c, h, w] := the largest of x[c, h s + i, w s + j] over the window's i and j."""
    return _largest(_views(x, window))


def max_pool_backward(x: Array, y: Array, dy: Array, window: Window) -> Array:
    """dx: each dy goes to the first of its window's largest values, in the order of rows."""
    if _tiles(x, window):
        dx = np.empty_like(x)
        for place, into in zip(_first_equals(_views(x, window), y), _views(dx, window), strict=True):
            np.multiply(dy, place, out=into)
        return dx
    dx = np.zeros_like(x)
    for place, into in zip(_first_equals(_views(x, window), y), _views(dx, window), strict=True):
        into += dy * place
    return dx


def max_pool_apart(x: Array, rows: int) -> tuple[Array, Array]:
    """As max_pool, where windows of `rows` rows tile x and its columns are kept apart as the window has columns.

    x is (channels, height, apart, out_width, n): see convolve. Returns y and which place of the window each y is from,
    (rows·apart, channels, out_height, out_width, n), all that backward needs.
    """
    y = _largest(_apart(x, rows))
    return y, _first_equals(_apart(x, rows), y)


def max_pool_apart_backward(chosen: Array, dy: Array, rows: int) -> Array:
    """dx (channels, height, apart, out_width, n), from what max_pool_apart has chosen."""
    *leading, out_height, out_width, n = dy.shape
    dx = np.empty((*leading, out_height * rows, len(chosen) // rows, out_width, n), dy.dtype)
    for place, into in zip(chosen, _apart(dx, rows), strict=True):
        np.multiply(dy, place, out=into)
    return dx


def average_pool(x: Array, window: Window) -> Array:
    """y[c, h, w] := the mean of x[c, h s + i, w s + j] over the window's i and j."""
    views = _views(x, window)
    y: Array = views[0].copy()
    for view in views[1:]:
        np.add(y, view, out=y)
    y *= 1.0 / (window.size[0] * window.size[1])
    return y


def average_pool_backward(x: Array, dy: Array, window: Window) -> Array:
    """dx: each dy is spread evenly over its window."""
    dx = np.zeros_like(x)
    part = dy * (1.0 / (window.size[0] * window.size[1]))
    for into in _views(dx, window):
        into += part
    return dx


def _largest(places: list[Array]) -> Array:
    if len(places) == 1:
        return places[0].copy()
    y: Array = np.maximum(*places[:2])
    for place in places[2:]:
        np.maximum(y, place, out=y)
    return y


def _first_equals(places: list[Array], y: Array) -> Array:
    """For each place in the window, where y stands there and at no place before: (places, …), each y is found once."""
    chosen = np.empty((len(places), *y.shape), bool)
    for place, out in zip(places, chosen, strict=True):
        np.equal(place, y, out=out)
    found = chosen[0]
    for k in range(1, len(places)):
        np.greater(chosen[k], found, out=chosen[k])  # of truth values: the one and not the other
        if k + 1 < len(places):
            found = np.logical_or(found, chosen[k])
    return chosen


def _tiles(x: Array, window: Window) -> bool:
    """Whether each pixel lies in exactly one window."""
    return window.size == window.stride and not x.shape[-3] % window.size[0] and not x.shape[-2] % window.size[1]


def _views(x: Array, window: Window) -> list[Array]:
    """What lies at each place of the window, in the order of rows: (channels, out_height, out_width, n) views."""
    height, width = window.output(*x.shape[-3:-1])
    step_h, step_w = window.stride
    return [
        x[..., i : i + step_h * (height - 1) + 1 : step_h, j : j + step_w * (width - 1) + 1 : step_w, :]
        for i in range(window.size[0])
        for j in range(window.size[1])
    ]


def _apart(x: Array, rows: int) -> list[Array]:
    """The same for windows that tile x, whose columns are kept apart."""
    return [x[..., i::rows, j, :, :] for i in range(rows) for j in range(x.shape[-3])]
