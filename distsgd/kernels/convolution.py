"""Convolution as matrix products of shifted rows, with NumPy; arrays are (channels, height, width, n), contiguous.

With the batch last, a kernel's window at one output row is a matrix without any further copy: the kw shifted copies
of each input row, `rows[h] = (channels, kw, out_width, n)`, lie one behind the other, so kh rows in a row are the
(kh·channels·kw, out_width·n) columns of an output row. im2col copies each input value kh·kw times, this kw times.

Work is cut into blocks of output rows whose shifted rows fit the cache. A block's size is a function of the shapes
alone, for it is part of the order in which the weight gradient is added.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from distsgd.device import Array, Shape

BLOCK_BYTES = 1 << 19
"""About how much of the shifted rows is worked on at a time: half of a core's second cache."""


@dataclass(frozen=True)
class Window:
    """A kernel's or a pooling window's size, step and zero padding along the two axes of an image."""

    size: tuple[int, int]
    stride: tuple[int, int]
    before: tuple[int, int] = (0, 0)
    behind: tuple[int, int] = (0, 0)

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output; below 1 where the window is larger than the padded image."""
        padded = (height + self.before[0] + self.behind[0], width + self.before[1] + self.behind[1])
        return (
            (padded[0] - self.size[0]) // self.stride[0] + 1,
            (padded[1] - self.size[1]) // self.stride[1] + 1,
        )

    @cached_property
    def is_pointwise(self) -> bool:
        """Whether output pixels are functions of the input pixels at their own places."""
        return self.size == self.stride == (1, 1) and self.before == self.behind == (0, 0)


def convolve(x: Array, weight: Array, window: Window) -> Array:
    """y[f, h, w] := Σ weight[f, c, i, j] x[c, h s + i - before, w s + j - before], without the kernel turned over.

    x (channels, height, width, n), weight (filters, channels, kh, kw), y (filters, out_height, out_width, n).
    """
    filters, (_, height, width, n) = weight.shape[0], x.shape
    out = window.output(height, width)
    y = np.empty((filters, *out, n), x.dtype)
    if window.is_pointwise:
        np.matmul(weight.reshape(filters, -1), x.reshape(len(x), -1), out=y.reshape(filters, -1))
        return y
    matrix = _as_matrix(weight)
    by_row = y.reshape(filters, out[0], -1).transpose(1, 0, 2)
    for first, last, columns in _column_blocks(x, window):
        np.matmul(matrix, columns, out=by_row[first:last])
    return y


def convolve_backward(
    x: Array, weight: Array, dy: Array, window: Window, dweight: Array, needs_dx: bool
) -> Array | None:
    """Writes the gradient of the weight to `dweight` and returns that of x, None unless it is needed."""
    filters = weight.shape[0]
    if window.is_pointwise:
        rows = dy.reshape(filters, -1)
        np.matmul(rows, x.reshape(len(x), -1).T, out=dweight.reshape(filters, -1))
        return np.matmul(weight.reshape(filters, -1).T, rows).reshape(x.shape) if needs_dx else None
    by_row = dy.reshape(filters, dy.shape[1], -1).transpose(1, 0, 2)
    matrix = _as_matrix(weight)
    total = np.zeros_like(matrix)
    shifted = np.zeros(_shifted_shape(x.shape, window), x.dtype) if needs_dx else None
    for first, last, columns in _column_blocks(x, window):
        total += np.add.reduce(np.matmul(by_row[first:last], columns.transpose(0, 2, 1)), axis=0)
        if shifted is not None:
            _add_columns(np.matmul(matrix.T, by_row[first:last]), shifted, first, window)
    _, channels, kh, kw = weight.shape
    dweight[...] = total.reshape(filters, kh, channels, kw).transpose(0, 2, 1, 3)
    return None if shifted is None else _unshift(shifted, x.shape, window)


def _as_matrix(weight: Array) -> Array:
    """(filters, kh·channels·kw): the kernel's elements in the order of the columns."""
    return weight.transpose(0, 2, 1, 3).reshape(len(weight), -1)


