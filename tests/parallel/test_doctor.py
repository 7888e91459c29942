"""The doctor under mpirun, and a launcher that belongs to another MPI: refused by every command, with the remedy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cases import first_of
from tests.parallel.launch import ends_with, environment, find_mpirun, module
from tests.waiting import LIMIT


@pytest.mark.parametrize("ranks", first_of([2, 1, 3]))
def test_under_mpirun(tmp_path: Path, ranks: int) -> None:
    done = module(ranks, "doctor", tmp_path)
    assert done.err == ""
    metadata = dict(
        line.split(maxsplit=1) for line in done.out.splitlines()[:-1] if not line.startswith(("problem", " "))
    )
    problems = [line for line in done.out.splitlines() if line.startswith("problem ")]
    assert done.status == (1 if problems else 0)
    assert set(done.statuses.values()) == {done.status}
    assert len(done.statuses) == ranks
    assert metadata["ranks"] == f"{ranks} on 1 host(s)"
    assert metadata["launcher"].endswith("which fits")
    assert done.out.count("GFLOP/s in a GEMM") == 1
    if ranks == 1:
        assert "no other to add gradients with" in metadata["reduction"]
        assert "MPI_Allreduce" not in metadata
    else:
        for line in (metadata["reduction"], metadata["MPI_Allreduce"]):
            assert line.startswith("4 kB in ")
            assert "GB/s" in line
    assert all(";" in problem for problem in problems), "each has its remedy"
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else ranks
    assert any(f"{ranks} ranks wait for each other" in problem for problem in problems) == (ranks > processors)


@pytest.mark.parametrize("name", first_of(["train", "doctor"]))
def test_a_launcher_of_another_mpi_is_refused(tmp_path: Path, name: str) -> None:
    """Three processes that MPI takes for three runs of one rank: one sentence from the launcher's rank 0."""
    mpirun, reason = find_mpirun()
    if mpirun is None:
        pytest.skip(reason)
    reported, statuses = [], []
    for rank in range(3):
        variables = {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": str(rank)}
        done = subprocess.run(
            [sys.executable, "-m", f"distsgd.{name}"],
            cwd=tmp_path, env=environment(variables), capture_output=True, text=True, timeout=LIMIT, check=False,
        )  # fmt: skip
        statuses.append(done.returncode)
        reported.append(done.stderr)
    assert statuses == [2, 2, 2]
    assert reported[1:] == ["", ""]
    assert "the launcher started 3 processes, but MPI sees 1: this is Open MPI's mpirun" in reported[0]
    assert "; start with " in reported[0]
    assert reported[0].count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_arguments_are_refused_once(tmp_path: Path) -> None:
    ends_with(module(2, "doctor", tmp_path, "--fast"), "unknown option --fast")


@pytest.mark.long
def test_help(tmp_path: Path) -> None:
    done = module(2, "doctor", tmp_path, "--help")
    assert done.status == 0
    assert done.out.count("usage: python -m distsgd.doctor") == 1
    assert done.err == ""
