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
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from distsgd.core.device import Array
from distsgd.core.kernels.pieces import multiply_pieces, products_along, small_dots
from distsgd.core.kernels.vectors import empty, empty_rows, row_length, strided

BLOCK_BYTES = 1 << 19
"""About how many bytes of shifted rows are in use at a time: half of a core's second-level cache."""


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

    @cached_property
    def keeps_size(self) -> bool:
        """Whether the output has the input's height and width."""
        padding = tuple(map(sum, zip(self.before, self.after, strict=True)))
        return self.stride == (1, 1) and padding == (self.size[0] - 1, self.size[1] - 1)

    @cached_property
    def turned(self) -> Window:
        """The window by which the gradient of an input whose size is kept is a convolution of the output's."""
        return replace(self, before=self.after, after=self.before)

    @property
    def is_pointwise(self) -> bool:
        """Whether output pixels are functions of the input pixels at their own places."""
        return self.size == self.stride == (1, 1) and self.before == self.after == (0, 0)

    @lru_cache(maxsize=256)  # noqa: B019 (of a window, which is small)
    def cropped(self, height: int, width: int, multiple: tuple[int, int]) -> Window:
        """The window with the largest output of such multiples as height and width: last rows and columns are cut."""
        out = self.output(height, width)
        left = (out[0] % multiple[0] * self.stride[0], out[1] % multiple[1] * self.stride[1])
        return replace(self, after=(self.after[0] - left[0], self.after[1] - left[1]))


