"""Who sends what to whom, for any microbatches, ranks, groups and elements: nothing is lost, nothing counts twice."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from distsgd.parallel.reduction import BLOCK, Partition
from distsgd.parallel.routes import Groups, Routes, routes

WIDTH = 4


@st.composite
def cases(draw: st.DrawFn) -> tuple[Partition, list[int], list[Routes]]:
    """A partition, each rank's group, and each rank's routes."""
    microbatches = draw(st.integers(1, 40))
    ranks = draw(st.integers(1, microbatches))
    firsts = [0, *(rank for rank in range(1, ranks) if draw(st.booleans()))]
    elements = draw(st.integers(0, 3 * BLOCK)) * draw(st.sampled_from([1, 20]))
    partition, groups = Partition(microbatches, ranks, elements), Groups(tuple(firsts), ranks)
    group_of = [group for group, (first, end) in enumerate(pairwise((*firsts, ranks))) for _ in range(first, end)]
    return partition, group_of, [routes(partition, groups, rank, WIDTH) for rank in range(ranks)]


@settings(max_examples=80)
@given(cases())
def test_slices_match_pairwise_in_bytes(case: tuple[Partition, list[int], list[Routes]]) -> None:
    _, group_of, found = case
    for sender, from_here in enumerate(found):
        for receiver, to_here in enumerate(found):
            assert from_here.sums_sent.counts[receiver] == to_here.sums_received.counts[sender]
            assert from_here.params_sent.counts[receiver] == to_here.params_received.counts[sender]
            if group_of[sender] == group_of[receiver]:
                assert from_here.sums_sent.counts[receiver] == from_here.params_sent.counts[receiver] == 0


@settings(max_examples=80)
@given(cases())
def test_each_owner_gets_each_microbatch_once(case: tuple[Partition, list[int], list[Routes]]) -> None:
    partition, group_of, found = case
    for rank, mine in enumerate(found):
        there = Counter(
            microbatch
            for other in range(partition.ranks)
            if group_of[other] == group_of[rank]
            for microbatch in range(*partition.microbatches_of(other))
        )
        count = len(range(partition.elements)[partition.elements_of(rank)])
        for sender, nodes in mine.arriving.items():
            assert rank in found[sender].owners
            assert nodes == found[sender].nodes
            assert mine.sums_received.counts[sender] == len(nodes) * count * WIDTH
            there.update(microbatch for node in nodes for microbatch in range(*node))
        assert there == Counter(range(partition.microbatches))
        assert {sender for sender, routed in enumerate(found) if rank in routed.owners} == set(mine.arriving)


@settings(max_examples=40)
@given(cases())
def test_all_parameters_arrive_everywhere(case: tuple[Partition, list[int], list[Routes]]) -> None:
    """Each group has one replica: what its ranks own and receive, all messages carried out."""
    partition, group_of, found = case
    updated = np.arange(partition.elements, dtype=np.int32)
    replicas = np.full((group_of[-1] + 1, partition.elements), -1, np.int32)
    writes = np.zeros(replicas.shape, np.int8)
    for rank, mine in enumerate(found):
        replica, written = replicas[group_of[rank]], writes[group_of[rank]]
        own = partition.elements_of(rank)
        replica[own] = updated[own]
        written[own] += 1
        others = replica[mine.params_first :].view(np.uint8)
        noted = np.repeat(written[mine.params_first :], WIDTH)
        for sender, theirs in enumerate(found):
            message = updated[partition.elements_of(sender)].view(np.uint8)[theirs.params_sent[rank]]
            others[mine.params_received[sender]] = message
            noted[mine.params_received[sender]] += 1
        written[mine.params_first :] = noted[::WIDTH]
    assert (writes == 1).all()
    assert (replicas == updated).all()


def test_one_rank_has_nothing_to_send() -> None:
    alone = routes(Partition(4, 1, 100), Groups((0,), 1), 0, WIDTH)
    assert (alone.owners, dict(alone.arriving)) == ((), {})
    assert alone.sums_sent.end == alone.sums_received.end == 0
