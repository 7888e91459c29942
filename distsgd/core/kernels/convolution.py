"""Convolution as matrix products of shifted rows, with NumPy; arrays are (channels, height, width, n), contiguous.

With the batch last, the kw shifted copies of an input row, (channels, kw, out_width, n), are long runs, and kh
consecutive such rows are the (kh·channels·kw, out_width·n) columns of an output row as they lie: im2col would copy each
value kh·kw times, this copies it kw times. The gradient of x is the transpose: a product with the kh consecutive output
rows of an input row, and a sum over kw shifts.

Work is cut into blocks of rows that fit the cache, and products into widths that are fast in BLAS. Both are functions
of the shapes alone, for they are part of the order in which numbers are added.

Where pooling follows, the columns of the output are kept `apart`: column w at [w % apart, w // apart], so that what a
pooling window compares lies in long runs. y is then (filters, out_height, apart, out_width / apart, n).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from distsgd.core.device import Array
from distsgd.core.kernels.products import has_small_kernels
from distsgd.core.kernels.vectors import empty, empty_rows

BLOCK_BYTES = 1 << 19
"""About how many bytes of shifted rows are in use at a time: half of a core's second-level cache."""

SMALL_PRODUCT = 1_000_000
"""Multiply-adds up to which OpenBLAS multiplies matrices where they lie, without copying them first."""
_LEAST_PIECE = 32
SMALL_PRODUCT_ALONG = 1_200
"""Elements of a product up to which it does so where both operands lie along the axis that is summed."""
_LEAST_GROUP, _LEAST_LENGTH = 24, 256


@dataclass(frozen=True)
class Window:
    """A kernel's or a pooling window's size, step and zero padding along the two axes of an image."""

    size: tuple[int, int]
    stride: tuple[int, int]
    before: tuple[int, int] = (0, 0)
    after: tuple[int, int] = (0, 0)

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output; below 1 where the window is larger than the padded image."""
        padded = (height + self.before[0] + self.after[0], width + self.before[1] + self.after[1])
        return (
            (padded[0] - self.size[0]) // self.stride[0] + 1,
            (padded[1] - self.size[1]) // self.stride[1] + 1,
        )

    @property
    def keeps_size(self) -> bool:
        """Whether the output has the input's height and width."""
        padding = tuple(map(sum, zip(self.before, self.after, strict=True)))
        return self.stride == (1, 1) and padding == (self.size[0] - 1, self.size[1] - 1)

    @property
    def turned(self) -> Window:
        """The window by which the gradient of an input whose size is kept is a convolution of the output's."""
        return replace(self, before=self.after, after=self.before)

    @property
    def is_pointwise(self) -> bool:
        """Whether output pixels are functions of the input pixels at their own places."""
        return self.size == self.stride == (1, 1) and self.before == self.after == (0, 0)

    def cropped(self, height: int, width: int, multiple: tuple[int, int]) -> Window:
        """The window with the largest output of such multiples as height and width: last rows and columns are cut."""
        out = self.output(height, width)
        left = (out[0] % multiple[0] * self.stride[0], out[1] % multiple[1] * self.stride[1])
        return replace(self, after=(self.after[0] - left[0], self.after[1] - left[1]))


