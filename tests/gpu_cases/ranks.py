"""Ranks of one host that share its GPU, under mpirun; the module that collects these tests has a fixture `trainer`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.parallel.launch import run_command, summary

RUNS: dict[str, tuple[object, ...]] = {
    "mlp": ("--hidden", 24, "--dropout", 0.2, "--batch-norm", "--optimizer", "adam"),
    "conv": ("--model", "conv 6 3x3, relu, pool 2, dense 16, relu, dense", "--clip-norm", 1.0),
}


def trained(ranks: int | None, trainer: str, out: Path, *options: object) -> dict[str, Any]:
    """The summary of two epochs of the digits on ranks that all compute on the first GPU."""
    fixed = ("--device", "gpu:0", "--microbatches", 2, "--epochs", 2, "--out", out)
    command = [sys.executable, "-m", trainer, *map(str, (*fixed, *options))]
    done = run_command(ranks, command, out.parent, limit=50)
    assert done.status == 0, done.text
    assert ranks is None or f"{ranks} ranks share 1 GPU(s)" in done.text
    return summary(out)


@pytest.mark.parametrize("name", list(RUNS))
def test_the_same_bits_on_two_ranks_that_share_a_gpu(trainer: str, name: str, tmp_path: Path) -> None:
    one, two = (trained(ranks, trainer, tmp_path / str(ranks), *RUNS[name]) for ranks in (None, 2))
    assert one["parameters_sha256"] == two["parameters_sha256"]
    assert one == two


@pytest.mark.parametrize("name", list(RUNS))
def test_the_gradient_that_training_there_uses_is_checked(trainer: str, name: str, tmp_path: Path) -> None:
    options = ("--check-gradient", "--device", "gpu:0", "--microbatches", 2, "--out", tmp_path / "run", *RUNS[name])
    done = run_command(None, [sys.executable, "-m", trainer, *map(str, options)], tmp_path, limit=50)
    assert done.status == 0, done.text
    assert re.match(r"gradient right: .* \(tolerance 0\.00098\).*; computed in float32 on .* \(gpu:0\)\n", done.out)
    assert not (tmp_path / "run").exists()