def convolve(x: Array, weight: Array, window: Window, apart: int = 1) -> Array:
    """y[f, h, w] := Σ weight[f, c, i, j] x[c, h s + i - before, w s + j - before], without flipping the kernel.

    x (channels, height, width, n), weight (filters, channels, kh, kw), y (filters, out_height, out_width, n).
    """
    if x.ndim == 4:
        of_one: Array = convolve(x[None], weight, window, apart)[0]
        return of_one
    filters, (parts, channels, height, width, n) = len(weight), x.shape
    out_height, out_width = window.output(height, width)
    if window.is_pointwise and apart == 1:
        y = empty((parts, filters, height, width, n), x.dtype)
        np.matmul(weight.reshape(filters, -1), x.reshape(parts, channels, -1), out=y.reshape(parts, filters, -1))
        return y
    if apart == 1 and window.keeps_size and filters <= channels:
        # kw·filters rows of products and kw sums, instead of kw copies of x and products with few rows. Not a matter of
        # n, for an example's outputs are the same whatever is computed beside it.
        turned = np.ascontiguousarray(weight[:, :, ::-1, ::-1].transpose(1, 0, 2, 3))
        return _input_gradients(turned, x, window.turned, height, width)
    y = empty((parts, filters, out_height, apart, out_width // apart, n), x.dtype)
    matrix = np.ascontiguousarray(weight.transpose(2, 1, 3, 0)).reshape(-1, filters).T
    rows = y.reshape(parts, filters, out_height, -1).transpose(0, 2, 1, 3)
    for own, first, last, columns in _column_blocks(x, window, apart):
        multiply_pieces(matrix, columns, rows[own, first:last])
    return y.reshape(parts, filters, out_height, out_width, n) if apart == 1 else y


def gradients(
    x: Array, weight: Array, dy: Array, window: Window, dweight: Array, needs_dx: bool = True, apart: int = 1
) -> Array | None:
    """weight_gradient, and input_gradient where dx is needed; both from one copy of dy where that is faster."""
    if x.ndim == 4:
        both = gradients(x[None], weight, dy[None], window, dweight[None], needs_dx, apart)
        return None if both is None else both[0]
    (filters, channels, kh, kw), (height, width, n) = weight.shape, x.shape[2:]
    together = needs_dx and apart == 1 and window.keeps_size and not window.is_pointwise
    if not (together and small_dots(kh * filters, channels, width * n, x.dtype)):
        weight_gradient(x, dy, window, dweight, apart)
        return _input_gradients(weight, dy, window, height, width, apart) if needs_dx else None
    # A row of x times kh rows of dy, kw times, each beginning one column later, with zeros before and after dy.
    margins = (window.after[1], window.before[1])
    rows, dx = _in_rows(dy, margins), empty(x.shape, dy.dtype)
    total = np.zeros((len(x), kw, kh * filters, channels), dy.dtype)
    strides = (rows.strides[0], n * rows.itemsize, *rows.strides[1:])
    for run in _gradient_rows(weight, rows, margins[0] * n, window, dx, 1):
        first, length = run.skipped * filters, (run.high - run.low) * filters
        for k in range(run.rows):
            begin = (run.low + k) * filters * rows.strides[1]
            shifted = strided(rows, (len(x), kw, length, width * n), strides, begin)
            total[:, :, first : first + length] += products_along(shifted, x[:, None, :, run.h + k])
    split = total.reshape(len(x), kw, kh, filters, channels)
    dweight[...] = split[:, ::-1, ::-1].transpose(0, 3, 4, 2, 1)
    return dx


def weight_gradient(x: Array, dy: Array, window: Window, dweight: Array, apart: int = 1) -> None:
    """dweight[f, c, i, j] := Σ dy[f, h, w] x[c, h s + i - before, w s + j - before], overwritten."""
    if x.ndim == 4:
        weight_gradient(x[None], dy[None], window, dweight[None], apart)
        return
    parts, filters, channels, kh, kw = dweight.shape
    if window.is_pointwise and apart == 1:
        columns = x.reshape(parts, channels, -1).transpose(0, 2, 1)
        np.matmul(dy.reshape(parts, filters, -1), columns, out=dweight.reshape(parts, filters, -1))
        return
    rows = dy.reshape(parts, filters, dy.shape[2], -1).transpose(0, 2, 1, 3)
    # Transposed, (kh·channels·kw, filters), the product is half as fast again: BLAS prefers the long side first.
    total = np.zeros((parts, kh * channels * kw, filters), dy.dtype)
    for own, first, last, columns in _column_blocks(x, window, apart):
        total[own] += np.add.reduce(products_along(columns, rows[own, first:last]), axis=1)
    dweight[...] = total.reshape(parts, kh, channels, kw, filters).transpose(0, 4, 2, 1, 3)


def input_gradient(weight: Array, dy: Array, window: Window, height: int, width: int, apart: int = 1) -> Array:
    """dx[c, h s + i - before, w s + j - before] := Σ weight[f, c, i, j] dy[f, h, w]: convolve's transpose."""
    dx: Array = _input_gradients(weight, dy[None], window, height, width, apart)[0]
    return dx


def _input_gradients(weight: Array, dy: Array, window: Window, height: int, width: int, apart: int = 1) -> Array:
    """The same of several microbatches."""
    parts, (filters, channels) = len(dy), weight.shape[:2]
    dx = empty((parts, channels, height, width, dy.shape[-1]), dy.dtype)
    if window.is_pointwise and apart == 1:
        matrix = weight.reshape(filters, -1).T
        np.matmul(matrix, dy.reshape(parts, filters, -1), out=dx.reshape(parts, channels, -1))
        return dx
    for _ in _gradient_rows(weight, _in_rows(dy, (0, 0)), 0, window, dx, apart):
        pass
    return dx


def _in_rows(dy: Array, margins: tuple[int, int]) -> Array:
    """dy's rows (parts, out_height·filters, at least (before + out_width + after)·n), with columns of zeros before and
    after; contiguous."""
    parts, filters, height, width = *dy.shape[:3], dy[0, 0, 0].size
    before, after = (columns * dy.shape[-1] for columns in margins)
    rows = empty((parts, height, filters, row_length(before + width + after, dy.dtype)), dy.dtype)
    rows[..., :before] = 0.0
    rows[..., before + width : before + width + after] = 0.0
    rows[..., before : before + width] = dy.reshape(parts, filters, height, width).transpose(0, 2, 1, 3)
    return rows.reshape(parts, height * filters, -1)


def _gradient_rows(weight: Array, dy_rows: Array, margin: int, window: Window, dx: Array, apart: int) -> Iterator[_Run]:
    """Fills dx from dy's rows (parts, out_height·filters, more than margin + out_width·n).

    Gives each run after the products of its rows, while their operands are in the cache.
    """
    (filters, channels, _, kw), (parts, _, height, width, n) = weight.shape, dx.shape
    step, row = window.stride[0], window.output(height, width)[1] * n
    together = min(max(1, BLOCK_BYTES // (parts * channels * kw * row * dx.itemsize)), height)
    products = empty_rows((parts, together, channels * kw, row), dx.dtype)
    shifted = products.reshape(parts, together, channels, kw, apart, -1, n)
    matrices = [weight[:, :, i::step][:, :, ::-1].transpose(1, 3, 2, 0).reshape(channels * kw, -1) for i in range(step)]
    of_parts, line, number = dy_rows.strides
    for start, stop, runs in _runs(window, height, dy_rows.shape[1] // filters, together):
        for run in runs:
            begin, length, first = run.low * filters, (run.high - run.low) * filters, run.skipped * filters
            shape, strides = (parts, run.rows, length, row), (of_parts, filters * line, line, number)
            columns = strided(dy_rows, shape, strides, begin * line + margin * number)
            at = run.h - start
            into = products[:, at : at + (run.rows - 1) * step + 1 : step]
            multiply_pieces(matrices[run.i][:, first : first + length], columns, into)
            yield run
        _sum_shifted(shifted[:, : stop - start], dx[:, :, start:stop], window)


class _Run(NamedTuple):
    """Rows h, h + s, h + 2 s, … of an input, `rows` in all, which are made of equally many output rows.

    The first takes part in the output rows [low, high), each other one in those after the one before. Input row h takes
    part in output row r at place i of the window where h + before = r s + i. So it is in as many consecutive output
    rows as there are places i, i + s, i + 2 s, …, the last place in the first of these rows; `skipped` of these rows
    would lie above the output.
    """

    h: int
    rows: int
    i: int
    skipped: int
    low: int
    high: int


@lru_cache(maxsize=256)
def _runs(window: Window, height: int, out_height: int, together: int) -> tuple[tuple[int, int, tuple[_Run, ...]], ...]:
    """(start, stop, the runs of these rows) for blocks of so many input rows."""
    step, blocks = window.stride[0], []
    for start in range(0, height, together):
        stop = min(start + together, height)
        runs: list[_Run] = []
        last: dict[int, int] = {}  # by place i: which of the runs
        for h in range(start, stop):
            top, i = divmod(h + window.before[0], step)
            bottom = top + 1 - len(range(i, window.size[0], step))
            low, high = (min(max(row, 0), out_height) for row in (bottom, top + 1))  # none for rows that are cut
            own = _Run(h, 1, i, max(low - bottom, 0), low, high)
            before = runs[last[i]] if i in last else None
            if before is not None and own._replace(h=before.h, rows=before.rows) == before._replace(
                low=before.low + before.rows, high=before.high + before.rows
            ):
                runs[last[i]] = before._replace(rows=before.rows + 1)
                continue
            last[i] = len(runs)
            runs.append(own)
        blocks.append((start, stop, tuple(runs)))
    return tuple(blocks)


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
    """dx := the sum over the window's columns of shifted (parts, rows, channels, kw, apart, out_width, n)."""
    width, (apart, out_width) = dx.shape[3], shifted.shape[4:6]
    for index, (j, g, source, to) in enumerate(_overlaps(window, width, out_width, apart)):
        part, into = shifted[:, :, :, j, g, source].transpose(0, 2, 1, 3, 4), dx[:, :, :, to]
        if index == 0 and part.shape == dx.shape:
            dx[...] = part
            continue
        if index == 0:
            dx[...] = 0.0
        np.add(into, part, out=into)


def _column_blocks(x: Array, window: Window, apart: int) -> Iterator[tuple[slice, int, int, Array]]:
    """(own, first, last, columns) for blocks of output rows of some microbatches, x[own]; columns are
    (microbatches, last - first, kh·channels·kw, out_width·n).

    Each block's columns lie where the last one's were. Where a microbatch is cut is the same beside others.
    """
    parts, channels, height, width, n = x.shape
    (kh, kw), step = window.size, window.stride[0]
    out_height, out_width = window.output(height, width)
    row = channels * kw * out_width * n
    together = min(max(kh, BLOCK_BYTES // (row * x.itemsize * step)), out_height)
    several, length = 1, (together - 1) * step + kh
    if together == out_height:
        several = min(max(1, BLOCK_BYTES // (row * x.itemsize * length)), parts)
    memory = empty((several, length, channels * kw, row_length(out_width * n, x.dtype)), x.dtype)
    of_part, of_row, line, number = memory.strides
    shape = (several, together, kh * channels * kw, out_width * n)
    columns = strided(memory, shape, (of_part, step * of_row, line, number))
    shifted = memory[..., : out_width * n].reshape(several, length, channels, kw, apart, -1, n)
    for part in range(0, parts, several):
        own = slice(part, min(part + several, parts))
        rows, kept = shifted[: own.stop - part], 0
        for first in range(0, out_height, together):
            last = min(first + together, out_height)
            stop = (last - 1) * step + kh
            _shift_rows(x, own, window, first * step + kept, rows[:, kept : stop - first * step])
            yield own, first, last, columns[: own.stop - part, : last - first]
            if last < out_height:
                kept = max(kh - step, 0)
                rows[:, :kept] = rows[:, length - kept :]


def _shift_rows(x: Array, own: slice, window: Window, start: int, rows: Array) -> None:
    """Fills rows (parts, …, channels, kw, apart, out_width, n): padded x[own] from `start` on, shifted by each one."""
    height, width, count, (apart, out_width) = x.shape[2], x.shape[3], rows.shape[1], rows.shape[4:6]
    top = min(max(window.before[0] - start, 0), count)
    bottom = max(min(window.before[0] + height - start, count), top)
    if top:
        rows[:, :top] = 0.0
    if bottom < count:
        rows[:, bottom:] = 0.0
    if bottom == top:
        return
    first, into = start + top - window.before[0], rows[:, top:bottom]
    overlaps = _overlaps(window, width, out_width, apart)
    if overlaps[-1][2] == slice(0, out_width):  # without padding, all columns in one call
        (part, channel, row, column, example), step = x.strides, window.stride[1]
        strides = (part, row, channel, column, step * column, step * apart * column, example)
        np.copyto(into, strided(x, into.shape, strides, own.start * part + first * row))
        return
    inside = x[own, :, first : first + bottom - top].transpose(0, 2, 1, 3, 4)
    for j, g, to, source in overlaps:
        place = into[:, :, :, j, g]
        if to.start:
            place[..., : to.start, :] = 0.0
        if to.stop < out_width:
            place[..., to.stop :, :] = 0.0
        place[..., to, :] = inside[:, :, :, source]