def _shifted_shape(shape: Shape, window: Window) -> Shape:
    channels, height, width, n = shape
    return (height + window.before[0] + window.behind[0], channels, window.size[1], window.output(height, width)[1], n)


def _column_blocks(x: Array, window: Window) -> Iterator[tuple[int, int, Array]]:
    """(first, last, columns) for blocks of output rows; columns are (last - first, kh·channels·kw, out_width·n)."""
    channels, height, width, n = x.shape
    (kh, kw), step = window.size, window.stride[0]
    out_height, out_width = window.output(height, width)
    row = channels * kw * out_width * n
    # At least as many rows as the window has, for the rows that two blocks share are copied for both.
    together = max(1, BLOCK_BYTES // (row * x.itemsize * step), kh)
    for first in range(0, out_height, together):
        last = min(first + together, out_height)
        rows = _shifted_rows(x, window, first * step, (last - 1) * step + kh)
        shape = (last - first, kh * channels * kw, out_width * n)
        strides = (step * row * x.itemsize, out_width * n * x.itemsize, x.itemsize)
        yield first, last, np.ndarray(shape, x.dtype, rows, 0, strides)


def _shifted_rows(x: Array, window: Window, start: int, stop: int) -> Array:
    """(stop - start, channels, kw, out_width, n): rows of the padded x, shifted by each place in the window."""
    channels, height, width, n = x.shape
    out_width = window.output(height, width)[1]
    rows = np.empty((stop - start, channels, window.size[1], out_width, n), x.dtype)
    top = min(max(window.before[0] - start, 0), len(rows))
    bottom = max(min(window.before[0] + height - start, len(rows)), top)
    rows[:top] = 0.0
    rows[bottom:] = 0.0
    first = start + top - window.before[0]
    inside = x[:, first : first + bottom - top].transpose(1, 0, 2, 3)
    for j in range(window.size[1]):
        to, source = _overlap(j, width, out_width, window)
        rows[top:bottom, :, j, : to.start] = 0.0
        rows[top:bottom, :, j, to.stop :] = 0.0
        rows[top:bottom, :, j, to] = inside[:, :, source]
    return rows


def _overlap(j: int, width: int, out_width: int, window: Window) -> tuple[slice, slice]:
    """(output columns, input columns) where place j of the window lies inside the image and not on its padding."""
    step, offset = window.stride[1], j - window.before[1]
    first = min(max(0, -(offset // step)), out_width)
    last = max(min(out_width, (width - 1 - offset) // step + 1), first)
    begin = first * step + offset
    return slice(first, last), slice(begin, begin + (last - first - 1) * step + 1 if last > first else begin, step)


def _add_columns(columns: Array, shifted: Array, first: int, window: Window) -> None:
    """Adds each output row's columns (rows, kh·channels·kw, out_width·n) to the kh shifted rows they belong to."""
    (kh, _), step = window.size, window.stride[0]
    parts = columns.reshape(len(columns), kh, *shifted.shape[1:])
    for i in range(kh):
        begin = first * step + i
        into = shifted[begin : begin + (len(columns) - 1) * step + 1 : step]
        np.add(into, parts[:, i], out=into)


def _unshift(shifted: Array, shape: Shape, window: Window) -> Array:
    """The sum over the places of the window: the transpose of `_shifted_rows`."""
    _, height, width, _ = shape
    dx = np.zeros(shape, shifted.dtype)
    inside = shifted[window.before[0] : window.before[0] + height]
    for j in range(window.size[1]):
        source, to = _overlap(j, width, shifted.shape[3], window)
        into = dx[:, :, to]
        np.add(into, inside[:, :, j, source].transpose(1, 0, 2, 3), out=into)
    return dx
