"""Messages that travel while ranks compute, between real processes: a network large enough for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parallel.launch import module, result, summary, train

QUICK = ("--batch-size", 100, "--hidden", 600, 290, "--learning-rate", 0.05, "--quiet")
"""On the digits: 14 blocks of parameters, so three of each of four ranks."""
MPI = ("--communication", "mpi")

MODELS = """
import os
import signal

import numpy as np

import distsgd
from distsgd import nn


class Failing(nn.Layer):
    kind = "failing"

    def __init__(self, how):
        self.how = how

    def output_shape(self, shape):
        return shape

    def forward(self, params, x, batch, path):
        def backward(dy, grads):
            if batch.training and batch.step == 3 and batch.microbatch == 2:
                if self.how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise ZeroDivisionError("the user's own mistake")
            return dy

        return x, backward


def network(how):
    return nn.Sequential([nn.Dense(64, 600), Failing(how), nn.Dense(600, 290), nn.Dense(290, 10)])


def raising(shape, outputs):
    return network("raise")


def killed(shape, outputs):
    return network("kill")
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one rank, whose last minibatch of an epoch is a short one."""
    out = tmp_path_factory.mktemp("alone") / "run"
    train(None, out, *QUICK, "--epochs", 2)
    return out


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_same_bits(tmp_path: Path, alone: Path, ranks: int) -> None:
    train(ranks, tmp_path / "run", *QUICK, "--epochs", 2, *MPI)
    assert result(tmp_path / "run") == result(alone)


@pytest.mark.parametrize(
    "options",
    [
        ("--optimizer", "lamb", "--clip-norm", 1, "--log-every", 3),
        ("--optimizer", "adam", "--on-non-finite", "skip", "--freeze", "dense1.*", "--microbatches", 8),
        ("--batch-norm", "--dropout", 0.2, "--check-replicas", 2, "--threads", 2),
    ],
    ids=["lamb", "adam", "threads"],
)
def test_same_bits_with(tmp_path: Path, options: tuple[object, ...]) -> None:
    for ranks in (None, 3):
        messages = () if ranks is None else MPI
        train(ranks, tmp_path / f"{ranks}", *QUICK, "--epochs", 1, *options, *messages)
    assert result(tmp_path / "None") == result(tmp_path / "3")


def test_a_run_goes_on_with_other_ranks(tmp_path: Path, alone: Path) -> None:
    """The optimizer's state is cut in another way on each number of ranks, and not at all on one."""
    out = tmp_path / "run"
    train(4, out, *QUICK, "--epochs", 1, *MPI)
    train(3, out, *QUICK, "--epochs", 2, *MPI, "--resume", "auto")
    assert summary(out)["parameters_sha256"] == summary(alone)["parameters_sha256"]


def test_an_error_in_backward_ends_all_ranks_with_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    done = train(4, tmp_path / "run", "--model", "models.py:raising", "--microbatches", 4, *MPI, "--quiet", status=1)
    assert done.err.count("distsgd: error: ") == 1, done.err
    assert "the user's own mistake" in done.err
    assert "step 4, microbatch 2" in done.err


def test_a_rank_that_is_killed_in_backward_ends_all(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(MODELS)
    options = ("--out", tmp_path / "run", "--model", "models.py:killed", "--microbatches", 4, *MPI, "--quiet")
    done = module(4, "train", tmp_path, *options)
    assert done.status != 0
    assert not (tmp_path / "run" / "summary.json").exists()
