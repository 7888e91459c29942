"""Which examples are split off for validation: pure functions of a seed, the same on every rank."""

from __future__ import annotations

from heapq import heapreplace
from typing import Any

import numpy as np

from distsgd.core.device import Array
from distsgd.core.random import index_dtype, permutation


class BlockIndices:
    """The rows of some blocks of neighbours, in rising order, without an array of them all.

    Parameters
    ----------
    blocks
        The numbers of the blocks, in rising order.
    block
        Rows of a block; the last one that there is may have fewer.
    rows
        The number of rows of all blocks, these and others.

    Examples
    --------
    >>> rows = BlockIndices(np.array([0, 2]), 4, rows=10)
    >>> len(rows), rows[:].tolist(), rows[np.array([5, 0])].tolist()
    (6, [0, 1, 2, 3, 8, 9], [9, 0])
    """

    def __init__(self, blocks: Array, block: int, rows: int) -> None:
        self.blocks, self.block = blocks.astype(np.int64), block
        lacking = max(0, (int(self.blocks[-1]) + 1) * block - rows) if len(blocks) else 0
        self._length = len(blocks) * block - lacking

    def __len__(self) -> int:
        return self._length

    @property
    def dtype(self) -> np.dtype[np.int64]:
        """Of the row numbers."""
        return np.dtype(np.int64)

    def __getitem__(self, positions: Array | slice) -> Array:
        """The rows at these positions, which are counted from 0."""
        if isinstance(positions, slice):
            positions = np.arange(*positions.indices(self._length))
        elif len(positions) and not (positions.min() >= 0 and positions.max() < self._length):
            raise IndexError(f"expected positions from 0 to {self._length - 1}")
        found: Array = self.blocks[positions // self.block] * self.block + positions % self.block
        return found

    def __array__(self, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> Array:
        return self[:].astype(self.dtype if dtype is None else dtype)


def split_off(num_examples: int, count: int, seed: int, labels: Array | None = None) -> tuple[Array, Array]:
    """(rest, `count` random examples), both as sorted indices: a fixed function of the seed.

    With labels (num_examples,) each class has its share of the `count`, rounded: down first, and what is left goes to
    the largest remainders, of equal ones to the lower class. A class keeps an example among the rest as long as another
    can give one.
    """
    order = permutation(num_examples, seed, "validation split")
    is_chosen = np.zeros(num_examples, bool)
    is_chosen[order[:count] if labels is None else _by_shares(order, count, labels)] = True
    return _both(is_chosen)


def block_split(blocks: int, count: int, seed: int) -> tuple[Array, Array]:
    """(rest, `count` random blocks) of so many, both in rising order: a fixed function of the seed."""
    order = permutation(blocks, seed, "validation blocks")
    return np.sort(order[count:]), np.sort(order[:count])


def fold_rows(num_examples: int, part: int, parts: int, seed: int, labels: Array | None = None) -> tuple[Array, Array]:
    """(rest, the examples of part `part`, from 1 to `parts`), both as sorted indices: a fixed function of the seed.

    Each example is in one part. Their sizes differ by at most 1; with labels (num_examples,), so do the numbers of
    examples of each class.
    """
    order = permutation(num_examples, seed, "folds")
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
    is_chosen = np.zeros(num_examples, bool)
    is_chosen[order[part - 1 :: parts]] = True
    return _both(is_chosen)


def group_split(groups: Array, count: int, seed: int) -> tuple[Array, Array]:
    """(rest, examples of whole groups), both as sorted indices: groups in random order, as long as they have at most
    `count` examples together; at least one, and never all.

    groups   what group each example (n,) is of: numbers or texts
    """
    numbers, sizes = _groups(groups)
    order = permutation(len(sizes), seed, "validation groups")
    taken = int(np.searchsorted(np.cumsum(sizes[order]), count, side="right"))
    is_taken = np.zeros(len(sizes), bool)
    is_taken[order[: min(max(1, taken), len(sizes) - 1)]] = True
    return _both(is_taken[numbers])


def group_folds(groups: Array, part: int, parts: int, seed: int) -> tuple[Array, Array]:
    """(rest, the examples of part `part` of `parts`), of which each has whole groups: from the largest to the smallest
    group, in random order among equal ones, each comes into the part that has the fewest examples."""
    numbers, sizes = _groups(groups)
    order = permutation(len(sizes), seed, "folds")
    part_of = np.zeros(len(sizes), np.int64)
    filled = [(0, one) for one in range(parts)]
    for group in order[np.argsort(-sizes[order], kind="stable")].tolist():
        size, smallest = filled[0]
        part_of[group] = smallest
        heapreplace(filled, (size + int(sizes[group]), smallest))
    return _both((part_of == part - 1)[numbers])


def _groups(groups: Array) -> tuple[Array, Array]:
    """(the number of each example's group, how many examples each group has)."""
    _, numbers = np.unique(groups, return_inverse=True)
    return numbers, np.bincount(numbers)


def _both(is_chosen: Array) -> tuple[Array, Array]:
    dtype = index_dtype(len(is_chosen))
    return np.flatnonzero(~is_chosen).astype(dtype), np.flatnonzero(is_chosen).astype(dtype)


def _by_shares(order: Array, count: int, labels: Array) -> Array:
    """Each class's share of `count`, the first of it in this order."""
    sizes = np.bincount(labels)
    shares, remainders = np.divmod(count * sizes, len(order))
    most = np.argsort(-remainders, kind="stable")
    for limit in (sizes - 1, sizes):
        while (left := count - int(shares.sum())) and len(able := most[shares[most] < limit[most]]):
            shares[able[:left]] += 1
    narrow = labels.astype(np.min_scalar_type(len(sizes)))  # which sorts in one pass where it has 16 bits or fewer
    by_class = order[np.argsort(narrow[order], kind="stable")]
    starts, ends = np.cumsum(sizes) - sizes, np.cumsum(shares)
    found: Array = by_class[np.arange(count) + np.repeat(starts - (ends - shares), shares)]
    return found
