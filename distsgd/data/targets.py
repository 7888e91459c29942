"""Targets in one pass over blocks of them: whether they can be trained on, and what there is to say about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import DataError

_BLOCK = 1 << 20
"""Bytes that are looked at together: whole-size temporaries would double memory."""
_SAMPLES, _SAMPLE = 8, 512
"""So many evenly spread runs of so many rows are looked at, where an array may stay in its file."""


def blocks(array: Array) -> Iterator[tuple[int, Array]]:
    """The array in blocks of whole rows, each with the number of its first row."""
    rows = max(1, _BLOCK // max(1, array.nbytes // max(1, len(array))))
    for start in range(0, len(array), rows):
        yield start, array[start : start + rows]


def sampled_rows(count: int) -> Array:
    """Up to 4,096 of so many rows, in runs: each row alone might be in a chunk of its own.

    >>> sampled_rows(3).tolist(), len(sampled_rows(10**9))
    ([0, 1, 2], 4096)
    """
    if count <= _SAMPLES * _SAMPLE:
        return np.arange(count)
    starts = np.linspace(0, count - _SAMPLE, _SAMPLES).astype(np.int64)
    return np.unique(starts[:, None] + np.arange(_SAMPLE))


def first(array: Array, is_bad: Callable[[Array], Array]) -> tuple[int, Any] | None:
    """The first row that has a bad element, and this element; None where all are good."""
    for start, block in blocks(array):
        bad = is_bad(block)
        if bad.any():
            row = int(np.argmax(bad.reshape(len(bad), -1).any(axis=1)))
            return start + row, block[row][bad[row]].flat[0]
    return None


def check_finite(where: str, array: Array, dtype: np.dtype[Any] | None, rows: Array | None = None) -> None:
    """DataError with the first example that holds NaN, infinity or what the dtype can't hold; `rows` are the examples'
    numbers, from 0 by default."""
    if array.dtype.kind != "f":
        return
    narrower = dtype is not None and dtype.itemsize < array.dtype.itemsize
    with np.errstate(over="ignore"):
        found = first(array, lambda block: ~np.isfinite(block.astype(dtype) if narrower else block))
    if found is not None:
        row, value = found if rows is None else (rows[found[0]], found[1])
        kind = f"numbers that {dtype} can hold" if narrower and np.isfinite(value) else "finite numbers"
        raise DataError(f"{where}: expected {kind}, example {row} holds {value}; remove or repair it")


def most_labels(count: int) -> int:
    """How many classes so many examples may be of, where nothing says how many there are: a million classes of three
    examples is a column of identifiers, not of labels."""
    return max(1000, count)


@dataclass(frozen=True, eq=False)
class TargetSummary:
    """What a pass over targets has found.

    Parameters
    ----------
    count
        The number of examples.
    low, high
        The least and the greatest number.
    labels
        How often each label comes, from 0 on, where each target is a single integer that can be a label; else None.
    binary
        Whether all numbers are 0 or 1.
    one_hot
        Whether each row has a single 1 among zeros.

    Examples
    --------
    >>> found = TargetSummary.of("d", np.array([2, 0, 2]))
    >>> found.labels.tolist(), found.without(np.array([0])).labels.tolist()
    ([1, 0, 2], [0, 0, 2])
    """

    count: int
    low: float
    high: float
    labels: Array | None
    binary: bool
    one_hot: bool

    @classmethod
    def of(cls, where: str, y: Array, dtype: np.dtype[Any] | None = None) -> TargetSummary:
        """Raises DataError with the first example that holds NaN, infinity or what the dtype can't hold."""
        ends: list[Any] = []
        labels = np.zeros(0, np.int64) if y.dtype.kind != "f" and y.size == len(y) else None
        binary, one_hot = True, y.ndim == 2 and y.shape[1] > 1
        for _, block in blocks(y):
            if not block.size:
                continue
            with np.errstate(invalid="ignore"):
                low, high = block.min().item(), block.max().item()
            if not _fits(low, high, y.dtype, dtype):
                check_finite(where, y, dtype)  # finds the example
            ends += [low, high]
            binary = binary and 0 <= low <= high <= 1 and bool(np.logical_or(block == 0, block == 1).all())
            one_hot = one_hot and binary and bool((block.sum(axis=1) == 1).all())
            if labels is not None:
                labels = None if low < 0 or high >= most_labels(len(y)) else _counted(labels, block, high)
        return cls(len(y), min(ends, default=0), max(ends, default=0), labels, binary, one_hot)

    def without(self, targets: Array) -> TargetSummary:
        """For the examples that are left where those with these targets are taken away: `count` and `labels` are of
        the others, and the rest still of all."""
        labels = self.labels
        if labels is not None:
            labels = labels - np.bincount(targets.reshape(-1).astype(np.int64), minlength=len(labels))
        return replace(self, count=self.count - len(targets), labels=labels)


def _fits(low: float, high: float, stored: np.dtype[Any], dtype: np.dtype[Any] | None) -> bool:
    """Whether numbers with these ends are finite, in the model's dtype too. The least of some is NaN where one is."""
    if stored.kind != "f":
        return True
    kind = dtype if dtype is not None and dtype.itemsize < stored.itemsize else stored
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.array([low, high]).astype(kind)).all())


def _counted(labels: Array, block: Array, high: int) -> Array:
    """The counts with those of a block, whose greatest label this is."""
    if high >= len(labels):
        labels = np.concatenate([labels, np.zeros(high + 1 - len(labels), np.int64)])
    numbers = block.reshape(-1).astype(np.int64)
    if high < len(numbers):
        labels += np.bincount(numbers, minlength=len(labels))
    else:
        np.add.at(labels, numbers, 1)  # in the time of the block, not of all classes
    return labels


def check_labels(name: str, y: Array, num_classes: int | None, targets: TargetSummary) -> int:
    """The number of classes of labels. Raises DataError with the first example that has none of them."""
    limit = most_labels(len(y)) if num_classes is None else num_classes
    if targets.high >= limit or targets.low < 0:
        found = first(y, lambda block: (block < 0) | (block >= limit))
        assert found is not None
        remedy = "correct it, or say with --classes how many there are"
        if num_classes is None:
            remedy = "number the classes from 0 (np.unique(y, return_inverse=True)); values are floats: y.astype(float)"
        raise DataError(
            f"{name}: expected labels from 0 to {limit - 1}, example {found[0]} has {int(found[1])}; {remedy}"
        )
    return int(targets.high) + 1 if num_classes is None else num_classes


def absent(targets: TargetSummary, classes: int | None) -> str | None:
    """A sentence where labels are hardly ones: some below the greatest have no example, or nearly each is another."""
    if classes is None or targets.labels is None:
        return None
    is_there = np.zeros(classes, bool)
    is_there[: len(targets.labels)] = targets.labels > 0
    missing = np.flatnonzero(~is_there)
    if not len(missing):
        few = (
            f"warning: {targets.count} training examples are of {classes} classes; values are floats (y.astype(float))"
        )
        return few if 10 < classes > targets.count // 2 else None
    which = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
    return (
        f"warning: {len(missing)} of {classes} classes have no examples: {which}; number the classes from 0 "
        "(np.unique(y, return_inverse=True)), or say with --classes how many there are; values are floats "
        "(y.astype(float))"
    )
