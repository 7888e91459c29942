"""How often each example is drawn: exact counts, against fractions and loops."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distsgd.data.draws import BalancedCounts, weighted_counts

weights_of = st.lists(st.integers(0, 50), min_size=1, max_size=60).filter(any)


@given(weights=weights_of, seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_each_example_as_often_as_its_weight_says(weights: list[int], seed: int, epoch: int) -> None:
    found = weighted_counts(np.array(weights), seed, epoch)
    assert found.sum() == len(weights)
    for weight, count in zip(weights, found.tolist(), strict=True):
        share = Fraction(weight * len(weights), sum(weights))
        assert floor(share) <= count <= ceil(share)


def test_rounding_is_fair_over_epochs() -> None:
    weights = np.array([0.25, 1.0, 3.1, 0.0, 0.65])
    total = sum(weighted_counts(weights, 3, epoch) for epoch in range(2000))
    np.testing.assert_allclose(total / 2000, weights, atol=0.05)
    assert weighted_counts(np.ones(7, np.float32), 0, 0).tolist() == [1] * 7


@given(labels=st.lists(st.integers(0, 6), min_size=1, max_size=80), seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_each_class_and_each_of_its_examples_equally_often(labels: list[int], seed: int, epoch: int) -> None:
    found = BalancedCounts(np.array(labels), seed)(epoch)
    assert found.sum() == len(labels)
    present = sorted(set(labels))
    each = [int(found[np.array(labels) == one].sum()) for one in present]
    assert max(each) - min(each) <= 1
    for one in present:
        of_class = found[np.array(labels) == one]
        assert of_class.max() - of_class.min() <= 1


def test_others_come_once_more_in_other_epochs() -> None:
    counts = BalancedCounts(np.array([0, 1, 1, 1, 1, 2, 2]), 0)
    total = np.sum([counts(epoch) for epoch in range(600)], axis=0)
    np.testing.assert_allclose(total / 600, [7 / 3, *[7 / 12] * 4, *[7 / 6] * 2], rtol=0.1)
