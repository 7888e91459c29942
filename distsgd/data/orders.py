"""The order in which an epoch visits its examples, where it isn't the one that `sampling` makes by sorting."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError
from distsgd.core.random import index_dtype, permutation
from distsgd.data.permutation import KeyedPermutation

MOST_BLOCKS = 1 << 24
"""Blocks are put in order by sorting."""
_WINDOW_BY_SORT = 1 << 20
"""From so many rows of a window on, their order is a keyed permutation: rows that are so many are narrow, and an order
made by sorting would take more memory than they do."""
_CHUNK = 1 << 16


class Order(ABC):
    """Which examples an epoch visits, and in which order: a pure function, so that every rank computes the same."""

    @abstractmethod
    def indices(self, epoch: int, start: int, stop: int) -> Array:
        """What the epoch visits from place `start` to before place `stop`.

        Parameters
        ----------
        epoch, start, stop : int
            Counted from 0; epochs and places may be asked for in any order.

        Returns
        -------
        array
            Positions (stop - start,) in the training set, integers.
        """


class KeyedOrder(Order):
    """Each example once, in a new order each epoch, without an array of them all.

    Parameters
    ----------
    count
        The number of examples.
    seed
        The run's seed.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._entries = count, _Entries(seed, "epoch order, keyed")

    def indices(self, epoch: int, start: int, stop: int) -> Array:
        """See `Order.indices`."""
        return self._entries.between(start, stop, self._count, epoch)


