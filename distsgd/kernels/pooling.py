"""Pooling with NumPy: operations on whole images, one for each place in the window; (channels, height, width, n)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from distsgd.device import Array
from distsgd.kernels.convolution import Window


def max_pool(x: Array, window: Window) -> Array:
    """y[c, h, w] := the largest of x[c, h s + i, w s + j] over the window's i and j."""
    views = _views(x, window)
    y: Array = next(views).copy()
    for view in views:
        np.maximum(y, view, out=y)
    return y


def max_pool_backward(x: Array, y: Array, dy: Array, window: Window) -> Array:
    """dx: each dy goes to the first of its window's largest values, in the order of rows."""
    apart = window.size[0] <= window.stride[0] and window.size[1] <= window.stride[1]
    dx = np.empty_like(x) if apart and _covers(x, window) else np.zeros_like(x)
    free = np.ones(y.shape, bool)
    for view, into in zip(_views(x, window), _views(dx, window), strict=True):
        chosen = np.equal(view, y)
        chosen &= free
        free ^= chosen
        if apart:
            np.multiply(dy, chosen, out=into)
        else:
            into += dy * chosen
    return dx


def average_pool(x: Array, window: Window) -> Array:
    """y[c, h, w] := the mean of x[c, h s + i, w s + j] over the window's i and j."""
    views = _views(x, window)
    y: Array = next(views).copy()
    for view in views:
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


def _covers(x: Array, window: Window) -> bool:
    """Whether each pixel lies in some window, for windows that don't overlap."""
    return window.size == window.stride and not x.shape[1] % window.size[0] and not x.shape[2] % window.size[1]


def _views(x: Array, window: Window) -> Iterator[Array]:
    """What lies at each place of the window, in the order of rows: (channels, out_height, out_width, n) views."""
    height, width = window.output(x.shape[1], x.shape[2])
    step_h, step_w = window.stride
    for i in range(window.size[0]):
        for j in range(window.size[1]):
            yield x[:, i : i + step_h * (height - 1) + 1 : step_h, j : j + step_w * (width - 1) + 1 : step_w]
