"""How many microbatches each rank computes: a number of its own for each, by its speed. No bit depends on it."""

from __future__ import annotations

from bisect import bisect_left
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


def shares_by_speed(
    shares: Sequence[int], seconds: Sequence[float], bounds: Sequence[int]
) -> tuple[tuple[int, ...], float]:
    """(the shares with which the slowest rank is done first, its seconds then).

    Each rank has one microbatch, and the next one always goes to the rank that would be done first with it. No other
    shares are better where a rank takes the same time for each microbatch that isn't empty.

    Parameters
    ----------
    shares
        How many microbatches each rank computes now, at least one of them not empty.
    seconds
        What each rank takes for them.
    bounds
        Microbatch k is the examples bounds[k] : bounds[k + 1] of a minibatch.

    Examples
    --------
    >>> shares_by_speed((8, 8), (1.0, 2.0), range(17))
    ((11, 5), 1.375)
    """
    filled = [microbatch for microbatch, (start, stop) in enumerate(pairwise(bounds)) if start < stop]
    places = [bisect_left(filled, end) for end in accumulate(shares, initial=0)]
    each = [spent / (last - first) for spent, (first, last) in zip(seconds, pairwise(places), strict=True)]
    counts = [1] * len(each)
    queue = [(2 * time, rank) for rank, time in enumerate(each)]
    heapify(queue)
    for _ in range(len(filled) - len(each)):
        rank = queue[0][1]
        counts[rank] += 1
        heapreplace(queue, ((counts[rank] + 1) * each[rank], rank))
    firsts = [0, *(filled[place] for place in accumulate(counts[:-1])), len(bounds) - 1]
    longest = max(count * time for count, time in zip(counts, each, strict=True))
    return tuple(last - first for first, last in pairwise(firsts)), longest
