"""Sums of squares on the CPU, from which norms are made."""

from __future__ import annotations

import numpy as np

from distsgd.core.device import Array
from distsgd.core.halves import LEAF, middle


def block_squares(values: Array, block: int) -> Array:
    """Σ v² of each block of a one-dimensional array, in float64, as `halves` adds it; the last block may be shorter."""
    sums = [_in_halves(np.square(values[at : at + block], dtype=np.float64)) for at in range(0, values.size, block)]
    return np.array(sums, np.float64)


def _in_halves(squares: Array) -> float:
    half = middle(0, squares.size)
    if half is None:
        return float(np.add.reduce(squares))
    if squares.size & (squares.size - 1):
        return _in_halves(squares[:half]) + _in_halves(squares[half:])
    sums: list[float] = np.add.reduce(squares.reshape(-1, LEAF), axis=1).tolist()  # a power of two: all in one call
    while len(sums) > 1:
        sums = [left + right for left, right in zip(sums[::2], sums[1::2], strict=True)]
    return sums[0]