class BlockOrder(Order):
    """Each example once: blocks of neighbours in a new order each epoch, and the examples of a few of them, a window,
    in a new order among themselves. So an epoch's examples can be read window by window.

    Parameters
    ----------
    count
        The number of examples.
    block
        Examples of a block; the last block may have fewer.
    blocks_per_window
        How many blocks make a window; an epoch's last window may have fewer.
    seed
        The run's seed.
    shuffle
        False keeps the order of the data.

    Attributes
    ----------
    windows
        The number of windows of an epoch.

    Examples
    --------
    >>> order = BlockOrder(10, 2, 2, seed=0)
    >>> order.windows, sorted(order.indices(0, 0, 10).tolist())
    (3, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """

    def __init__(self, count: int, block: int, blocks_per_window: int, seed: int, shuffle: bool = True) -> None:
        self._count, self._block, self._per_window, self._seed, self._shuffle = (
            count, block, blocks_per_window, seed, shuffle
        )  # fmt: skip
        self._blocks = -(-count // block)
        if self._blocks > MOST_BLOCKS:
            raise ConfigurationError(
                f"order_block {block:,}: makes {self._blocks:,} blocks of {count:,} examples, at most {MOST_BLOCKS:,} "
                "can be put in order; give a larger one"
            )
        self.windows = -(-self._blocks // blocks_per_window)
        self._order = lru_cache(maxsize=2)(self._order_of_blocks)
        self._sorted_blocks = lru_cache(maxsize=4)(self._blocks_of_window)
        self._rows = lru_cache(maxsize=2)(self._order_of_rows)
        self._entries = _Entries(seed, "order in a window")

    def window_blocks(self, epoch: int, window: int) -> Array:
        """The blocks of a window, in rising order: numbers below the number of blocks, int64. Read only."""
        return self._sorted_blocks(epoch, window)

    def start(self, epoch: int, window: int) -> int:
        """The first place of a window in its epoch; of the number of windows, the number of examples."""
        place = window * self._per_window
        if place >= self._blocks:
            return self._count
        lacking = self._blocks * self._block - self._count
        return place * self._block - (lacking if self._order(epoch)[1] < place else 0)

    def find(self, epoch: int, place: int) -> int:
        """The window in which a place of the epoch lies."""
        window = place // (self._per_window * self._block)
        later = window + 1 < self.windows and self.start(epoch, window + 1) <= place
        return window + 1 if later else window

    def window_order(self, epoch: int, window: int, start: int = 0, stop: int | None = None) -> Array:
        """The positions that a window visits from its place `start` to before its place `stop`, int64."""
        rows = self.start(epoch, window + 1) - self.start(epoch, window)
        stop = rows if stop is None else stop
        if not self._shuffle:
            chosen = np.arange(start, stop)
        elif rows < _WINDOW_BY_SORT:
            chosen = self._rows(epoch, window, rows)[start:stop]
        else:
            chosen = self._entries.between(start, stop, rows, epoch, window)
        blocks, within = np.divmod(chosen, self._block)
        found: Array = self.window_blocks(epoch, window)[blocks] * self._block + within
        return found

    def indices(self, epoch: int, start: int, stop: int) -> Array:
        """See `Order.indices`."""
        found = [np.empty(0, np.int64)]
        while start < stop:
            window = self.find(epoch, start)
            first, end = self.start(epoch, window), min(stop, self.start(epoch, window + 1))
            found.append(self.window_order(epoch, window, start - first, end - first))
            start = end
        return np.concatenate(found)

    def _order_of_blocks(self, epoch: int) -> tuple[Array, int]:
        """The blocks in the epoch's order, and the place of the last one, which may be short."""
        dtype = index_dtype(self._blocks)
        if not self._shuffle:
            return np.arange(self._blocks, dtype=dtype), self._blocks - 1
        blocks = permutation(self._blocks, self._seed, "order of blocks", epoch).astype(dtype)
        return blocks, int(np.argmax(blocks))

    def _order_of_rows(self, epoch: int, window: int, rows: int) -> Array:
        return permutation(rows, self._seed, "order in a window", epoch, window).astype(index_dtype(rows))

    def _blocks_of_window(self, epoch: int, window: int) -> Array:
        blocks = self._order(epoch)[0][window * self._per_window : (window + 1) * self._per_window].astype(np.int64)
        blocks.sort()
        blocks.flags.writeable = False
        return blocks


class CountedOrder(Order):
    """Each example so many times, in a new order each epoch.

    Parameters
    ----------
    count
        The number of examples, and of what an epoch visits.
    counts
        How often each example (count,) comes in an epoch; they sum to `count`.
    seed
        The run's seed.
    """

    def __init__(self, count: int, counts: Callable[[int], Array], seed: int) -> None:
        self._count, self._counts, self._seed = count, counts, seed
        self._order = lru_cache(maxsize=1)(self._order_of)

    def indices(self, epoch: int, start: int, stop: int) -> Array:
        """See `Order.indices`."""
        found: Array = self._order(epoch)[start:stop].copy()
        return found

    def _order_of(self, epoch: int) -> Array:
        dtype = index_dtype(self._count)
        drawn = np.repeat(np.arange(self._count, dtype=dtype), self._counts(epoch))
        found: Array = drawn[permutation(self._count, self._seed, "order of draws", epoch)]
        return found


class _Entries:
    """Entries of keyed permutations, made by the chunk: a few at a time take the more time each, the fewer they are."""

    def __init__(self, seed: int, purpose: str) -> None:
        self._seed, self._purpose = seed, purpose
        self._chunk = lru_cache(maxsize=1)(self._entries)

    def between(self, start: int, stop: int, count: int, *indices: int) -> Array:
        """Entries [start, stop) of the permutation of range(count) that the indices name."""
        found = np.empty(stop - start, np.int64)
        for number in range(start // _CHUNK, -(-stop // _CHUNK)):
            first = number * _CHUNK
            low, high = max(start, first), min(stop, first + _CHUNK)
            found[low - start : high - start] = self._chunk(number, count, *indices)[low - first : high - first]
        return found

    def _entries(self, number: int, count: int, *indices: int) -> Array:
        positions = np.arange(number * _CHUNK, min(count, (number + 1) * _CHUNK))
        return KeyedPermutation(count, self._seed, self._purpose, *indices)(positions)
