"""Products of a convolution's rows, cut into the sizes that are fast in BLAS; functions of the shapes alone.

Arrays have two axes in front of a matrix's: microbatches, and rows of their images.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from distsgd.core.device import Array
from distsgd.core.kernels.products import has_small_kernels

SMALL_PRODUCT = 1_000_000
"""Multiply-adds up to which OpenBLAS multiplies matrices where they lie, without copying them first."""
_LEAST_PIECE = 32
SMALL_PRODUCT_ALONG = 1_200
"""Elements of a product up to which it does so where both operands lie along the axis that is summed."""
_LEAST_GROUP, _LEAST_LENGTH = 24, 256


def multiply_pieces(matrix: Array, columns: Array, out: Array) -> None:
    """out[p, r] := matrix @ columns[p, r], over slices of the columns' width."""
    parts, rows, inner, width = columns.shape
    piece = _piece(len(matrix) * inner, width)
    if piece == width:
        np.matmul(matrix, columns, out=out)
        return
    even = width // piece * piece
    split = (parts, rows, -1, even // piece, piece)
    np.matmul(
        matrix,
        columns[..., :even].reshape(split).transpose(0, 1, 3, 2, 4),
        out=out[..., :even].reshape(split).transpose(0, 1, 3, 2, 4),
    )
    if even < width:
        np.matmul(matrix, columns[..., even:], out=out[..., even:])


def products_along(columns: Array, rows: Array) -> Array:
    """columns[p, r] @ rows[p, r].T, with the axis that is summed last in both; rows may have several axes there, or
    one r."""
    (parts, count, length, width), (several, filters) = columns.shape, rows.shape[1:3]
    rows = rows.reshape(parts, several, filters, width)
    cut = small_dots(length, filters, width, columns.dtype)
    if cut is None:
        whole: Array = np.matmul(columns, rows.transpose(0, 1, 3, 2))
        return whole
    (group, piece), groups, pieces = cut, length // cut[0], width // cut[1]
    products = np.matmul(
        columns.reshape(parts, count, groups, group, pieces, piece).transpose(0, 1, 2, 4, 3, 5),
        rows.reshape(parts, several, 1, filters, pieces, piece).transpose(0, 1, 2, 4, 5, 3),
    )
    sums: Array = np.add.reduce(products, axis=3)
    return sums.reshape(parts, count, length, filters)


@lru_cache(maxsize=256)
def small_dots(length: int, filters: int, width: int, dtype: np.dtype[Any]) -> tuple[int, int] | None:
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
