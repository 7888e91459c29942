"""One order of addition for every number of ranks: trees, the parts of them that ranks compute, and their sums."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from distsgd.core.device import Array
from distsgd.data.sampling import microbatch_bounds
from distsgd.parallel.tree import (
    buffers_needed,
    maximal_subtrees,
    part,
    schedule,
    scratch_levels,
    split_nodes,
    tree_sum,
)

microbatch_counts = st.integers(1, 40)


def nodes_of(a: int, b: int) -> set[tuple[int, int]]:
    """All nodes of the tree below (a, b)."""
    middle = (a + b) // 2
    return {(a, b)} | (nodes_of(a, middle) | nodes_of(middle, b) if b - a > 1 else set())


def reference(microbatches: list[Array | None], a: int, b: int) -> Array | None:
    """The tree's sum, by its definition; None for empty microbatches."""
    if b - a == 1:
        return microbatches[a]
    middle = (a + b) // 2
    left, right = reference(microbatches, a, middle), reference(microbatches, middle, b)
    if left is None or right is None:
        return left if right is None else right
    return left + right


def random_microbatches(bounds: list[int], seed: int, size: int = 5) -> list[Array | None]:
    """Numbers of many magnitudes, so that another order shows, and zeros of both signs."""
    rng = np.random.default_rng(seed)
    microbatches: list[Array | None] = []
    for first, last in pairwise(bounds):
        values = (rng.standard_normal(size) * 10.0 ** rng.integers(-4, 5, size)).astype(np.float32)
        values[0] = -0.0
        microbatches.append(values if last > first else None)
    return microbatches


@given(total=st.integers(0, 200), parts=st.integers(1, 50))
def test_parts_tile(total: int, parts: int) -> None:
    spans = [part(total, parts, index) for index in range(parts)]
    assert spans[0][0] == 0
    assert spans[-1][1] == total
    assert all(left[1] == right[0] for left, right in pairwise(spans))


@given(st.data(), microbatch_counts)
def test_maximal_subtrees_tile(data: st.DataObject, microbatches: int) -> None:
    first = data.draw(st.integers(0, microbatches - 1))
    last = data.draw(st.integers(first + 1, microbatches))
    nodes = maximal_subtrees(first, last, microbatches)
    covered = [microbatch for a, b in nodes for microbatch in range(a, b)]
    assert covered == list(range(first, last))
    assert set(nodes) <= nodes_of(0, microbatches)
    assert len(nodes) <= max(1, 2 * (microbatches - 1).bit_length())
    for a, b in nodes:  # none of them is half of a node that would fit as a whole
        bigger = [node for node in nodes_of(0, microbatches) if node[0] <= a and b <= node[1] and node != (a, b)]
        assert not any(first <= node[0] and node[1] <= last for node in bigger)


@given(st.data(), microbatch_counts, st.integers(1, 9), st.integers(1, 3))
def test_splitting_keeps_the_microbatches_and_the_tree(
    data: st.DataObject, microbatches: int, limit: int, narrow: int
) -> None:
    first = data.draw(st.integers(0, microbatches - 1))
    last = data.draw(st.integers(first + 1, microbatches))
    before = maximal_subtrees(first, last, microbatches)
    nodes = split_nodes(before, limit, narrow)
    assert [microbatch for a, b in nodes for microbatch in range(a, b)] == list(range(first, last))
    assert set(nodes) <= nodes_of(0, microbatches)
    assert len(nodes) == max(len(before), min(limit, last - first)) or (
        narrow > 1 and len(nodes) < limit and all(b - a <= narrow for a, b in nodes)
    )
    assert all(b - a > narrow for a, b in before if (a, b) not in nodes)


def test_no_microbatches_no_nodes() -> None:
    assert maximal_subtrees(3, 3, 8) == []
    assert split_nodes([], 2) == []


@given(st.data(), microbatch_counts, st.integers(0, 90), st.integers(0, 99))
@settings(max_examples=200)
def test_sums_are_the_same_for_any_ranks_and_workers(
    data: st.DataObject, microbatches: int, length: int, seed: int
) -> None:
    length = max(length, 1)
    bounds = tuple(microbatch_bounds(length, microbatches))
    values = random_microbatches(list(bounds), seed)
    expected = reference(values, 0, microbatches)
    assert expected is not None
    ranks = data.draw(st.integers(1, microbatches))
    rows: dict[tuple[int, int], Array] = {}
    for rank in range(ranks):
        first, last = part(microbatches, ranks, rank)
        workers = data.draw(st.integers(1, last - first))
        for worker in range(workers):
            a, b = part(last - first, workers, worker)
            for node in maximal_subtrees(first + a, first + b, microbatches):
                rows[node] = computed_by_schedule(node, bounds, values)
    kept = {node: row.copy() for node, row in rows.items()}
    scratch = np.full((scratch_levels(microbatches), 5), np.nan, np.float32)
    total = tree_sum(rows, (0, microbatches), bounds, slice(0, 5), scratch)
    assert total is not None
    assert total.compute().tobytes() == expected.tobytes()
    assert all(rows[node].tobytes() == kept[node].tobytes() for node in rows), "rows are only read"
    for span in (slice(0, 2), slice(2, 5)):
        piece = tree_sum(rows, (0, microbatches), bounds, span, scratch)
        assert piece is not None
        assert piece.compute().tobytes() == expected[span].tobytes()


def computed_by_schedule(node: tuple[int, int], bounds: tuple[int, ...], values: list[Array | None]) -> Array:
    """Follows the schedule as a worker does; buffers start as NaN, which must not be read."""
    buffers = [np.full(5, np.nan, np.float32) for _ in range(buffers_needed(*node))]
    done = []
    for step in schedule(*node, bounds):
        done.append(step.microbatch)
        microbatch = values[step.microbatch]
        assert microbatch is not None, "an empty microbatch is never computed"
        buffers[step.target][:] = microbatch
        for into, other in step.additions:
            buffers[into] += buffers[other]
    assert done == [microbatch for microbatch in range(*node) if values[microbatch] is not None]
    return buffers[0]


@given(microbatches=microbatch_counts, length=st.integers(1, 60))
def test_schedule_stays_within_its_buffers(microbatches: int, length: int) -> None:
    for step in schedule(0, microbatches, tuple(microbatch_bounds(length, microbatches))):
        used = [step.target, *(index for pair in step.additions for index in pair)]
        assert max(used) < buffers_needed(0, microbatches)


def test_empty_microbatches_are_skipped_not_added() -> None:
    """-0.0 stays -0.0, which a sum with an empty microbatch's zeros would make 0.0."""
    bounds = (0, 0, 0, 1, 1)
    row = np.array([-0.0], np.float32)
    rows = {(2, 3): row, (0, 2): np.zeros(1, np.float32), (3, 4): np.zeros(1, np.float32)}
    total = tree_sum(rows, (0, 4), bounds, slice(0, 1), np.empty((3, 1), np.float32))
    assert total is not None
    assert np.signbit(total.compute()[0])
    assert tree_sum(rows, (0, 2), bounds, slice(0, 1), np.empty((3, 1), np.float32)) is None
