"""How many microbatches each rank computes: a number of its own for each, by its speed. No bit depends on it."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heapreplace
from itertools import accumulate, pairwise

from distsgd.parallel.reduction import Partition


def shares_of(partition: Partition) -> tuple[int, ...]:
    """How many microbatches each rank computes.

    >>> shares_of(Partition(16, 3, 1))
    (5, 5, 6)
    """
    spans = map(partition.microbatches_of, range(partition.ranks))
    return tuple(last - first for first, last in spans)


def seconds_each(shares: Sequence[int], seconds: Sequence[float], bounds: Sequence[int]) -> list[float]:
    """Seconds that each rank takes for a microbatch that isn't empty.

    Parameters
    ----------
    shares
        How many microbatches each rank computes, at least one of them not empty.
    seconds
        What each rank takes for them.
    bounds
        Microbatch k is the examples bounds[k] : bounds[k + 1] of a minibatch.
    """
    return [time / count for time, count in zip(seconds, _filled(shares, bounds), strict=True)]


def slowest(shares: Sequence[int], each: Sequence[float], bounds: Sequence[int]) -> float:
    """Seconds of the slowest rank, where each takes so long for a microbatch that isn't empty.

    >>> slowest((11, 5), (1.0, 2.0), range(17))
    11.0
    """
    return max(time * count for time, count in zip(each, _filled(shares, bounds), strict=True))


def _filled(shares: Sequence[int], bounds: Sequence[int]) -> list[int]:
    """How many microbatches of each rank aren't empty."""
    before = list(accumulate((start < stop for start, stop in pairwise(bounds)), initial=0))
    return [before[last] - before[first] for first, last in pairwise(accumulate(shares, initial=0))]


def shares_by_speed(each: Sequence[float], bounds: Sequence[int]) -> tuple[int, ...]:
    """The shares with which the slowest rank is done first, where each takes so long for a microbatch that isn't empty.

    Each rank has one of these, and the next one always goes to the rank that would be done first with it.

    >>> shares_by_speed((1.0, 2.0), range(17))
    (11, 5)
    """
    filled = [microbatch for microbatch, (start, stop) in enumerate(pairwise(bounds)) if start < stop]
    counts = [1] * len(each)
    queue = [(2 * time, rank) for rank, time in enumerate(each)]
    heapify(queue)
    for _ in range(len(filled) - len(each)):
        rank = queue[0][1]
        counts[rank] += 1
        heapreplace(queue, ((counts[rank] + 1) * each[rank], rank))
    firsts = [0, *(filled[place] for place in accumulate(counts[:-1])), len(bounds) - 1]
    return tuple(last - first for first, last in pairwise(firsts))
