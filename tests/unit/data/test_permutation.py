"""The keyed permutation: a bijection of any length, against one that is computed with Python's integers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsgd.core.random import random_words
from distsgd.data.permutation import KeyedPermutation

MASK = (1 << 64) - 1


def entry(position: int, count: int, seed: int, purpose: str, *indices: int) -> int:
    """One entry, as the documentation of large sets defines it, in integers without a limit."""
    bits = max(2, (count - 1).bit_length())
    left_bits, right_bits = bits // 2, bits - bits // 2
    keys = [int(word) for word in random_words(8, seed, purpose, *indices)]

    def mixed(number: int, key: int, width: int) -> int:
        product = (number ^ key) * 0xBF58476D1CE4E5B9 & MASK
        return ((product ^ product >> 32) * 0x94D049BB133111EB & MASK) >> (64 - width)

    while True:
        left, right = position >> right_bits, position & ((1 << right_bits) - 1)
        for turn, key in enumerate(keys):
            if turn % 2:
                right ^= mixed(left, key, right_bits)
            else:
                left ^= mixed(right, key, left_bits)
        position = left << right_bits | right
        if position < count:
            return position


def test_every_number_comes_once_for_each_length_up_to_5000() -> None:
    positions = np.arange(5000)
    for count in (*range(1, 300), *range(300, 5000, 7), 4095, 4096, 4097, 5000):
        found = KeyedPermutation(count, count, "a test", 3)(positions[:count])
        assert np.array_equal(np.sort(found), positions[:count]), count


@pytest.mark.long
def test_every_number_comes_once_for_all_lengths() -> None:
    positions = np.arange(5000)
    for count in range(1, 5001):
        found = KeyedPermutation(count, 7, "another test")(positions[:count])
        assert np.array_equal(np.sort(found), positions[:count]), count


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 1 << 62), seed=st.integers(0, MASK >> 1), epoch=st.integers(0, 1 << 40), data=st.data())
def test_entries_are_those_of_the_definition(count: int, seed: int, epoch: int, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=20))
    found = KeyedPermutation(count, seed, "a test", epoch)(np.array(positions))
    assert found.tolist() == [entry(position, count, seed, "a test", epoch) for position in positions]


def test_entries_stay_what_they_are() -> None:
    """A run of a later version continues where one of an earlier version stopped."""
    found = KeyedPermutation(10**9, 0, "epoch order, keyed", 0)(np.array([0, 1, 2, 999_999_999]))
    assert found.tolist() == [169295212, 613913604, 736953427, 37725921]
    assert found.dtype == np.int64
    assert KeyedPermutation(10**9, 0, "epoch order, keyed", 1)(np.arange(4)).tolist() != found[:4].tolist()


def test_entries_do_not_depend_on_what_is_asked_beside_them() -> None:
    order = KeyedPermutation(1_000_003, 5, "a test")
    whole = order(np.arange(50_000))
    cuts = [0, 1, 8191, 8192, 8193, 30_000, 50_000]
    parts = [order(np.arange(low, high)) for low, high in pairwise(cuts)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(order(np.arange(50_000)[::-3]), whole[::-3])


@pytest.mark.parametrize("count", [1 << 24, (1 << 24) + 12_345])
def test_neighbours_are_independent(count: int) -> None:
    """Pearson's chi-square of pairs of neighbouring entries in 64 × 64 equal parts, of their differences, and of where
    each part of the positions goes: 4,095 degrees of freedom, of which 6 standard deviations are 543."""
    found = KeyedPermutation(count, 1, "a test")(np.arange(1 << 20))
    part = found * 64 // count
    numbers = [
        part[:-1] * 64 + part[1:],
        np.diff(found) % count * 4096 // count,
        np.arange(1 << 20) // (1 << 14) * 64 + part,
        (found[::2] ^ found[1::2]) % 4096,
    ]
    for one in numbers:
        seen = np.bincount(one, minlength=4096)
        expected = len(one) / 4096
        assert abs(((seen - expected) ** 2 / expected).sum() - 4095) < 543
