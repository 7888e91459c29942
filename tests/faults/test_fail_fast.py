"""Under a plain mpirun: whatever happens to one rank ends the whole job soon, and leaves nothing of distsgd."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from benchmarks import faults
from tests.cases import first_of
from tests.faults.tools import CALLBACK, QUICK, QUIET, Ended, Job, fault, mpirun
from tests.parallel.launch import environment, find_mpirun
from tests.waiting import wait_until


def ours(ended: Ended) -> list[str]:
    """What is left without mpirun's and the MPI library's own files, which are their business."""
    own = ("mpich_shm_", "sm_segment", "hydra_hwloc", "ompi.", "prte", "pmix")
    return ended.processes + [name for name in ended.files if not any(word in name for word in own)]


@pytest.mark.parametrize(
    ("how", "rank"),
    first_of(
        [("SIGKILL", 0), ("exit0", 0), ("defect", 2), ("SIGKILL", 2), ("SIGSEGV", 2), ("exit3", 2), ("memory", 2)], 3
    ),
)
def test_one_rank_ends_all(tmp_path: Path, how: str, rank: int) -> None:
    job = mpirun(3, tmp_path, *QUIET, "--callback", CALLBACK, **fault(tmp_path, how, rank=rank))
    ended = job.end()
    assert (tmp_path / "struck").exists()
    assert ours(ended) == []
    assert not (tmp_path / "run" / "summary.json").exists()
    if how == "defect":
        assert ended.err.count("Traceback (most recent call last)") == 1
        assert ended.err.startswith("rank 2 on ")


def test_the_same_command_continues(tmp_path: Path) -> None:
    mpirun(3, tmp_path, *QUIET, "--callback", CALLBACK, **fault(tmp_path, "SIGKILL", rank=0)).end()
    again = mpirun(2, tmp_path, *QUIET).end()
    assert again.status == 0, again.err
    assert again.out.startswith("completed: 4 epochs, 52 steps")
    assert ours(again) == []


@pytest.mark.parametrize("moment", first_of(["reduction", "validation", "checkpoint"]))
def test_at_any_moment(tmp_path: Path, moment: str) -> None:
    ended = mpirun(3, tmp_path, *QUIET, "--callback", CALLBACK, **fault(tmp_path, "exit3", moment, count=2)).end()
    assert (tmp_path / "struck").exists()
    assert ours(ended) == []


def test_a_rank_whose_program_ends_early_is_named(tmp_path: Path) -> None:
    """Python would wait in MPI_Finalize for ever, and the others for it."""
    path, reason = find_mpirun()
    if path is None:
        pytest.skip(reason)
    program = (
        "import sys; import numpy as np; import distsgd; from distsgd.parallel import communicator_of_this_run as me\n"
        "me().rank == 1 and sys.exit()\n"
        "distsgd.fit('softmax', (np.zeros((20, 3)), np.arange(20) % 2))\n"
    )
    ended = Job([path, "-n", "3", sys.executable, "-c", program], tmp_path, environment()).end()
    assert "rank 1 on " in ended.err
    assert "has left early, outside of training; ranks 0 and 2 have waited" in ended.err
    assert ours(ended) == []


@pytest.mark.long
@pytest.mark.parametrize("busy", first_of([0, 4]))
def test_survivors_leave_where_mpirun_does_not_notice(tmp_path: Path, busy: int) -> None:
    """As MPICH's didn't once on a busy machine; here because it is stopped itself."""
    with faults.busy(busy):
        job = mpirun(3, tmp_path, *QUICK, "--epochs", 100_000, "--checkpoint-every", 50)
        job.wait_for(tmp_path / "run" / "checkpoints" / "last.safetensors")
        ranks = job.ranks()
        launchers = job.running() - set(ranks.values())
        for number in launchers:
            os.kill(number, signal.SIGSTOP)
        os.kill(ranks[1], signal.SIGKILL)
        wait_until(lambda: not set(ranks.values()) & job.running(), "the survivors' end")
        for number in launchers:
            os.kill(number, signal.SIGCONT)
        ended = job.end()
    assert ended.status != 0
    printed = [line for line in ended.lines if line.startswith("distsgd: error: ")]
    # mpirun, which passes on what ranks print, may have other things to do by now; and on a busy machine the second
    # rank may speak, too, while the first is held up.
    assert len(printed) <= 2
    assert all("rank 1 on " in line and "has left early, " in line for line in printed)
    assert ours(ended) == []


def test_the_launchers_own_death_ends_all(tmp_path: Path) -> None:
    job = mpirun(3, tmp_path, *QUICK, "--epochs", 100_000, "--checkpoint-every", 50)
    job.wait_for(tmp_path / "run" / "checkpoints" / "last.safetensors")
    os.kill(job.process.pid, signal.SIGKILL)
    assert ours(job.end()) == []


def test_a_signal_before_training_begins_is_not_lost(tmp_path: Path) -> None:
    """It comes while the ranks import what they need, and stops them after their first step."""
    path, reason = find_mpirun()
    if path is None:
        pytest.skip(reason)
    program = (
        "import os, signal, sys; from distsgd.cli import train; signals = train.Signals; init = signals.__init__\n"
        "signals.__init__ = lambda self, **how: (init(self, **how), os.kill(os.getpid(), signal.SIGUSR1))[0]\n"
        f"sys.argv = ['train', '--out', 'run', '--epochs', '1000', *{list(QUICK)}]; sys.exit(train.main())\n"
    )
    ended = Job([path, "-n", "2", sys.executable, "-c", program], tmp_path, environment()).end()
    assert ended.out.startswith("stopped: 0 epochs, 1 step"), ended.err
