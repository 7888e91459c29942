"""Numbers that aren't finite, and replicas that differ, under MPI."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parallel.launch import ends_with, result, train

MODELS = """
import os

import numpy as np

from distsgd import FunctionObjective
from distsgd.parallel.message_reduction import MessageReduction

BAD = {3: "nan", 9: "gradient", 10: "gradient", 21: "nan"}


def linear(params, grads, batch):
    error = params["w"] @ batch.x + params["b"][:1] - (batch.y == 3)
    grads["w"][...] = batch.x @ error / 64
    grads["b"][...] = error.sum()
    what = BAD.get(batch.step + 1) if batch.microbatch == 1 else None
    if what == "gradient":
        grads["b"][-1] = np.inf
    return (float("nan") if what == "nan" else float(np.square(error).sum())), len(batch)


def model(shape, outputs):
    return FunctionObjective(linear, {"w": np.zeros(64), "b": np.zeros(40_000)})


RANK = os.environ.get("PMI_RANK") or os.environ.get("PMIX_RANK") or os.environ.get("OMPI_COMM_WORLD_RANK") or "0"
if RANK == os.environ.get("TEST_WRONG"):
    all_gather, calls = MessageReduction.all_gather, []

    def err(self):
        all_gather(self)
        calls.append(self)
        if len(calls) == 16:
            self.params.view(np.uint32)[30_000] ^= 1

    MessageReduction.all_gather = err
"""
LINEAR = ("--model", "models.py:model", "--batch-size", 200, "--epochs", 3, "--lr", 0.01)


@pytest.mark.long
def test_minibatches_that_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    found = []
    for ranks, policy, kind in (
        (None, "skip", "auto"),
        (3, "skip", "mpi"),
        (None, "rollback", "auto"),
        (2, "rollback", "mpi"),
        (3, "rollback", "shared"),
        (4, "rollback", "shared"),
    ):
        out = tmp_path / f"{policy}-{ranks}"
        options = ("--on-non-finite", policy, "--communication", kind, "--checkpoint-every", 4)
        done = train(ranks, out, *LINEAR, *options)
        warnings = done.err.splitlines()
        assert len(warnings) == 4, done.err
        assert "warning: the loss is nan at step 3, microbatch 1 (examples " in warnings[0]
        assert warnings[1].endswith("skipped")
        assert ("going back to step 8, and its" in warnings[1]) == (policy == "rollback")
        found.append(result(out))
    assert all(one == found[0] for one in found)
    assert [record["step"] for record in found[0][1] if "skipped" in record] == [3, 9, 10, 21]


def test_stops_by_default(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    ends_with(train(2, tmp_path / "run", *LINEAR, status=1), "the loss is nan at step 3, microbatch 1 (examples ")


def test_a_replica_that_differs(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    options = (
        *LINEAR,
        "--on-non-finite",
        "skip",
        "--communication",
        "mpi",
        "--check-replicas",
        8,
        "--checkpoint-every",
        10,
    )
    done = train(3, tmp_path / "run", *options, status=1, extra={"TEST_WRONG": "1"})
    last = done.err.splitlines()[-1]
    assert last.startswith("distsgd: error: rank 1 on ")
    assert "parameters after step 16 differ from those of 2 other ranks" in last
    train(None, tmp_path / "run", *options)
    train(None, tmp_path / "whole", *LINEAR, "--on-non-finite", "skip")
    assert result(tmp_path / "run") == result(tmp_path / "whole")
