"""The fixed binary tree over microbatches in which gradients are added, whatever the number of ranks.

A node is a span (first, last) of microbatches; microbatches [a, b) split at (a + b) // 2. Floating-point sums depend on
their order, and this order depends on the number of microbatches alone. (Logical workers with fixed bits: EasyScale,
SC'23.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeAlias

import numpy as np

from distsgd.core.device import Array
from distsgd.core.kernels import kernels_for

Span: TypeAlias = tuple[int, int]


def part(total: int, parts: int, index: int) -> Span:
    """(first, last) of the `index`-th of `parts` contiguous spans of range(total).

    >>> [part(8, 3, i) for i in range(3)]
    [(0, 2), (2, 5), (5, 8)]
    """
    return total * index // parts, total * (index + 1) // parts


def maximal_subtrees(first: int, last: int, microbatches: int, groups: int = 1) -> list[Span]:
    """The fewest nodes of the tree over `microbatches` microbatches that together cover [first, last), in order.

    None of them is wider than one of the `groups` nodes, a power of two, at one depth of the tree.

    >>> maximal_subtrees(2, 5, 8)
    [(2, 4), (4, 5)]
    >>> maximal_subtrees(0, 8, 8, groups=4)
    [(0, 2), (2, 4), (4, 6), (6, 8)]
    """

    def cover(a: int, b: int, groups: int) -> list[Span]:
        if b <= first or last <= a:
            return []
        if groups < 2 and first <= a and b <= last:
            return [(a, b)]
        middle = (a + b) // 2
        return cover(a, middle, groups // 2) + cover(middle, b, groups // 2)

    return cover(0, microbatches, groups)


def split_nodes(nodes: Sequence[Span], limit: int, narrow: int = 1) -> list[Span]:
    """The same microbatches in up to `limit` nodes of the tree: the widest node is split first.

    Nodes of up to `narrow` microbatches stay as they are.

    >>> split_nodes([(0, 4)], 3), split_nodes([(0, 4)], 3, narrow=2)
    ([(0, 1), (1, 2), (2, 4)], [(0, 2), (2, 4)])
    """
    found = list(nodes)
    while len(found) < limit:
        index, (first, last) = max(enumerate(found), key=lambda item: item[1][1] - item[1][0], default=(0, (0, 0)))
        if last - first <= narrow:
            break
        middle = (first + last) // 2
        found[index : index + 1] = [(first, middle), (middle, last)]
    return found


@dataclass(frozen=True)
class TreeStep:
    """Compute `microbatch` into buffer `target`, then add each (into, from) pair of buffers in turn."""

    microbatch: int
    target: int
    additions: tuple[Span, ...]


@lru_cache(maxsize=1024)
def schedule(first: int, last: int, bounds: tuple[int, ...]) -> tuple[TreeStep, ...]:
    """How one core sums microbatches [first, last), a node of the tree, into buffer 0, with one scratch buffer a level.

    Microbatch k is empty where bounds[k] == bounds[k + 1]: it is skipped, never added as zeros, because -0.0 + 0.0 is
    +0.0.
    """

    def visit(a: int, b: int, target: int, free: int) -> list[TreeStep]:
        if bounds[a] == bounds[b]:
            return []
        if b - a == 1:
            return [TreeStep(a, target, ())]
        middle = (a + b) // 2
        left = visit(a, middle, target, free)
        if not left:
            return visit(middle, b, target, free)
        right = visit(middle, b, free, free + 1)
        if right:
            right[-1] = replace(right[-1], additions=(*right[-1].additions, (target, free)))
        return left + right

    return tuple(visit(first, last, 0, 1))


def buffers_needed(first: int, last: int) -> int:
    """The most buffers that `schedule` uses for this node: its own and one for each level."""
    return 1 + (last - first - 1).bit_length()


@dataclass(frozen=True, slots=True)
class TreeSum:
    """A planned sum in the tree's order, and the array that will hold it.

    Planned once and computed in every step: planning costs more than adding a chunk that fits the cache.

    result     the row, where there is only one, else a slice of the scratch memory
    rows       how many rows are added
    additions  (left, right, out) in order, in host memory
    at_once    (out, divisor), on another device: all additions and a division in one launch
    """

    result: Array
    rows: int
    additions: tuple[tuple[Array, Array, Array], ...] = ()
    at_once: Callable[[Array, float], None] | None = None

    def compute(self) -> Array:
        """Add the rows; return `result`."""
        if self.at_once is not None and self.rows > 1:
            self.at_once(self.result, 1.0)
        for left, right, out in self.additions:
            np.add(left, right, out=out)
        return self.result

    def divided(self, count: float, out: Array) -> Array:
        """Write the sum over `count` into `out`, and return it."""
        if self.at_once is None:
            return np.divide(self.compute(), count, out=out)
        self.at_once(out, count)
        return out


def tree_sum(
    rows: Mapping[Span, Array], node: Span, bounds: Sequence[int], span: slice, scratch: Sequence[Array] | Array
) -> TreeSum | None:
    """The sum of the node's microbatches on the elements `span`, in the tree's order; None where all are empty.

    `rows` holds the sums that exist already, by node; they are only read. `scratch` is an array for each of
    `scratch_levels(microbatches)`, of at least the span's length. The result is the beginning of scratch[0], or a slice
    of a row where there is nothing to add.
    """
    leaves: list[Array] = []
    sums: list[int] = []  # how many additions follow each leaf, each of the last two sums on the stack

    def visit(first: int, last: int) -> bool:
        if bounds[first] == bounds[last]:
            return False
        row = rows.get((first, last))
        if row is not None:
            leaves.append(row[span])
            sums.append(0)
            return True
        middle = (first + last) // 2
        left, right = visit(first, middle), visit(middle, last)
        if left and right:
            sums[-1] += 1
        return left or right

    if not visit(*node):
        return None
    sum_of_rows = kernels_for(leaves[0]).sum_of_rows
    if sum_of_rows is not None:
        result = leaves[0] if len(leaves) == 1 else scratch[0][: leaves[0].size]
        return TreeSum(result, len(leaves), at_once=sum_of_rows(leaves, sums))
    additions: list[tuple[Array, Array, Array]] = []
    stack: list[Array] = []
    for leaf, count in zip(leaves, sums, strict=True):
        stack.append(leaf)
        for _ in range(count):
            right, left = stack.pop(), stack.pop()
            stack.append(scratch[len(stack)][: left.size])  # lower levels hold the sums below it
            additions.append((left, right, stack[-1]))
    return TreeSum(stack[0], len(leaves), tuple(additions))


def scratch_levels(microbatches: int, one_pass: bool = False) -> int:
    """Levels of scratch that `tree_sum` needs for a tree over this many microbatches."""
    return 1 if one_pass else 1 + (microbatches - 1).bit_length()
