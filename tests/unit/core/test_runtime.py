"""What a process learns of its CPU, its cores and its launcher, how its threads work, and how a command ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsgd.cli import commands
from distsgd.core import runtime
from distsgd.core.errors import ConfigurationError, DistsgdError, LauncherError
from distsgd.parallel import Communicator, start
from distsgd.parallel.serial import SerialCommunicator
from distsgd.parallel.thread_pool import WORK_THAT_PAYS, Workers, worker_count
from tests.waiting import LIMIT

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("environment", "size"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, 4),
        ({"PMI_SIZE": "3", "PMI_RANK": "0"}, 3),
        ({"PMIX_SIZE": "2"}, 2),
        ({"MPI_WORLD_SIZE": "8"}, 8),
        ({"MV2_COMM_WORLD_SIZE": "16"}, 16),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, 1),
        ({"PMI_SIZE": "many"}, None),
        ({"PMI_SIZE": ""}, None),
        # In sbatch's own shell, and in salloc's: nothing has been started yet.
        ({"SLURM_NTASKS": "64", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}, None),
        ({"SLURM_NTASKS": "64", "SLURM_JOB_ID": "7"}, None),
        # Inside srun.
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "64"}, 4),
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "64"}, 64),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}, None),
        # mpirun inside a job: its own number counts.
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "PMI_SIZE": "6"}, 6),
    ],
)
def test_launcher_size(environment: Mapping[str, str], size: int | None) -> None:
    assert runtime.launcher_size(environment) == size


@pytest.mark.parametrize(
    ("masks", "cores"),
    [
        ([(0, 1, 2, 3)], [4]),
        ([(0, 1, 2, 3)] * 2, [2, 2]),
        ([(0, 1)] * 5, [1] * 5),
        ([(0, 1, 2)] * 2, [1, 1]),
        ([(0,), (1,), (2,)], [1, 1, 1]),
        ([(0, 1), (2, 3)], [2, 2]),
        ([(0, 1, 2, 3), (0, 1, 2, 3), (4, 5)], [2, 2, 2]),
    ],
)
def test_cores_per_rank(masks: Sequence[tuple[int, ...]], cores: list[int]) -> None:
    assert [runtime.cores_per_rank(masks, rank) for rank in range(len(masks))] == cores


def test_affinity() -> None:
    found = runtime.affinity()
    assert len(found) >= 1
    assert list(found) == sorted(set(found))
    if sys.platform == "linux":
        assert set(found) == os.sched_getaffinity(0)


def in_a_process(code: str, **environment: str) -> str:
    env = {key: value for key, value in os.environ.items() if not key.endswith(("_NUM_THREADS", "_CORETYPE"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**env, **environment},
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


BLAS_THREADS = """
from distsgd.core import runtime
{first}
import numpy
from threadpoolctl import threadpool_info
print([pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"])
"""


def test_prepare_gives_blas_one_thread_whatever_was_set() -> None:
    assert set(in_a_process(BLAS_THREADS.format(first="runtime.prepare()"), OMP_NUM_THREADS="2")) <= set("[1, ]")


def test_single_threaded_blas_gives_back_what_was() -> None:
    code = """
import numpy
from threadpoolctl import threadpool_info, threadpool_limits
from distsgd.core import runtime
count = lambda: [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
threadpool_limits(limits=2, user_api="blas")
before = count()
with runtime.single_threaded_blas():
    inside = count()
print(inside == [1] * len(inside), count() == before)
"""
    assert in_a_process(code) == "True True"


def test_prepare_loads_nothing_heavy() -> None:
    code = "import sys; from distsgd.core import runtime; runtime.prepare(); print('numpy' in sys.modules)"
    assert in_a_process(code) == "False"


def test_probe_and_description() -> None:
    assert runtime.cpu_probe() == runtime.cpu_probe()
    assert len(runtime.cpu_probe()) == 16
    assert runtime.older_probe() not in ("", runtime.cpu_probe())
    assert "BLAS" in runtime.blas_description() or "blas" in runtime.blas_description()


def test_no_mpi_without_a_launcher() -> None:
    code = """
import sys
from distsgd.parallel import start
print(type(start()).__name__, "mpi4py" in sys.modules)
"""
    assert in_a_process(code) == "SerialCommunicator False"
    assert isinstance(start(), SerialCommunicator)


def test_launcher_of_another_mpi() -> None:
    """Four processes that each believe to be alone are refused, not trained four times."""
    code = """
import sys
try:
    import mpi4py.MPI
except Exception:
    print("no MPI here"); sys.exit()
from distsgd.parallel import start
from distsgd.core.errors import LauncherError
try:
    start()
except LauncherError as error:
    print(error)
"""
    reported = in_a_process(code, OMPI_COMM_WORLD_SIZE="4", OMPI_COMM_WORLD_RANK="0")
    if reported == "no MPI here":
        pytest.skip("mpi4py finds no MPI library")
    assert "started 4 processes, but MPI sees 1" in reported


@given(
    threads=st.integers(1, 64),
    microbatches=st.integers(1, 64),
    parameters=st.integers(1, 10**9),
    examples=st.integers(1, 999),
)
def test_worker_count(threads: int, microbatches: int, parameters: int, examples: int) -> None:
    count = worker_count(threads, microbatches, parameters, examples)
    assert 1 <= count <= min(threads, microbatches)
    assert count == (min(threads, microbatches) if 6 * parameters * examples >= WORK_THAT_PAYS else 1)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_workers_work_at_the_same_time(count: int) -> None:
    workers = Workers(count)
    together, seen = threading.Barrier(count, timeout=LIMIT), []

    def work(worker: int) -> None:
        together.wait()
        seen.append(worker)

    for _ in range(3):
        workers.run(work)
    workers.close()
    assert sorted(seen) == sorted([*range(count)] * 3)


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_workers_wait_for_all_and_raise(failing: int) -> None:
    workers, done = Workers(3), []

    def work(worker: int) -> None:
        if worker == failing:
            raise KeyError(worker)
        done.append(worker)

    with pytest.raises(KeyError, match=str(failing)):
        workers.run(work)
    assert sorted(done) == [worker for worker in range(3) if worker != failing]
    workers.run(lambda worker: None)
    workers.close()


def ends(command: Callable[[Communicator, Sequence[str]], int], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(runtime, "prepare", lambda: None)
    return commands.run_command(command)


def test_command_that_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["prog", "a", "b"])
    assert ends(lambda communicator, arguments: 75 if arguments == ["a", "b"] else 1, monkeypatch) == 75


@pytest.mark.parametrize(
    ("error", "status"), [(ConfigurationError("a: expected b"), 2), (DistsgdError("it failed"), 1)]
)
def test_command_that_fails(
    error: DistsgdError, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(communicator: Communicator, arguments: Sequence[str]) -> int:
        raise error

    assert ends(command, monkeypatch) == status
    assert capsys.readouterr() == ("", f"distsgd: error: {error}\n")


def test_command_that_cannot_start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> Communicator:
        raise LauncherError("no MPI")

    monkeypatch.setattr("distsgd.parallel.start", refuse)
    for rank, reported in (("0", "distsgd: error: no MPI\n"), ("1", "")):
        monkeypatch.setenv("PMI_RANK", rank)
        assert ends(lambda communicator, arguments: 0, monkeypatch) == 2
        assert capsys.readouterr().err == reported


def test_defects_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(communicator: Communicator, arguments: Sequence[str]) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ends(command, monkeypatch)


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "doctor", "plot", "compare", "launch"])
def test_a_command_sets_the_variables_of_blas_before_numpy_loads(command: str) -> None:
    code = f"import sys, distsgd.cli.{command}; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
