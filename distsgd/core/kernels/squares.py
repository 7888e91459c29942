"""Sums of squares, from which norms are made, on the CPU: of one rank, or of several that have parts of the elements.

A sum is that of its two halves, and each half that of its own. So ranks add up what they have, and one order of
additions joins that to the bits of a rank that has all. (Pairwise summation: Higham, "The accuracy of floating point
summation", SIAM J. Sci. Comput. 14, 1993.)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

import numpy as np

from distsgd.core.device import Array

LEAF = 4096
"""Elements that are added in one go: a longer part is the sum of its halves."""
_TOGETHER = 8
"""NumPy adds so many numbers at once, so the first half has a multiple of them."""


def middle(start: int, stop: int) -> int | None:
    """Where the elements [start, stop) are cut in two; None where they are added in one go.

    >>> middle(0, 9000), middle(4496, 9000), middle(0, 4096)
    (4496, 6744, None)
    """
    half = (stop - start) // 2
    return None if stop - start <= LEAF else start + half - half % _TOGETHER


def nearest_cut(ideal: int, elements: int, block: int, edges: Sequence[int] = ()) -> int:
    """The place nearest to element `ideal` that lies in the middle of nothing that is added in one go.

    Parameters
    ----------
    ideal : int
        From 0 to `elements`.
    elements : int
        Of the flat buffer.
    block : int
        The length of its blocks, each of which is a sum.
    edges : sequence of int
        Where other sums begin, in order.

    Returns
    -------
    int
        From 0 to `elements`, no less for a larger `ideal`.
    """
    first, following = ideal - ideal % block, bisect_right(edges, ideal)
    start = max([first, *edges[max(following - 1, 0) : following]])
    stop = min([first + block, elements, *edges[following : following + 1]])
    while (half := middle(start, stop)) is not None:
        start, stop = (start, half) if ideal < half else (half, stop)
    return start if ideal - start <= stop - ideal else stop


def parts_of(start: int, stop: int, cuts: Iterable[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """The fewest parts of the sum over [start, stop) that lie between cuts.

    Parameters
    ----------
    start, stop : int
        The elements of a sum.
    cuts : iterable of int
        Places that `nearest_cut` returned.

    Returns
    -------
    parts : list of int
        The first element of each, in order.
    joins : list of (int, int)
        Additions in order: the sum that begins at the second element goes to that which begins at the first.

    Examples
    --------
    >>> parts_of(0, 16384, [4096])
    ([0, 4096, 8192], [(0, 4096), (0, 8192)])
    """
    inside = [cut for cut in cuts if start < cut < stop]
    half = middle(start, stop)
    if not inside or half is None:
        return [start], []
    (left, first), (right, then) = parts_of(start, half, inside), parts_of(half, stop, inside)
    return left + right, [*first, *then, (start, half)]


def block_squares(values: Array, block: int) -> Array:
    """Σ v² of each block of a one-dimensional array, in float64, as sums of halves; the last block may be shorter."""
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
