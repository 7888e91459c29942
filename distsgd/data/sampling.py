"""Which examples make up which minibatch, and how a minibatch is cut into microbatches: pure functions of integers.

Every rank computes the same order, so nothing about it is ever sent, and training can start at any step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError
from distsgd.core.random import index_dtype, permutation, uniform

if TYPE_CHECKING:
    from distsgd.data.orders import Order

ORDER_BY_SORT = 1 << 24
"""From so many examples on, nothing is made that has an entry for each: an epoch's order is a `KeyedOrder`. Runs over
fewer examples have the order that they always had."""


def epoch_order(num_examples: int, seed: int, epoch: int) -> Array:
    """The order in which an epoch visits its examples: a permutation of range(num_examples).

    As int32 where that is enough, because every rank keeps it.
    """
    return permutation(num_examples, seed, "epoch order", epoch).astype(index_dtype(num_examples))


@lru_cache(maxsize=1024)
def microbatch_bounds(batch_length: int, microbatches: int, least: int = 1) -> tuple[int, ...]:
    """Microbatch k is the slice bounds[k] : bounds[k + 1] of the minibatch; microbatches may be empty, lengths differ
    by at most 1.

    With `least`, as few microbatches are filled as it takes for each to have so many examples, or one; they are spread
    evenly among the empty ones.

    >>> microbatch_bounds(10, 4)
    (0, 2, 5, 7, 10)
    >>> microbatch_bounds(21, 4, least=8)
    (0, 0, 10, 10, 21)
    """
    filled = filled_microbatches(batch_length, microbatches, least)
    return tuple(batch_length * (k * filled // microbatches) // filled for k in range(microbatches + 1))


def filled_microbatches(batch_length: int, microbatches: int, least: int = 1) -> int:
    """How many microbatches of a minibatch have examples where each of several needs at least so many."""
    return microbatches if least == 1 else max(1, min(microbatches, batch_length // least))


@dataclass
class Sampler:
    """Cuts epochs of `num_examples` into minibatches of `batch_size`; the last one of an epoch may be shorter.

    Parameters
    ----------
    num_examples, batch_size, seed
        By default every example comes exactly once in an epoch, in a new order each time.
    shuffle
        False keeps the order of the data.
    drop_last
        Whether the last minibatch is skipped where it is shorter.
    replacement
        Whether every minibatch is drawn independently; an epoch has ceil(num_examples / batch_size) minibatches then.
    order
        Another order of each epoch, None for these; `seed`, `shuffle` and `replacement` don't count then.
    """

    num_examples: int
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False
    replacement: bool = False
    order: Order | None = None
    _order: tuple[int, Array] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.steps_per_epoch == 0:
            raise ConfigurationError(
                f"with drop_last an epoch of {self.num_examples} examples has no minibatch of {self.batch_size}; "
                "set a smaller batch_size"
            )

    @cached_property
    def steps_per_epoch(self) -> int:
        """Minibatches an epoch."""
        if self.drop_last and not self.replacement:
            return self.num_examples // self.batch_size
        return -(-self.num_examples // self.batch_size)

    def minibatch(self, step: int) -> Array:
        """Indices of the examples of minibatch `step`, counted from 0 over all epochs. Read only: models see them."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.batch_size
        if self.order is not None:
            return _read_only(self.order.indices(epoch, start, min(start + self.batch_size, self.num_examples)))
        if self.replacement:
            draws = uniform((self.batch_size,), self.seed, "with replacement", step)
            return _read_only((draws * self.num_examples).astype(np.int64))
        if not self.shuffle:
            return _read_only(np.arange(start, min(start + self.batch_size, self.num_examples)))
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, _read_only(epoch_order(self.num_examples, self.seed, epoch)))
        return self._order[1][start : start + self.batch_size]


def _read_only(indices: Array) -> Array:
    indices.flags.writeable = False
    return indices
