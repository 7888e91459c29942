"""check_arrays: what can be trained on passes, everything else gives a sentence that names the example."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distsgd.core.device import Array
from distsgd.core.errors import DataError
from distsgd.data.named.datasets import check_arrays

N = 200_000
X = np.zeros((N, 3), np.float32)
LABELS = np.arange(N) % 10


def changed(array: Array, index: Any, value: float) -> Array:
    copy = array.copy()
    copy[index] = value
    return copy


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float16, np.float32, np.float64, np.bool_])
def test_good_data(dtype: type[np.generic]) -> None:
    x = X.astype(dtype)
    assert check_arrays("d", x, LABELS) == 10
    assert check_arrays("d", x, LABELS[:, None].astype(np.uint8)) == 10
    assert check_arrays("d", x, LABELS > 4) == 2
    assert check_arrays("d", x, LABELS, num_classes=12) == 12
    assert check_arrays("d", x, LABELS.astype(np.float32)) is None
    assert check_arrays("d", x, np.zeros((N, 4)), changed(np.zeros(N), 5, 1.0)) is None


BAD: dict[str, tuple[Array, Array, Array | None, int | None, str]] = {
    "nan": (changed(X, (150_000, 2), np.nan), LABELS, None, None, "inputs.* example 150000 holds nan"),
    "inf": (changed(X, (7, 1), -np.inf), LABELS, None, None, "example 7 holds -inf"),
    "complex": (X.astype(complex), LABELS, None, None, "got dtype complex128"),
    "text": (X.astype(str), LABELS, None, None, "got dtype <U32"),
    "object": (X, LABELS.astype(object), None, None, "targets.* got dtype object"),
    "no examples": (X[:0], LABELS[:0], None, None, "at least one example"),
    "no features": (X[:, :0], LABELS, None, None, "at least one example and one feature"),
    "fewer labels": (X, LABELS[:-1], None, None, "targets: expected 200000 entries.* got 199999"),
    "one number": (X, np.array(3), None, None, "a single number"),
    "fewer weights": (X, LABELS, np.ones(3), None, "weights: expected 200000 entries.* got 3"),
    "negative label": (X, changed(LABELS, 160_000, -1), None, None, "0 to 199999, example 160000 has -1"),
    "great label": (X, LABELS, None, 9, "from 0 to 8, example 9 has 9"),
    "identifiers": (X, LABELS + 10**9, None, None, "example 0 has 1000000000; number the classes from 0"),
    "one-hot integers": (X, np.zeros((N, 2), int), None, None, r"labels of shape \(n,\)"),
    "nan target": (X, changed(np.zeros((N, 2)), (9, 1), np.nan), None, None, "targets.* example 9 holds nan"),
    "3-D target": (X, np.zeros((N, 1, 1)), None, None, r"\(n,\) or \(n, outputs\)"),
    "nan weight": (X, LABELS, changed(np.ones(N), 4, np.nan), None, "weights.* example 4 holds nan"),
    "negative weight": (X, LABELS, changed(np.ones(N), 170_000, -2.0), None, "example 170000 has -2.0"),
    "zero weights": (X, LABELS, np.zeros(N), None, "all are 0"),
    "two weights": (X, LABELS, np.ones((N, 2)), None, "one weight an example"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_gives_one_sentence(name: str) -> None:
    x, y, weights, num_classes, message = BAD[name]
    with pytest.raises(DataError, match=message) as caught:
        check_arrays("my.npz", x, y, weights, num_classes=num_classes)
    assert str(caught.value).startswith("my.npz: ")
    assert "\n" not in str(caught.value)
