"""Sums that may be cut: where, how evenly, and that parts of several ranks join to the bits of the whole."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsgd.core.kernels.squares import LEAF, block_squares, nearest_cut, parts_of
from distsgd.core.random import normal

BLOCK = 16_384


@settings(max_examples=150)
@given(
    elements=st.integers(0, 5 * BLOCK),
    ranks=st.integers(1, 30),
    edges=st.lists(st.integers(0, 5 * BLOCK), max_size=6),
)
def test_cuts_are_in_order_and_near(elements: int, ranks: int, edges: list[int]) -> None:
    inside = sorted({edge for edge in edges if edge < elements})
    ideals = [elements * rank // ranks for rank in range(ranks + 1)]
    cuts = [nearest_cut(ideal, elements, BLOCK, inside) for ideal in ideals]
    assert (cuts[0], cuts[-1]) == (0, elements)
    assert cuts == sorted(cuts)
    assert all(abs(cut - ideal) <= LEAF // 2 for cut, ideal in zip(cuts, ideals, strict=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("length", [1, 100, LEAF, LEAF + 1, 6_992, 9_738, BLOCK - 1, BLOCK])
def test_sums_of_squares(length: int, dtype: type) -> None:
    values = normal((length,), 1, "values").astype(dtype)
    exact = math.fsum(float(value) ** 2 for value in values)
    assert block_squares(values, BLOCK).tolist() == [pytest.approx(exact, rel=1e-13)]


@settings(max_examples=100)
@given(length=st.integers(1, BLOCK), ranks=st.integers(1, 9), scale=st.integers(-3, 3))
def test_parts_join_to_the_bits_of_the_whole(length: int, ranks: int, scale: int) -> None:
    values = (normal((length,), length, "values") * 10.0**scale).astype(np.float32)
    cuts = [nearest_cut(length * rank // ranks, length, BLOCK) for rank in range(1, ranks)]
    parts, joins = parts_of(0, length, cuts)
    assert {cut for cut in cuts if 0 < cut < length} <= set(parts)
    sums = {start: block_squares(values[start:stop], BLOCK)[0] for start, stop in pairwise([*parts, length])}
    for left, right in joins:
        sums[left] += sums.pop(right)
    assert sums == {0: block_squares(values, BLOCK)[0]}
