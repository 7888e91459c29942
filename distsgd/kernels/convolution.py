"""Convolution as matrix products of shifted rows, with NumPy; arrays are (channels, height, width, n), contiguous.

With the batch last, the kw shifted copies of an input row, (channels, kw, out_width, n), are long runs, and kh such
rows behind each other are the (kh·channels·kw, out_width·n) columns of an output row as they lie: im2col would copy
each value kh·kw times, this copies it kw times. The gradient of x goes the same way back: a product that has the kh
output rows of an input row behind each other, and a sum over kw shifts.

Work is cut into blocks of rows that fit the cache, and products into pieces that BLAS likes. Both are functions of the
shapes alone, for they are part of the order in which numbers are added.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from distsgd.device import Array

BLOCK_BYTES = 1 << 19
"""About how much of the shifted rows is worked on at a time: half of a core's second cache."""

SMALL_PRODUCT = 1_000_000
"""Multiply-adds up to which OpenBLAS multiplies matrices where they lie, without copying them first."""
_LEAST_PIECE = 32


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

    def overlap(self, j: int, width: int, out_width: int) -> tuple[slice, slice]:
        """(output columns, input columns) where column j of the window lies inside the image, not on its padding."""
        step, offset = self.stride[1], j - self.before[1]
        first = min(max(0, -(offset // step)), out_width)
        last = max(min(out_width, (width - 1 - offset) // step + 1), first)
        begin = first * step + offset
        return slice(first, last), slice(begin, begin + (last - first - 1) * step + 1 if last > first else begin, step)


def convolve(x: Array, weight: Array, window: Window) -> Array:
    """y[f, h, w] := Σ weight[f, c, i, j] x[c, h s + i - before, w s + j - before], without the kernel turned over.

    x (channels, height, width, n), weight (filters, channels, kh, kw), y (filters, out_height, out_width, n).
    """
    filters, (_, height, width, n) = len(weight), x.shape
    out = window.output(height, width)
    y = np.empty((filters, *out, n), x.dtype)
    if window.is_pointwise:
        np.matmul(weight.reshape(filters, -1), x.reshape(len(x), -1), out=y.reshape(filters, -1))
        return y
    matrix = np.ascontiguousarray(weight.transpose(2, 1, 3, 0)).reshape(-1, filters).T
    rows = y.reshape(filters, out[0], -1).transpose(1, 0, 2)
    for first, last, columns in _column_blocks(x, window):
        _multiply(matrix, columns, rows[first:last])
    return y


def weight_gradient(x: Array, dy: Array, window: Window, dweight: Array) -> None:
    """dweight[f, c, i, j] := Σ dy[f, h, w] x[c, h s + i - before, w s + j - before], overwritten."""
    filters, channels, kh, kw = dweight.shape
    if window.is_pointwise:
        np.matmul(dy.reshape(filters, -1), x.reshape(channels, -1).T, out=dweight.reshape(filters, -1))
        return
    rows = dy.reshape(filters, dy.shape[1], -1).transpose(1, 2, 0)
    # Transposed, (kh·channels·kw, filters), the product is half as fast again: BLAS prefers the long side first.
    total = np.zeros((kh * channels * kw, filters), dy.dtype)
    for first, last, columns in _column_blocks(x, window):
        total += np.add.reduce(np.matmul(columns, rows[first:last]), axis=0)
    dweight[...] = total.reshape(kh, channels, kw, filters).transpose(3, 1, 0, 2)


def input_gradient(weight: Array, dy: Array, window: Window, height: int, width: int) -> Array:
    """dx[c, h s + i - before, w s + j - before] := Σ weight[f, c, i, j] dy[f, h, w]: convolve's transpose."""
    filters, channels, _, kw = weight.shape
    _, out_height, out_width, n = dy.shape
    dx = np.empty((channels, height, width, n), dy.dtype)
    if window.is_pointwise:
        np.matmul(weight.reshape(filters, -1).T, dy.reshape(filters, -1), out=dx.reshape(channels, -1))
        return dx
    dy_rows = dy.transpose(1, 0, 2, 3).reshape(out_height * filters, out_width * n)
    step, row = window.stride[0], channels * kw * out_width * n * dy.itemsize
    together = min(max(1, BLOCK_BYTES // row), height)
    shifted = np.empty((together, channels, kw, out_width, n), dy.dtype)
    # Input row h takes part in output row r at place i of the window where h + before = r s + i: in as many output rows
    # behind each other as places i, i + s, i + 2 s, … there are; the matrix holds them from the last one backwards.
    matrices = [weight[:, :, i::step][:, :, ::-1].transpose(1, 3, 2, 0).reshape(channels * kw, -1) for i in range(step)]
    for first in range(0, height, together):
        last = min(first + together, height)
        for h in range(first, last):
            top, i = divmod(h + window.before[0], step)
            bottom = top + 1 - matrices[i].shape[1] // filters
            low, high = max(bottom, 0), min(top + 1, out_height)
            part = matrices[i][:, (low - bottom) * filters : (high - bottom) * filters]
            out = shifted[h - first].reshape(1, channels * kw, -1)
            _multiply(part, dy_rows[None, low * filters : high * filters], out)
        _sum_shifted(shifted[: last - first], dx[:, first:last], window)
    return dx


def _sum_shifted(shifted: Array, dx: Array, window: Window) -> None:
    """dx := the sum of what each column of the window says of these rows, (rows, channels, kw, out_width, n)."""
    width, out_width = dx.shape[2], shifted.shape[3]
    places = [
        (window.overlap(j, width, out_width), shifted[:, :, j].transpose(1, 0, 2, 3)) for j in range(shifted.shape[2])
    ]
    places.sort(key=lambda place: place[0][0].start - place[0][0].stop)
    for index, ((source, to), part) in enumerate(places):
        if index == 0 and (to.start, to.stop, to.step) == (0, width, 1):
            dx[...] = part[:, :, source]
            continue
        if index == 0:
            dx[...] = 0.0
        into = dx[:, :, to]
        np.add(into, part[:, :, source], out=into)


def _multiply(matrix: Array, columns: Array, out: Array) -> None:
    """out[r] := matrix @ columns[r], in pieces of the columns' width."""
    rows, inner, width = columns.shape
    piece = _piece(len(matrix) * inner, width)
    if piece == width:
        np.matmul(matrix, columns, out=out)
        return
    even = width // piece * piece
    split = (rows, -1, even // piece, piece)
    np.matmul(
        matrix,
        columns[:, :, :even].reshape(split).transpose(0, 2, 1, 3),
        out=out[:, :, :even].reshape(split).transpose(0, 2, 1, 3),
    )
    if even < width:
        np.matmul(matrix, columns[:, :, even:], out=out[:, :, even:])


def _piece(area: int, width: int) -> int:
    """How many columns to multiply at a time with a matrix of `area` elements: all, where pieces would be narrow."""
    widest = SMALL_PRODUCT // max(area, 1)
    if widest >= width or widest < _LEAST_PIECE:
        return width
    even = -(-width // -(-width // widest))  # pieces about equally wide,
    return min(-(-even // 16) * 16, widest // 16 * 16)  # and as wide as registers


def _column_blocks(x: Array, window: Window) -> Iterator[tuple[int, int, Array]]:
    """(first, last, columns) for blocks of output rows; columns are (last - first, kh·channels·kw, out_width·n).

    Each block's columns lie where the last one's were.
    """
    channels, height, width, n = x.shape
    (kh, kw), step = window.size, window.stride[0]
    out_height, out_width = window.output(height, width)
    row = channels * kw * out_width * n
    together = min(max(kh, BLOCK_BYTES // (row * x.itemsize * step)), out_height)
    rows = np.empty(((together - 1) * step + kh, channels, kw, out_width, n), x.dtype)
    strides = (step * row * x.itemsize, out_width * n * x.itemsize, x.itemsize)
    kept = 0
    for first in range(0, out_height, together):
        last = min(first + together, out_height)
        stop = (last - 1) * step + kh
        _shift_rows(x, window, first * step + kept, rows[kept : stop - first * step])
        yield first, last, np.ndarray((last - first, kh * channels * kw, out_width * n), x.dtype, rows, 0, strides)
        kept = max(kh - step, 0)
        rows[:kept] = rows[len(rows) - kept :]


def _shift_rows(x: Array, window: Window, start: int, rows: Array) -> None:
    """Fills rows (…, channels, kw, out_width, n): those of the padded x from `start` on, shifted by each column."""
    height, width = x.shape[1:3]
    top = min(max(window.before[0] - start, 0), len(rows))
    bottom = max(min(window.before[0] + height - start, len(rows)), top)
    rows[:top] = 0.0
    rows[bottom:] = 0.0
    first = start + top - window.before[0]
    inside = x[:, first : first + bottom - top].transpose(1, 0, 2, 3)
    for j in range(window.size[1]):
        to, source = window.overlap(j, width, rows.shape[3])
        into = rows[top:bottom, :, j]
        if to.start:
            into[:, :, : to.start] = 0.0
        if to.stop < rows.shape[3]:
            into[:, :, to.stop :] = 0.0
        into[:, :, to] = inside[:, :, source]
