"""A rank that hangs is noticed and named, and one that takes its time isn't mistaken for it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.cases import first_of
from tests.faults.tools import CALLBACK, QUICK, QUIET, fault, mpirun

LIMIT = "3s"
"""For a step, which takes milliseconds; what isn't stuck takes a second longer, elsewhere."""
SLOW = """
import os
import time

import numpy as np

import distsgd
from distsgd.run.files.folder_writer import FolderWriter

RANK = int(os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", 0)))


class Slow(distsgd.Callback):
    def on_step(self, step, loss, examples):
        if step == 3:
            time.sleep(4)


def save_slowly(self, *arguments, save=FolderWriter.save):
    time.sleep(4)
    save(self, *arguments)


class Writer(distsgd.Callback):
    def __init__(self):
        FolderWriter.save = save_slowly


def metric(outputs, targets):
    time.sleep(4)
    return np.zeros(len(targets))


def stuck(shape, outputs):
    model = distsgd.Sequential([distsgd.Dense(64, outputs)])
    return Stuck(model) if RANK == 1 else model


def Stuck(model):
    from distsgd.training.step import TrainingStep
    run = TrainingStep.run

    def hang(self, order, *arguments, **keywords):
        while order.step == 5:
            time.sleep(1)
        return run(self, order, *arguments, **keywords)

    TrainingStep.run = hang
    return model
"""


@pytest.mark.parametrize("rank", first_of([0, 1]))
def test_a_stopped_rank_is_named_and_the_job_ends(tmp_path: Path, rank: int) -> None:
    options = (*QUIET, "--stall-timeout", LIMIT, "--callback", CALLBACK)
    ended = mpirun(3, tmp_path, *options, **fault(tmp_path, "SIGSTOP", rank=rank)).end()
    assert ended.status != 0
    (printed,) = [line for line in ended.lines if line.startswith("distsgd: error: ")]
    assert f"rank {rank} on " in printed
    assert "is stopped in step 20 (process " in printed
    others = "ranks 0 and 2" if rank else "ranks 1 and 2"
    assert f"; {others} have waited " in printed
    assert printed.endswith(" s for it in a barrier in step 20")
    assert ended.processes == []


@pytest.mark.long
def test_a_rank_that_hangs_shows_its_stack(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    own = [word for word in QUIET if word not in ("--hidden", "16")]  # the model has what it is built with
    options = (*own, "--model", "slow.py:stuck", "--stall-timeout", LIMIT, "--stall-stacks", "--communication", "mpi")
    ended = mpirun(2, tmp_path, *options).end()
    assert "rank 1 on" in ended.err
    assert "is busy in step 6" in ended.err
    assert "in an all-gather in step 6" in ended.err
    stack = ended.err.partition("stacks of rank 1 on ")[2]
    assert "in hang" in stack


@pytest.mark.parametrize(
    "slow",
    first_of(
        [
            "--callback slow.py:Slow",
            "--callback slow.py:Writer",
            "--metric slow.py:metric --validation-on rank0",
        ]
    ),
)
def test_who_takes_time_is_not_stuck(tmp_path: Path, slow: str) -> None:
    """A callback, checkpoints and a validation of a rank alone."""
    (tmp_path / "slow.py").write_text(SLOW)
    options = ("--epochs", 1, "--max-steps", 4, "--validate-every", 4, *QUICK)
    ended = mpirun(2, tmp_path, *options, *slow.split(), "--stall-timeout", LIMIT).end()
    assert ended.status == 0, ended.err


@pytest.mark.long
def test_a_job_that_is_suspended_continues(tmp_path: Path) -> None:
    """As batch systems do with jobs that have to wait: all processes are stopped, and continued later."""
    job = mpirun(2, tmp_path, *QUICK, "--epochs", 100_000, "--checkpoint-every", 50, "--stall-timeout", LIMIT)
    job.wait_for(tmp_path / "run" / "checkpoints" / "last.safetensors")
    processes = job.running()
    for number in processes:
        os.kill(number, signal.SIGSTOP)
    time.sleep(4)
    for number in processes:
        os.kill(number, signal.SIGCONT)
    time.sleep(1)
    assert job.process.poll() is None
    os.kill(job.ranks()[1], signal.SIGUSR1)
    ended = job.end()
    assert ended.out.startswith("stopped: "), ended.err


@pytest.mark.long
def test_a_ranks_stacks_can_be_asked_for(tmp_path: Path) -> None:
    job = mpirun(2, tmp_path, *QUICK, "--epochs", 100_000, "--checkpoint-every", 50)
    job.wait_for(tmp_path / "run" / "checkpoints" / "last.safetensors")
    os.kill(job.ranks()[1], signal.SIGUSR2)
    time.sleep(0.3)
    os.kill(job.ranks()[1], signal.SIGUSR1)
    ended = job.end()
    assert ended.out.startswith("stopped: ")
    assert "most recent call first" in ended.err
    assert "distsgd/training/trainer.py" in ended.err
