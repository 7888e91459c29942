"""What is split off for validation: each example in one part, exact counts, each class its share."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distsgd.data.splits import split_off

counts = st.integers(1, 120)


@given(examples=counts, share=st.floats(0, 1), seed=st.integers(0, 9))
def test_split(examples: int, share: float, seed: int) -> None:
    count = round(share * examples)
    rest, chosen = split_off(examples, count, seed)
    assert len(chosen) == count
    assert sorted([*rest, *chosen]) == list(range(examples))
    assert (np.diff(rest) > 0).all()
    assert (np.diff(chosen) > 0).all()
    assert split_off(examples, count, seed)[1].tolist() == chosen.tolist()


@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=80), share=st.floats(0, 1), seed=st.integers(0, 9))
def test_each_class_has_its_share_of_a_split(labels: list[int], share: float, seed: int) -> None:
    y, count = np.array(labels), round(share * len(labels))
    rest, chosen = split_off(len(y), count, seed, y)
    assert len(chosen) == count
    assert sorted([*rest, *chosen]) == list(range(len(y)))
    sizes = {label: labels.count(label) for label in labels}
    shares = {label: count * size / len(labels) for label, size in sizes.items()}
    # A class that would give its last example leaves one more to the others.
    kept = sum(shares[label] > size - 1 for label, size in sizes.items())
    for label, exact in shares.items():
        assert exact - 1 < np.sum(y[chosen] == label) < exact + 1 + kept
    same = np.zeros(len(y), np.int64)
    assert split_off(len(y), count, seed, same)[1].tolist() == split_off(len(y), count, seed)[1].tolist()
