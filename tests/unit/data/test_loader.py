"""What is asked of gathered rows, where inputs are checked as they are first read."""

from __future__ import annotations

import numpy as np
import pytest

import distsgd
from distsgd.core.device import Array
from distsgd.core.errors import DataError
from distsgd.data.examples import Examples
from distsgd.data.loader import Loader


def objective() -> distsgd.FunctionObjective:
    return distsgd.FunctionObjective(lambda params, grads, batch: (0.0, len(batch)), {"w": np.zeros(1)})


def test_rows_are_checked_as_they_are_stored() -> None:
    seen: list[tuple[Array, list[int]]] = []
    x = np.arange(10, dtype=np.uint8).reshape(5, 2)
    examples = Examples(x, np.arange(5), scale=2.0, check=lambda rows, at: seen.append((rows, at.tolist())))
    loader = Loader(examples.subset(np.array([4, 1, 3])), objective(), np.dtype(np.float32), seed=0)
    gathered = loader.gather(np.array([0, 2]))
    assert gathered.x.tolist() == [[4.0, 4.5], [3.0, 3.5]]
    assert [(rows.dtype, rows.tolist(), at) for rows, at in seen] == [(np.uint8, [[8, 9], [6, 7]], [4, 3])]


def test_what_is_found_is_raised() -> None:
    def check(rows: Array, at: Array) -> None:
        raise DataError(f"example {at[0]}")

    loader = Loader(Examples(np.ones((3, 1)), np.zeros(3), check=check), objective(), np.dtype(np.float64), seed=0)
    with pytest.raises(DataError, match="example 2"):
        loader.gather(np.array([2]))
