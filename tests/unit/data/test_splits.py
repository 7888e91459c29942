"""What is split off for validation: each example in one part, exact counts, each class its share."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distsgd.core.random import permutation
from distsgd.data.splits import fold_rows, group_folds, group_split, split_off

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


@given(examples=st.integers(2, 120), parts=st.integers(2, 7), seed=st.integers(0, 9), classes=st.integers(1, 5))
def test_folds_deal_each_example_once_and_classes_evenly(examples: int, parts: int, seed: int, classes: int) -> None:
    labels = np.random.default_rng(seed).integers(0, classes, examples)
    for by in (None, labels):
        folds = [fold_rows(examples, part, parts, seed, by) for part in range(1, parts + 1)]
        for rest, chosen in folds:
            assert sorted([*rest, *chosen]) == list(range(examples))
            assert (np.diff(rest) > 0).all()
            assert (np.diff(chosen) > 0).all()
        assert sorted(np.concatenate([chosen for _, chosen in folds])) == list(range(examples))
        sizes = [len(chosen) for _, chosen in folds]
        assert max(sizes) - min(sizes) <= 1
        for label in range(0 if by is None else classes):
            of_class = [int((labels[chosen] == label).sum()) for _, chosen in folds]
            assert max(of_class) - min(of_class) <= 1


groups_of = st.lists(st.sampled_from(["ada", "bo", "cy", "di", "eve", "fay"]), min_size=2, max_size=60)


@given(names=groups_of, share=st.floats(0, 1), seed=st.integers(0, 9))
def test_a_split_of_groups_has_whole_ones(names: list[str], share: float, seed: int) -> None:
    groups, present = np.array(names), sorted(set(names))
    if len(present) < 2:
        return
    count = round(share * len(names))
    rest, chosen = group_split(groups, count, seed)
    assert sorted([*rest, *chosen]) == list(range(len(names)))
    order = [present[i] for i in permutation(len(present), seed, "validation groups")]
    taken, total = [order[0]], names.count(order[0])
    for name in order[1:-1]:
        total += names.count(name)
        if total > count:
            break
        taken.append(name)
    assert set(groups[chosen]) == set(taken)
    assert set(groups[rest]) == set(present) - set(taken)


@given(names=groups_of, parts=st.integers(2, 4), seed=st.integers(0, 9))
def test_folds_of_groups_have_whole_ones(names: list[str], parts: int, seed: int) -> None:
    groups, present = np.array(names), sorted(set(names))
    expected: list[list[str]] = [[] for _ in range(parts)]
    order = [present[i] for i in permutation(len(present), seed, "folds")]
    for name in sorted(order, key=lambda one: -names.count(one)):
        min(expected, key=lambda fold: sum(map(names.count, fold))).append(name)
    for part in range(parts):
        rest, chosen = group_folds(groups, part + 1, parts, seed)
        assert sorted([*rest, *chosen]) == list(range(len(names)))
        assert set(groups[chosen]) == set(expected[part])
