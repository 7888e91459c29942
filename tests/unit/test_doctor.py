"""The doctor: what it says of a healthy machine, and of ranks that don't fit together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distsgd import doctor

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "distsgd.doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=50, check=False)


def test_alone_it_names_what_computes() -> None:
    done = run()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "no problem found"
    facts = {line.split()[0] for line in done.stdout.splitlines()}
    assert {"distsgd", "python", "numpy", "blas", "mpi", "ranks", "shared", "messages", "gpus"} <= facts


def test_it_names_the_kernels_that_the_user_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert "OPENBLAS_CORETYPE=Haswell" in run().stdout


def test_arguments_are_refused() -> None:
    done = run("--fast")
    assert done.returncode == 2
    assert "doctor takes no arguments, got --fast" in done.stderr


def rank(**changes: Any) -> dict[str, Any]:
    return {"cores": 1, "processors": 4, "probe": "a", "gemm_seconds": 1.0, **changes}


@pytest.mark.parametrize(
    ("hosts", "changes", "words"),
    [
        (("a", "a", "b"), {1: {"gemm_seconds": 1.6}}, ["slow ranks: 1 on a"]),
        (("a", "a", "b"), {2: {"probe": "b"}}, ["b compute other bits than a"]),
        (("a", "a", "b"), {0: {"processors": 1}, 1: {"processors": 1}}, ["a: 2 ranks wait for each other on 1"]),
        (("a", "a", "b"), {}, []),
    ],
)
def test_problems(hosts: tuple[str, ...], changes: dict[int, dict[str, Any]], words: list[str]) -> None:
    ranks = [rank(**changes.get(index, {})) for index in range(len(hosts))]
    problems = doctor._problems(SimpleNamespace(hosts=hosts), ranks)  # type: ignore[arg-type]
    assert len(problems) == len(words)
    for problem, word in zip(problems, words, strict=True):
        assert word in problem
