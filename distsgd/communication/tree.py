"""The fixed binary tree over lanes in which gradients are added, whatever the number of ranks.

A node is a span (first, last) of lanes; lanes [a, b) split at (a + b) // 2. Floating-point sums depend on their order,
and this order depends on the number of lanes alone. (Logical workers with fixed bits: EasyScale, SC'23.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias, TypeVar

import numpy as np

from distsgd.device import Array

Span: TypeAlias = tuple[int, int]
T = TypeVar("T")


def part(total: int, parts: int, index: int) -> Span:
    """(first, last) of the `index`-th of `parts` contiguous parts of range(total).

    >>> [part(8, 3, i) for i in range(3)]
    [(0, 2), (2, 5), (5, 8)]
    """
    return total * index // parts, total * (index + 1) // parts


def maximal_subtrees(first: int, last: int, lanes: int) -> list[Span]:
    """The fewest nodes of the tree over `lanes` lanes that together are lanes [first, last), in order.

    >>> maximal_subtrees(2, 5, 8)
    [(2, 4), (4, 5)]
    """

    def cover(a: int, b: int) -> list[Span]:
        if b <= first or last <= a:
            return []
        if first <= a and b <= last:
            return [(a, b)]
        middle = (a + b) // 2
        return cover(a, middle) + cover(middle, b)

    return cover(0, lanes)


@dataclass(frozen=True)
class LaneStep:
    """Compute `lane` into buffer `target`, then add each (into, from) pair of buffers in turn."""

    lane: int
    target: int
    additions: tuple[Span, ...]


@lru_cache(maxsize=1024)
def schedule(first: int, last: int, bounds: tuple[int, ...]) -> tuple[LaneStep, ...]:
    """How one core sums lanes [first, last), a node of the tree, into buffer 0, with one scratch buffer a level.

    Lane k is empty where bounds[k] == bounds[k + 1]: it is left out, never added as zeros, for -0.0 + 0.0 is +0.0.
    """

    def visit(a: int, b: int, target: int, free: int) -> list[LaneStep]:
        if bounds[a] == bounds[b]:
            return []
        if b - a == 1:
            return [LaneStep(a, target, ())]
        middle = (a + b) // 2
        left = visit(a, middle, target, free)
        if not left:
            return visit(middle, b, target, free)
        right = visit(middle, b, free, free + 1)
        if right:
            end = right[-1]
            right[-1] = LaneStep(end.lane, end.target, (*end.additions, (target, free)))
        return left + right

    return tuple(visit(first, last, 0, 1))


def buffers_needed(first: int, last: int) -> int:
    """Buffers that `schedule` uses for this node at most: itself and one a level."""
    return 1 + (last - first - 1).bit_length()


def tree_sum(
    rows: Mapping[Span, Array], node: Span, bounds: Sequence[int], span: slice, scratch: Array
) -> Array | None:
    """The sum of lanes `node` on the elements `span`, in the tree's order; None where all of its lanes are empty.

    `rows` holds the sums that exist already, by node; they are only read. `scratch` is (levels, n), with a level for
    each of `scratch_levels(lanes)` and at least the span's length; what is returned is a part of it, or of a row.
    """
    first, last = node
    if bounds[first] == bounds[last]:
        return None
    row = rows.get(node)
    if row is not None:
        return row[span]
    middle = (first + last) // 2
    # The left sum may stay in scratch[0] while the right one is made in the levels behind it.
    left = tree_sum(rows, (first, middle), bounds, span, scratch)
    right = tree_sum(rows, (middle, last), bounds, span, scratch if left is None else scratch[1:])
    if left is None or right is None:
        return right if left is None else left
    return np.add(left, right, out=scratch[0, : left.size])


def scratch_levels(lanes: int) -> int:
    """Levels of scratch that `tree_sum` needs for a tree over this many lanes."""
    return 1 + (lanes - 1).bit_length()
