"""Random runs of rows, and what NumPy says they are."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from distsgd.core.device import Array
from distsgd.data.sources.base import ArraySource, Rows, Runs


def sliced(array: Array, runs: Runs) -> Array:
    """These rows of an array in memory, one run after the other."""
    return np.concatenate([array[:0], *(array[start:stop] for start, stop in runs)]).astype(array.dtype)


def runs_of(count: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Sorted runs of so many rows, in which no row comes twice."""
    return st.lists(st.integers(0, count), unique=True, max_size=8).map(
        lambda ends: [(start, stop) for start, stop in zip(sorted(ends)[::2], sorted(ends)[1::2], strict=False)]
    )


def rows_of(rows: Rows, runs: Runs, source: ArraySource, name: str = "a") -> Array:
    """What an open set of arrays reads of one of them."""
    out = np.zeros((sum(stop - start for start, stop in runs), *source.shape[1:]), source.dtype)
    rows.read(runs, {name: out})
    return out
