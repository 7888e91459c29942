"""What holds for all of these tests."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def _collected() -> Iterator[None]:
    """A DataParallel that isn't closed keeps BLAS on one thread until it is collected: other tests look at that."""
    yield
    gc.collect()
