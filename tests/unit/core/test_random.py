"""Random numbers: a pure function of named integers, with values that may never change, and the right distribution."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsgd.core import random

integers = st.integers(0, 2**63 - 1)


def philox4x64(counter: list[int], key: list[int]) -> list[int]:
    """Salmon et al.'s Philox4x64-10 in whole numbers, from the paper."""
    mask = 2**64 - 1
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(b >> 64) ^ c[1] ^ k[0], b & mask, (a >> 64) ^ c[3] ^ k[1], a & mask]
        k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
    return c


def words_of(count: int, seed: int, purpose: str, *indices: int) -> list[int]:
    """What random_words must return, by its documentation; NumPy counts up before it draws."""
    word = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
    upper = [*indices, 0, 0, 0][:3]
    blocks = [philox4x64([block, *upper], [seed, word]) for block in range(1, count // 4 + 2)]
    return [word for block in blocks for word in block][:count]


@pytest.mark.parametrize("indices", [(), (3,), (3, 17, 2)])
def test_words_are_philox_itself(indices: tuple[int, ...]) -> None:
    assert random.random_words(9, 42, "dropout1", *indices).tolist() == words_of(9, 42, "dropout1", *indices)


def test_permutation_is_the_order_of_the_words() -> None:
    """Were this to change, every run would."""
    words = words_of(50, 0, "epoch order", 7)
    assert random.permutation(50, 0, "epoch order", 7).tolist() == sorted(range(50), key=words.__getitem__)


@given(seed=integers, indices=st.lists(integers, max_size=3), count=st.integers(0, 40))
def test_pure_and_a_prefix_of_more(seed: int, indices: list[int], count: int) -> None:
    words = random.random_words(count, seed, "some purpose", *indices)
    assert words.dtype == np.uint64
    assert words.tolist() == random.random_words(count + 5, seed, "some purpose", *indices).tolist()[:count]


@given(st.lists(st.tuples(integers, st.sampled_from("abc"), integers, integers), min_size=2, max_size=2, unique=True))
def test_other_names_give_other_numbers(names: list[tuple[int, str, int, int]]) -> None:
    first, second = (random.random_words(4, seed, purpose, i, j).tolist() for seed, purpose, i, j in names)
    assert not set(first) & set(second)


def test_at_most_three_indices() -> None:
    with pytest.raises(ValueError, match="at most 3"):
        random.random_words(1, 0, "x", 1, 2, 3, 4)


@given(seed=integers, count=st.integers(1, 300))
def test_permutations(seed: int, count: int) -> None:
    assert sorted(random.permutation(count, seed, "p", 1)) == list(range(count))


def test_uniform() -> None:
    u = random.uniform((200, 300), 5, "u")
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 4 / math.sqrt(12 * u.size)
    counts = np.bincount((u.ravel() * 20).astype(int), minlength=20)
    assert np.abs(counts - u.size / 20).max() < 5 * math.sqrt(u.size / 20)


@pytest.mark.parametrize("count", [1, 2, 7, 60_001])
def test_normal(count: int) -> None:
    z = random.normal((count,), 5, "z")
    assert z.shape == (count,)
    assert np.isfinite(z).all()
    if count > 100:
        assert abs(z.mean()) < 4 / math.sqrt(count)
        assert abs(np.square(z).mean() - 1) < 6 / math.sqrt(count)
        for limit in (-1.5, 0.0, 0.7, 2.0):
            share = 0.5 * (1 + math.erf(limit / math.sqrt(2)))
            assert abs((z < limit).mean() - share) < 4 * math.sqrt(share * (1 - share) / count)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_keep_mask(keep: float) -> None:
    shape = (101, 99)
    mask = random.keep_mask(shape, keep, random.random_words((shape[0] * shape[1] + 1) // 2, 7, "mask"))
    assert mask.shape == shape
    assert mask.dtype == bool
    assert abs(mask.mean() - keep) <= 4 * math.sqrt(keep * (1 - keep) / mask.size)
