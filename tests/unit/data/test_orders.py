"""Orders of an epoch: each example as often as it is to come, and any step alone is that of a walk through all."""

from __future__ import annotations

import tracemalloc
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import distsgd
from distsgd.core.random import permutation
from distsgd.data.orders import MOST_BLOCKS, BlockOrder, CountedOrder, KeyedOrder, Order
from distsgd.data.sampling import Sampler
from distsgd.data.splits import BlockIndices

counts = st.integers(1, 200)


def by_definition(count: int, block: int, per_window: int, seed: int, epoch: int) -> list[list[int]]:
    """What each window visits, by lists of whole blocks."""
    blocks = [list(range(first, min(first + block, count))) for first in range(0, count, block)]
    chosen = [blocks[k] for k in permutation(len(blocks), seed, "order of blocks", epoch)]
    windows = []
    for window, first in enumerate(range(0, len(blocks), per_window)):
        rows = sorted(chain(*chosen[first : first + per_window]))
        windows.append([rows[i] for i in permutation(len(rows), seed, "order in a window", epoch, window)])
    return windows


@given(count=counts, block=st.integers(1, 40), per_window=st.integers(1, 9), epoch=st.integers(0, 5))
def test_blocks_in_windows(count: int, block: int, per_window: int, epoch: int) -> None:
    order = BlockOrder(count, block, per_window, 3)
    windows = by_definition(count, block, per_window, 3, epoch)
    walk = list(chain(*windows))
    assert sorted(walk) == list(range(count))
    assert order.indices(epoch, 0, count).tolist() == walk
    assert order.windows == len(windows)
    place = 0
    for window, rows in enumerate(windows):
        assert order.start(epoch, window) == place
        assert {order.find(epoch, place + i) for i in range(len(rows))} == {window}
        assert order.window_order(epoch, window).tolist() == rows
        assert order.window_blocks(epoch, window).tolist() == sorted({row // block for row in rows})
        place += len(rows)
    assert order.start(epoch, order.windows) == count


@given(count=counts, block=st.integers(1, 40), per_window=st.integers(1, 9))
def test_blocks_without_shuffling(count: int, block: int, per_window: int) -> None:
    order = BlockOrder(count, block, per_window, 0, shuffle=False)
    assert order.indices(2, 0, count).tolist() == list(range(count))
    assert order.window_blocks(0, 0).tolist() == list(range(min(per_window, -(-count // block))))


def orders(count: int) -> list[Order]:
    twice = np.zeros(count, np.int64)
    twice[: count // 2] = 2
    twice[-1] += count % 2
    return [KeyedOrder(count, 1), BlockOrder(count, 16, 3, 1), CountedOrder(count, lambda _: twice, 1)]


@settings(max_examples=20)
@given(count=st.integers(2, 300), batch=st.integers(1, 70), steps=st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_a_step_alone_is_that_of_the_walk(count: int, batch: int, steps: list[int]) -> None:
    for order, again in zip(orders(count), orders(count), strict=True):
        walk, alone = (Sampler(count, batch, order=one) for one in (order, again))
        walked = [walk.minibatch(step).tolist() for step in range(41)]
        assert [alone.minibatch(step).tolist() for step in steps] == [walked[step] for step in steps]


def test_orders_stay_what_they_are() -> None:
    """A run of a later version continues one of an earlier version."""
    found = [order.indices(1, 2, 8).tolist() for order in orders(1000)]
    assert found == [
        [199, 625, 505, 810, 895, 837],
        [121, 122, 747, 739, 310, 314],
        [322, 409, 1, 362, 492, 430],
    ]


def test_each_example_as_often_as_it_counts() -> None:
    count = np.array([3, 0, 1, 1, 0])
    order = CountedOrder(5, lambda epoch: count if epoch else count[::-1], 0)
    assert sorted(order.indices(1, 0, 5).tolist()) == [0, 0, 0, 2, 3]
    assert sorted(order.indices(0, 0, 5).tolist()) == [1, 2, 4, 4, 4]
    assert len({tuple(order.indices(epoch, 0, 5)) for epoch in range(1, 9)}) > 1


def test_an_order_of_1e9_examples_takes_little_memory() -> None:
    count = 10**9
    kept: list[Order] = [KeyedOrder(count, 0), BlockOrder(count, 4096, 2000, 0)]
    for order, most in zip(kept, (4e6, 30e6), strict=True):  # the blocks, too, are put in order
        tracemalloc.start()
        found = np.concatenate([order.indices(3, place, place + 256) for place in (0, 5 * 10**8, count - 256)])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(np.unique(found)) == len(found) == 768
        assert (found >= 0).all()
        assert (found < count).all()
        assert peak < most


def test_wide_windows_of_narrow_rows() -> None:
    """Their orders aren't made by sorting: each row comes once, and a step alone is that of the walk."""
    order = BlockOrder(1_500_000, 4096, 300, 0)
    walk = order.window_order(0, 0)
    assert np.array_equal(np.sort(walk // 4096), np.repeat(order.window_blocks(0, 0), 4096)[: len(walk)])
    assert len(np.unique(walk)) == len(walk) > 1 << 20
    assert np.array_equal(BlockOrder(1_500_000, 4096, 300, 0).indices(0, 700_000, 700_100), walk[700_000:700_100])


def test_too_many_blocks_are_refused() -> None:
    with pytest.raises(distsgd.ConfigurationError, match=r"order_block 2: .*give a larger one"):
        BlockOrder(2 * MOST_BLOCKS + 1, 2, 10, 0)


@given(rows=st.integers(1, 100), block=st.integers(1, 20), chosen=st.sets(st.integers(0, 99), min_size=1))
def test_rows_of_blocks(rows: int, block: int, chosen: set[int]) -> None:
    blocks = sorted(one for one in chosen if one * block < rows) or [0]
    expected = [row for row in range(rows) if row // block in blocks]
    found = BlockIndices(np.array(blocks), block, rows)
    assert len(found) == len(expected)
    assert found[:].tolist() == expected
    assert found[1:-1:3].tolist() == expected[1:-1:3]
    assert np.asarray(found).tolist() == expected
    assert found[np.arange(len(expected))[::-1]].tolist() == expected[::-1]
    with pytest.raises(IndexError):
        found[np.array([len(expected)])]
