"""What a loop of the user's own holds is freed with it."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

from distsgd import SGD, ConfigurationError, DataParallel
from distsgd.parallel import Communicator
from tests.threads import run_on_threads

X = np.random.default_rng(0).normal(size=(64, 3))


def sums(params: Any, batch: Any) -> Any:
    error = batch.x @ params["w"] - 1.0
    return 0.5 * np.sum(error**2), {"w": batch.x.T @ error}


def test_an_error_that_a_communicator_keeps_keeps_no_memory() -> None:
    """The error leads to what it came through, and so does the communicator: all is freed with them."""
    freed: list[int] = []

    def train(communicator: Communicator) -> None:
        dp = DataParallel({"w": np.ones(3)}, SGD(0.1), reduction="mean", microbatches=4, communicator=communicator)
        weakref.finalize(dp, freed.append, communicator.rank)
        batch = next(dp.batches(X, batch_size=32, epochs=1))
        with pytest.raises(ConfigurationError, match="it returns sums") as error:
            dp.step(sums, batch)
        communicator.allgather_object(error.value)

    run_on_threads(2, train)
    gc.collect()
    assert sorted(freed) == [0, 1]
