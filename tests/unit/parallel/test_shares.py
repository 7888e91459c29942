"""How many microbatches each rank computes: the best shares by speed, and a reduction whose shares change."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsgd.core.device import Array
from distsgd.data.sampling import microbatch_bounds
from distsgd.parallel import Communicator
from distsgd.parallel.reduction import BLOCK, GradientReduction, Partition, Plan, update_chunks
from distsgd.parallel.shares import seconds_each, shares_by_speed, shares_of, slowest
from distsgd.parallel.tree import scratch_levels
from distsgd.run.build_trainer import make_reduction
from tests.threads import run_on_threads
from tests.unit.parallel.test_reduction import ELEMENTS, F32, MICROBATCHES, expected, fill_rows


def all_shares(microbatches: int, ranks: int) -> Iterator[tuple[int, ...]]:
    """Every way to give each rank at least one of them."""
    for cuts in combinations(range(1, microbatches), ranks - 1):
        yield tuple(b - a for a, b in pairwise((0, *cuts, microbatches)))


@given(
    each=st.lists(st.floats(0.1, 10), min_size=1, max_size=4),
    microbatches=st.integers(4, 9),
    length=st.integers(4, 90),
    least=st.sampled_from([1, 8]),
)
def test_no_other_shares_are_better(each: list[float], microbatches: int, length: int, least: int) -> None:
    """Of all with which each rank has examples, also where a minibatch leaves microbatches empty."""
    bounds = microbatch_bounds(length, microbatches, least)
    if sum(a < b for a, b in pairwise(bounds)) < len(each):
        return
    found = shares_by_speed(each, bounds)
    assert sum(found) == microbatches
    assert min(found) >= 1

    def takes(shares: tuple[int, ...]) -> float:
        places = np.cumsum([0, *shares])
        filled = [sum(bounds[k] < bounds[k + 1] for k in range(a, b)) for a, b in pairwise(places.tolist())]
        return max(time * count for time, count in zip(each, filled, strict=True)) if all(filled) else math.inf

    assert slowest(found, each, bounds) == takes(found) == min(map(takes, all_shares(microbatches, len(each))))


def test_seconds_of_a_microbatch() -> None:
    """21 examples in 8 microbatches of at least 8: two of them have some."""
    bounds = microbatch_bounds(21, 8, 8)
    assert seconds_each((5, 3), (0.5, 0.25), bounds) == [0.5, 0.25]
    assert seconds_each((6, 2), (3.0, 4.0), range(9)) == [0.5, 2.0]


@given(data=st.data(), ranks=st.integers(1, 6))
def test_a_partition_with_shares_tiles(data: st.DataObject, ranks: int) -> None:
    shares = tuple(data.draw(st.lists(st.integers(1, 9), min_size=ranks, max_size=ranks)))
    partition = Partition(sum(shares), ranks, 100, shares)
    assert shares_of(partition) == shares
    own = [microbatch for rank in range(ranks) for microbatch in range(*partition.microbatches_of(rank))]
    assert own == list(range(sum(shares)))
    assert [partition.elements_of(rank) for rank in range(ranks)] == [
        replace(partition, shares=()).elements_of(rank) for rank in range(ranks)
    ]


def sums_of(reduction: GradientReduction, rank: int, bounds: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """One step as a trainer makes it, without an optimizer: params, flags and records as a rank sees them."""
    fill_rows(reduction, bounds)
    reduction.flags[:] = rank + 1
    reduction.records[:] = np.arange(reduction.first_microbatch, reduction.last_microbatch)[:, np.newaxis] * [1.0, 0.1]
    flags, records = reduction.reduce_scatter(bounds)
    scratch = np.empty((scratch_levels(MICROBATCHES), BLOCK), F32)
    for block in update_chunks(reduction.partition.elements_of(rank), BLOCK):
        reduction.params[block] = reduction.total(bounds, block, scratch).compute()
    reduction.all_gather()
    return reduction.params.copy(), flags.copy(), records.copy()


CHANGES = {
    "a": [(8,)],
    "aa": [(1, 7), (7, 1), (5, 3)],
    "aaa": [(1, 1, 6), (2, 5, 1)],
    "ab": [(3, 5), (7, 1)],
    "aab": [(1, 1, 6), (5, 2, 1)],
    "abbb": [(5, 1, 1, 1), (1, 4, 1, 2)],
    "aaaabbbb": [(1,) * 8],
}


@pytest.mark.parametrize("kind", ["auto", "mpi"])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("length", [3, 100])
@pytest.mark.parametrize("hosts", CHANGES)
def test_shares_that_change_between_steps(hosts: str, length: int, workers: int, kind: str) -> None:
    """The sums, flags and records of each step are the same, and so is the state that each rank keeps."""
    bounds = tuple(microbatch_bounds(length, MICROBATCHES))
    total = expected(bounds)
    whole = [np.arange(ELEMENTS, dtype=np.float32), np.ones(ELEMENTS, np.float32)]

    def steps(communicator: Communicator) -> list[tuple[Array, Array, Array]]:
        plan = Plan(Partition(MICROBATCHES, communicator.size, ELEMENTS), workers, F32, 2, 2)
        reduction, _ = make_reduction(communicator, plan, kind)
        reduction.load_slots(whole if communicator.is_root else None)
        found = [sums_of(reduction, communicator.rank, bounds)]
        for shares in CHANGES[hosts]:
            reduction.take(replace(plan, partition=replace(plan.partition, shares=shares)))
            assert reduction.last_microbatch - reduction.first_microbatch == shares[communicator.rank]
            found.append(sums_of(reduction, communicator.rank, bounds))
        slots = reduction.gather_slots()
        assert slots is None or [slot.tobytes() for slot in slots] == [slot.tobytes() for slot in whole]
        return found

    for found in run_on_threads(len(hosts), steps, hosts=tuple(hosts)):
        for params, flags, records in found:
            assert params.tobytes() == total.tobytes()
            assert flags[:, 0].tolist() == [rank + 1 for rank in range(len(hosts))]
            assert records.tobytes() == (np.arange(MICROBATCHES)[:, np.newaxis] * [1.0, 0.1]).tobytes()
