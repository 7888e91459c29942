"""What one pass over targets finds, against what NumPy finds in all of them at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsgd.core.device import Array
from distsgd.core.errors import DataError
from distsgd.data.targets import TargetSummary, absent

MANY = 300_000
"""Several blocks."""
RNG = np.random.default_rng(3)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.uint64, np.bool_, ">i2"])
@pytest.mark.parametrize("count", [1, 7, MANY])
def test_labels_are_counted(dtype: Any, count: int) -> None:
    y = (RNG.integers(0, 2, count) * 1 if dtype is np.bool_ else RNG.integers(0, 120, count)).astype(dtype)
    found = TargetSummary.of("d", y)
    assert (found.count, found.low, found.high) == (count, y.min(), y.max())
    assert found.labels is not None
    assert found.labels.tolist() == np.bincount(y.astype(np.int64)).tolist()
    assert found.binary == (y.max() <= 1)
    assert not found.one_hot
    taken = y[::3]
    rest = np.delete(y, np.s_[::3])
    left = found.without(taken)
    assert left.count == len(rest)
    assert left.labels is not None
    assert left.labels.tolist() == np.bincount(rest.astype(np.int64), minlength=len(found.labels)).tolist()


def test_identifiers_are_counted_too() -> None:
    y = RNG.permutation(MANY)
    found = TargetSummary.of("d", y)
    assert found.labels is not None
    assert (found.labels == 1).all()
    assert len(found.labels) == MANY


@pytest.mark.parametrize("y", [[0, -1, 3], [0, 1000, 1], [[0, 1], [1, 0]], [0.0, 1.0]], ids=str)
def test_what_has_no_labels(y: list[Any]) -> None:
    assert TargetSummary.of("d", np.array(y)).labels is None


def rows(bad: int | None = None, value: float = 0.0) -> Array:
    y = np.eye(3, dtype=np.float32)[np.arange(MANY) % 3]
    if bad is not None:
        y[bad, 1] = value
    return y


@pytest.mark.parametrize(
    ("y", "binary", "one_hot"),
    [
        (rows(), True, True), (rows(MANY - 1, 1.0), True, False), (rows(MANY - 1, 0.5), False, False),
        (rows(4, 2.0), False, False), (rows()[:, :1], True, False), (rows()[:, 0], True, False),
        (rows().astype(int), True, True),
    ],
)  # fmt: skip
def test_zeros_and_ones(y: Array, binary: bool, one_hot: bool) -> None:
    found = TargetSummary.of("d", y)
    assert (found.binary, found.one_hot, found.low, found.high) == (binary, one_hot, y.min(), y.max())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_that_is_not_finite_is_named(value: float) -> None:
    y = rows(MANY - 5, value)
    with pytest.raises(DataError, match=f"^d: expected finite numbers, example {MANY - 5} holds {value}"):
        TargetSummary.of("d", y)


def test_what_the_dtype_of_a_model_cannot_hold() -> None:
    y = np.array([0.0, -1e300, 1.0])
    assert TargetSummary.of("d", y, np.dtype(np.float64)).low == -1e300
    with pytest.raises(DataError, match="numbers that float32 can hold, example 1 holds"):
        TargetSummary.of("d", y, np.dtype(np.float32))


@given(st.lists(st.integers(0, 14), min_size=1, max_size=40), st.integers(0, 3))
def test_absent_classes(labels: list[int], more: int) -> None:
    classes = max(labels) + 1 + more
    missing = [one for one in range(classes) if one not in labels]
    text = absent(TargetSummary.of("d", np.array(labels)), classes)
    if missing:
        which = ", ".join(map(str, missing[:5]))
        assert text is not None
        assert text.startswith(f"warning: {len(missing)} of {classes} classes have no examples: {which}")
    elif classes > 10 and classes > len(labels) // 2:
        assert text == (
            f"warning: {len(labels)} training examples are of {classes} classes; values are floats (y.astype(float))"
        )
    else:
        assert text is None
    assert absent(TargetSummary.of("d", np.array(labels, float)), None) is None