def convolve(x: Array, weight: Array, window: Window, apart: int = 1) -> Array:
    """y[f, h, w] := Σ weight[f, c, i, j] x[c, h s + i - before, w s + j - before], without flipping the kernel.

    x (channels, height, width, n), weight (filters, channels, kh, kw), y (filters, out_height, out_width, n).
    """
    filters, (_, height, width, n) = len(weight), x.shape
    out_height, out_width = window.output(height, width)
    if window.is_pointwise and apart == 1:
        y = empty((filters, height, width, n), x.dtype)
        np.matmul(weight.reshape(filters, -1), x.reshape(len(x), -1), out=y.reshape(filters, -1))
        return y
    if apart == 1 and window.keeps_size and filters <= len(x):
        # kw·filters rows of products and kw sums, instead of kw copies of x and products with few rows. Not a matter of
        # n, for an example's outputs are the same whatever is computed beside it.
        turned = np.ascontiguousarray(weight[:, :, ::-1, ::-1].transpose(1, 0, 2, 3))
        return input_gradient(turned, x, window.turned, height, width)
    y = empty((filters, out_height, apart, out_width // apart, n), x.dtype)
    matrix = np.ascontiguousarray(weight.transpose(2, 1, 3, 0)).reshape(-1, filters).T
    rows = y.reshape(filters, out_height, -1).transpose(1, 0, 2)
    for first, last, columns in _column_blocks(x, window, apart):
        _multiply(matrix, columns, rows[first:last])
    return y.reshape(filters, out_height, out_width, n) if apart == 1 else y


def gradients(
    x: Array, weight: Array, dy: Array, window: Window, dweight: Array, needs_dx: bool = True, apart: int = 1
) -> Array | None:
    """weight_gradient, and input_gradient where dx is needed; both from one copy of dy where that is faster."""
    (filters, channels, kh, kw), (_, height, width, n) = weight.shape, x.shape
    together = needs_dx and apart == 1 and window.keeps_size and not window.is_pointwise
    if not (together and _small_dots(kh * filters, channels, width * n, x.dtype)):
        weight_gradient(x, dy, window, dweight, apart)
        return input_gradient(weight, dy, window, height, width, apart) if needs_dx else None
    # A row of x times kh rows of dy, kw times, each beginning one column later, with zeros before and after dy.
    margins = (window.after[1], window.before[1])
    rows, dx = _in_rows(dy, margins), empty(x.shape, dy.dtype)
    total = np.zeros((kw, kh * filters, channels), dy.dtype)
    inside = rows[:, margins[0] * n : (margins[0] + width) * n]
    columns = (n * rows.itemsize, *rows.strides)
    for h, first, part in _gradient_rows(weight, inside, window, dx, 1):
        shifted = np.lib.stride_tricks.as_strided(rows[part], (kw, part.stop - part.start, width * n), columns)
        total[:, first : first + shifted.shape[1]] += _products_along(shifted, x[None, :, h])
    dweight[...] = total.reshape(kw, kh, filters, channels)[::-1, ::-1].transpose(2, 3, 1, 0)
    return dx


def weight_gradient(x: Array, dy: Array, window: Window, dweight: Array, apart: int = 1) -> None:
    """dweight[f, c, i, j] := Σ dy[f, h, w] x[c, h s + i - before, w s + j - before], overwritten."""
    filters, channels, kh, kw = dweight.shape
    if window.is_pointwise and apart == 1:
        np.matmul(dy.reshape(filters, -1), x.reshape(channels, -1).T, out=dweight.reshape(filters, -1))
        return
    rows = dy.reshape(filters, dy.shape[1], -1).transpose(1, 0, 2)
    # Transposed, (kh·channels·kw, filters), the product is half as fast again: BLAS prefers the long side first.
    total = np.zeros((kh * channels * kw, filters), dy.dtype)
    for first, last, columns in _column_blocks(x, window, apart):
        total += np.add.reduce(_products_along(columns, rows[first:last]), axis=0)
    dweight[...] = total.reshape(kh, channels, kw, filters).transpose(3, 1, 0, 2)


def input_gradient(weight: Array, dy: Array, window: Window, height: int, width: int, apart: int = 1) -> Array:
    """dx[c, h s + i - before, w s + j - before] := Σ weight[f, c, i, j] dy[f, h, w]: convolve's transpose."""
    filters, channels = weight.shape[:2]
    dx = empty((channels, height, width, dy.shape[-1]), dy.dtype)
    if window.is_pointwise and apart == 1:
        np.matmul(weight.reshape(filters, -1).T, dy.reshape(filters, -1), out=dx.reshape(channels, -1))
        return dx
    for _ in _gradient_rows(weight, _in_rows(dy, (0, 0)), window, dx, apart):
        pass
    return dx


def _in_rows(dy: Array, margins: tuple[int, int]) -> Array:
    """dy's rows (out_height·filters, (before + out_width + after)·n): with columns of zeros before and after."""
    filters, height, width = dy.shape[0], dy.shape[1], dy[0, 0].size
    before, after = (columns * dy.shape[-1] for columns in margins)
    rows = empty_rows((height, filters, before + width + after), dy.dtype)
    rows[:, :, :before] = 0.0
    rows[:, :, before + width :] = 0.0
    rows[:, :, before : before + width] = dy.reshape(filters, height, width).transpose(1, 0, 2)
    return rows.reshape(height * filters, -1)


def _gradient_rows(
    weight: Array, dy_rows: Array, window: Window, dx: Array, apart: int
) -> Iterator[tuple[int, int, slice]]:
    """Fills dx from dy's rows (out_height·filters, out_width·n).

    Gives (h, first, part) after the product of each row of dx, while its operands are in the cache: dy_rows[part] are
    what it was made of, and the place of the first of these among the kh·filters that there are inside the image.
    """
    (filters, channels, _, kw), (height, n) = weight.shape, (dx.shape[1], dx.shape[-1])
    step, row = window.stride[0], channels * kw * dy_rows[0].nbytes
    together = min(max(1, BLOCK_BYTES // row), height)
    products = empty_rows((together, channels * kw, dy_rows.shape[1]), dx.dtype)
    shifted = products.reshape(together, channels, kw, apart, -1, n)
    matrices = [weight[:, :, i::step][:, :, ::-1].transpose(1, 3, 2, 0).reshape(channels * kw, -1) for i in range(step)]
    partners = _partners(window, height, len(dy_rows) // filters)
    for start in range(0, height, together):
        stop = min(start + together, height)
        for h, (i, skipped, low, high) in enumerate(partners[start:stop]):
            part, first = slice(low * filters, high * filters), skipped * filters
            matrix = matrices[i][:, first : first + part.stop - part.start]
            _multiply(matrix, dy_rows[None, part], products[h : h + 1])
            yield start + h, first, part
        _sum_shifted(shifted[: stop - start], dx[:, start:stop], window)


@lru_cache(maxsize=256)
def _partners(window: Window, height: int, out_height: int) -> tuple[tuple[int, int, int, int], ...]:
    """(i, skipped, low, high) for each input row: it takes part in the output rows [low, high).

    Input row h takes part in output row r at place i of the window where h + before = r s + i. So it is in as many
    consecutive output rows as there are places i, i + s, i + 2 s, …, the last place in the first of these rows;
    `skipped` of these rows would lie above the output.
    """
    found = []
    for h in range(height):
        top, i = divmod(h + window.before[0], window.stride[0])
        bottom = top + 1 - len(range(i, window.size[0], window.stride[0]))
        low, high = max(bottom, 0), min(top + 1, out_height)
        found.append((i, low - bottom, low, max(low, high)))
    return tuple(found)


@lru_cache(maxsize=256)
def _overlaps(window: Window, width: int, out_width: int, apart: int) -> tuple[tuple[int, int, slice, slice], ...]:
    """(j, g, output columns, input columns) where column j of the window lies inside the image, not on its padding.

    Output columns are those of group g, the ones with w % apart = g. What covers most of the input comes first.
    """
    step, found = window.stride[1] * apart, []
    for j in range(window.size[1]):
        for g in range(apart):
            offset = j + g * window.stride[1] - window.before[1]
            first = min(max(0, -(offset // step)), out_width)
            last = max(min(out_width, (width - 1 - offset) // step + 1), first)
            begin = first * step + offset
            source = slice(begin, begin + (last - first - 1) * step + 1, step) if last > first else slice(0, 0, step)
            found.append((j, g, slice(first, last), source))
    return tuple(sorted(found, key=lambda one: one[2].start - one[2].stop))


def _sum_shifted(shifted: Array, dx: Array, window: Window) -> None:
    """dx := the sum over the window's columns of shifted (rows, channels, kw, apart, out_width, n)."""
    width, (apart, out_width) = dx.shape[2], shifted.shape[3:5]
    for index, (j, g, source, to) in enumerate(_overlaps(window, width, out_width, apart)):
        part, into = shifted[:, :, j, g, source].transpose(1, 0, 2, 3), dx[:, :, to]
        if index == 0 and part.shape == dx.shape:
            dx[...] = part
            continue
        if index == 0:
            dx[...] = 0.0
        np.add(into, part, out=into)


def _multiply(matrix: Array, columns: Array, out: Array) -> None:
    """out[r] := matrix @ columns[r], over slices of the columns' width."""
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


def _products_along(columns: Array, rows: Array) -> Array:
    """columns[r] @ rows[r].T, with the axis that is summed last in both; rows may have several axes there, or one r."""
    (count, length, width), (several, filters) = columns.shape, rows.shape[:2]
    rows = rows.reshape(several, filters, width)
    cut = _small_dots(length, filters, width, columns.dtype)
    if cut is None:
        whole: Array = np.matmul(columns, rows.transpose(0, 2, 1))
        return whole
    (group, piece), groups, pieces = cut, length // cut[0], width // cut[1]
    parts = np.matmul(
        columns.reshape(count, groups, group, pieces, piece).transpose(0, 1, 3, 2, 4),
        rows.reshape(several, 1, filters, pieces, piece).transpose(0, 1, 3, 4, 2),
    )
    sums: Array = np.add.reduce(parts, axis=2)
    return sums.reshape(count, length, filters)


@lru_cache(maxsize=256)
def _small_dots(length: int, filters: int, width: int, dtype: np.dtype[Any]) -> tuple[int, int] | None:
    """How many of `length` rows, and how much of their width, to multiply at a time; None for all of both."""
    group = _largest_divisor(length, SMALL_PRODUCT_ALONG // filters)
    piece = _largest_divisor(width, SMALL_PRODUCT // (group * filters))
    pays = dtype == np.float32 and has_small_kernels() and group >= _LEAST_GROUP and piece >= _LEAST_LENGTH
    return (group, piece) if pays else None


def _largest_divisor(number: int, most: int) -> int:
    return max(part for part in range(1, max(min(number, most), 1) + 1) if number % part == 0)


def _piece(area: int, width: int) -> int:
    """How many columns to multiply at a time with a matrix of `area` elements: all, where slices would be narrow."""
    widest = SMALL_PRODUCT // max(area, 1)
    if widest >= width or widest < _LEAST_PIECE:
        return width
    even = -(-width // -(-width // widest))  # slices about equally wide,
    return min(-(-even // 16) * 16, widest // 16 * 16)  # and as wide as registers


def _column_blocks(x: Array, window: Window, apart: int) -> Iterator[tuple[int, int, Array]]:
    """(first, last, columns) for blocks of output rows; columns are (last - first, kh·channels·kw, out_width·n).

    Each block's columns lie where the last one's were.
    """
    channels, height, width, n = x.shape
    (kh, kw), step = window.size, window.stride[0]
    out_height, out_width = window.output(height, width)
    row = channels * kw * out_width * n
    together = min(max(kh, BLOCK_BYTES // (row * x.itemsize * step)), out_height)
    shifted = empty_rows(((together - 1) * step + kh, channels * kw, out_width * n), x.dtype)
    rows = shifted.reshape(len(shifted), channels, kw, apart, -1, n)
    strides = (step * shifted.strides[0], *shifted.strides[1:])
    kept = 0
    for first in range(0, out_height, together):
        last = min(first + together, out_height)
        stop = (last - 1) * step + kh
        _shift_rows(x, window, first * step + kept, rows[kept : stop - first * step])
        shape = (last - first, kh * channels * kw, out_width * n)
        yield first, last, np.lib.stride_tricks.as_strided(shifted, shape, strides)
        if last < out_height:
            kept = max(kh - step, 0)
            rows[:kept] = rows[len(rows) - kept :]


def _shift_rows(x: Array, window: Window, start: int, rows: Array) -> None:
    """Fills rows (…, channels, kw, apart, out_width, n): the padded x from `start` on, shifted by each column."""
    height, width, (apart, out_width) = x.shape[1], x.shape[2], rows.shape[3:5]
    top = min(max(window.before[0] - start, 0), len(rows))
    bottom = max(min(window.before[0] + height - start, len(rows)), top)
    rows[:top] = 0.0
    rows[bottom:] = 0.0
    first = start + top - window.before[0]
    inside = x[:, first : first + bottom - top].transpose(1, 0, 2, 3)
    overlaps = _overlaps(window, width, out_width, apart)
    if all(to == slice(0, out_width) for _, _, to, _ in overlaps):  # without padding, all columns in one call
        (row, channel, column, example), step = inside.strides, window.stride[1]
        strides = (row, channel, column, step * column, step * apart * column, example)
        np.copyto(rows[top:bottom], np.lib.stride_tricks.as_strided(inside, rows[top:bottom].shape, strides))
        return
    for j, g, to, source in overlaps:
        into = rows[top:bottom, :, j, g]
        if to.start:
            into[:, :, : to.start] = 0.0
        if to.stop < out_width:
            into[:, :, to.stop :] = 0.0
        into[:, :, to] = inside[:, :, source]
