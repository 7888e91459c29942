"""Ranks train alone inside a job, and so do processes, threads and tasks that ranks start; who never comes is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import distsgd
from tests.cases import first_of
from tests.parallel.launch import run_command
from tests.parallel.worker_ranks import X, Y

RANKS = 3
PROGRAM = Path(__file__).with_name("worker_ranks.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank reports, by what it has tried."""
    done = run_command(RANKS, [sys.executable, str(PROGRAM)], tmp_path_factory.mktemp("workers"))
    assert done.status == 0, done.text
    return [reported for _, reported in sorted(json.loads(line) for line in done.out.splitlines())]


@pytest.fixture(scope="module")
def alone() -> list[str]:
    """The hashes of runs of one rank, by seed."""
    runs = [distsgd.fit("mlp", X, Y, epochs=2, seed=seed, communicator="self").summary for seed in range(3)]
    return [run["parameters_sha256"] for run in runs]


@pytest.mark.parametrize("name", ["COMM_SELF", "self"])
def test_a_rank_trains_alone(name: str, found: list[dict[str, Any]], alone: list[str]) -> None:
    assert [one[name] for one in found] == [f"{run} of {RANKS}" for run in alone]


@pytest.mark.parametrize("name", ["fork", "spawn", "loky", "executor"])
def test_who_works_for_a_rank_trains_alone(name: str, found: list[dict[str, Any]], alone: list[str]) -> None:
    assert found[0][name] == [f"{run} of 1" for run in alone]


@pytest.mark.parametrize("name", ["threads", "joblib threads"])
def test_threads_train_alone(name: str, found: list[dict[str, Any]], alone: list[str]) -> None:
    if name == "joblib threads":
        pytest.importorskip("joblib")
    assert found[0][name] == [f"{run} of {RANKS}" for run in alone]


def test_a_program_that_a_rank_starts_trains_alone(found: list[dict[str, Any]], alone: list[str]) -> None:
    assert found[0]["a program"] == f"{alone[0]} of 1"


@pytest.mark.skipif(sys.platform != "linux", reason="which process was forked is read from /proc")
def test_a_forked_process_trains_alone_and_uses_no_mpi(found: list[dict[str, Any]], alone: list[str]) -> None:
    for one in found:
        without, with_world = one["a forked process"].split("|")
        assert without == f"{alone[0]} of 1"
        assert with_world.startswith("communicator: this process was forked from another one")


def test_groups_and_all_ranks_after_that(found: list[dict[str, Any]], alone: list[str]) -> None:
    for one in found:
        assert one["many groups"] == [f"{alone[0]} of {RANKS}"]
        assert one["all"] == one["all, by name"] == f"{alone[0]} of {RANKS}"
        assert one["another name"] == "fit: communicator: \"self\" is the only one with a name, got 'world'"


def test_a_pool_of_the_whole_job(tmp_path: Path, alone: list[str]) -> None:
    """`python -m mpi4py.futures`: rank 0 runs the program, and all others are workers."""
    program = tmp_path / "program.py"
    program.write_text(
        f"import sys; sys.path.insert(0, {str(PROGRAM.parent)!r})\n"
        "from mpi4py.futures import MPIPoolExecutor\nfrom worker_ranks import train\n"
        "if __name__ == '__main__':\n"
        "    with MPIPoolExecutor() as pool: print(*pool.map(train, range(3)), sep='\\n')\n"
    )
    done = run_command(3, [sys.executable, "-m", "mpi4py.futures", str(program)], tmp_path)
    assert (done.status, done.out.splitlines()) == (0, [f"{run} of 1" for run in alone]), done.text


@pytest.mark.parametrize("started", first_of([True, False]))
def test_ranks_that_never_come_are_named(started: bool, tmp_path: Path) -> None:
    """Where they have started distsgd, and where they have not."""
    program = tmp_path / "program.py"
    program.write_text(
        "import time, numpy as np, distsgd\nfrom mpi4py import MPI\n"
        + "distsgd.rank()\n" * started
        + "if MPI.COMM_WORLD.rank == 1: time.sleep(300)\n"
        "distsgd.fit('softmax', np.eye(4), [0, 1, 2, 3], stall_timeout='0.2s')\n"
    )
    done = run_command(3, [sys.executable, str(program)], tmp_path, limit=120)
    assert done.status != 0
    lines = [line for line in done.err.splitlines() if line.startswith("distsgd: error: ")]
    assert len(lines) == 1, done.text
    assert lines[0].startswith("distsgd: error: rank 1 "), done.text
    assert "ranks 0 and 2 have waited" in lines[0], done.text


@pytest.mark.long
def test_communicators_are_freed(tmp_path: Path) -> None:
    """MPICH has about 2,000."""
    program = tmp_path / "program.py"
    program.write_text(
        "from mpi4py import MPI\nfrom distsgd.parallel import communicator_for, release\n"
        "for _ in range(2_300):\n"
        "    group = MPI.COMM_WORLD.Dup()\n    ranks = communicator_for(group)\n    release(ranks)\n    group.Free()\n"
        "print(ranks.size)\n"
    )
    done = run_command(2, [sys.executable, str(program)], tmp_path, limit=400)
    assert (done.status, done.out) == (0, "2\n2\n"), done.text
