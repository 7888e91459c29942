"""Batch normalization with few examples in a microbatch: enough of them are put together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distsgd import fit
from distsgd.core.errors import ConfigurationError
from tests.threads import run_on_threads

RNG = np.random.default_rng(0)
X = RNG.normal(size=(609, 10)).astype(np.float32)
Y = (X[:, :3].sum(axis=1) > 0).astype(np.int64)
USUAL: dict[str, Any] = {"batch_norm": True, "epochs": 15, "validation_fraction": 0.1, "seed": 1}


@pytest.mark.parametrize("batch_size", [4, 8, 32])  # 548 training examples: the last minibatch of 32 has 4
def test_small_minibatches_learn(batch_size: int) -> None:
    """With 4 microbatches of one example each it would be chance: 0.4 to 0.5."""
    result = fit("mlp", (X, Y), batch_size=batch_size, **USUAL)
    assert result.summary["validation_accuracy"] > 0.85


def test_few_examples_are_one_microbatch() -> None:
    """Below 16, two microbatches would have fewer than 8 each; so the number asked for changes nothing."""
    few, one = (fit("mlp", (X, Y), batch_size=15, microbatches=m, **USUAL | {"epochs": 3}) for m in (4, 1))
    assert few.summary["parameters_sha256"] == one.summary["parameters_sha256"]


def test_more_ranks_than_such_microbatches_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"3 ranks share 2 microbatches: .* batch_size 24 or more"):
        run_on_threads(3, lambda c: fit("mlp", (X, Y), batch_size=16, communicator=c, **USUAL))
    hashes = [
        run_on_threads(ranks, lambda c: fit("mlp", (X, Y), batch_size=32, communicator=c, **USUAL | {"epochs": 2}))[0]
        for ranks in (1, 2, 3, 4)
    ]
    assert len({result.summary["parameters_sha256"] for result in hashes}) == 1
