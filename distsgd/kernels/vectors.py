"""Vectors of one value, which operations along long rows need again and again; no one may write to them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from distsgd.device import Array


@lru_cache(maxsize=64)
def ones(count: int, dtype: np.dtype[Any]) -> Array:
    """A matrix times it is the sum over each row, three to five times faster than a reduction."""
    return _locked(np.ones(count, dtype))


@lru_cache(maxsize=64)
def zeros(count: int, dtype: np.dtype[Any]) -> Array:
    """NumPy's maximum is two to five times faster against a row of zeros than against a number."""
    return _locked(np.zeros(count, dtype))


def _locked(array: Array) -> Array:
    array.flags.writeable = False
    return array
