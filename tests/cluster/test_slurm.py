"""launch/slurm.sbatch under a real Slurm of four nodes: to its end, stopped in every way, gone on with, cancelled."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cases import first_of
from tests.cluster.slurm import Slurm, why_not
from tests.cluster.tools import is_open_mpi, wait_until
from tests.parallel.launch import ROOT, find_mpirun, result, run_command, summary, train

pytestmark = pytest.mark.timeout(120)

SCRIPT = ROOT / "launch" / "slurm.sbatch"
OPTIONS = ("--epochs", 15, "--batch-size", 128, "--hidden", 32, "--patience", 0)
MPIRUN, NO_MPIRUN = find_mpirun()
OPEN_MPI = MPIRUN is not None and is_open_mpi(MPIRUN)
# srun --mpi=pmi2 makes Open MPI's ranks runs of their own; its --mpi=pmix wants nodes that are machines.
LAUNCHERS = ("mpirun",) if OPEN_MPI else ("srun", "mpirun")
# With it 15 epochs of 13 steps take 4 seconds or more, and the folder shows at which steps the run was started.
SLOW = """
import os
import time
from pathlib import Path

from distsgd import Callback


class Slow(Callback):
    def on_start(self, run):
        with Path("starts").open("a") as starts:
            starts.write(f"{run.steps_done}\\n")

    def on_step(self, step, loss, examples):
        time.sleep(float(os.environ.get("TEST_SECONDS", 0.02)))
"""


# A program of the user's own, on the same four nodes.
FIT = """
import os

import numpy as np

import distsgd
from slow import Slow

x = np.random.default_rng(0).random((512, 8))
out = f"runs/slurm-{os.environ['SLURM_JOB_ID']}"
distsgd.fit("mlp", (x, np.arange(512) % 4), hidden=16, epochs=25, batch_size=64, out=out, callbacks=[Slow()])
"""


@pytest.fixture(scope="module")
def whole_slurm() -> Iterator[Slurm]:
    reason = why_not() or NO_MPIRUN
    if reason:
        pytest.skip(reason)
    with ExitStack() as stack:
        try:
            slurm = stack.enter_context(Slurm())
        except (OSError, RuntimeError) as problem:  # TimeoutError is an OSError
            pytest.skip(f"Slurm doesn't start here: {problem}")
        yield slurm


@pytest.fixture
def slurm(whole_slurm: Slurm) -> Iterator[Slurm]:
    yield whole_slurm
    whole_slurm.clear()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    train(None, out, *OPTIONS)
    return out


@dataclass
class Job:
    """A submitted launch/slurm.sbatch."""

    slurm: Slurm
    folder: Path
    number: str

    @property
    def out(self) -> Path:
        return self.folder / "runs" / f"slurm-{self.number}"

    @property
    def printed(self) -> str:
        path = self.folder / f"distsgd-{self.number}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def starts(self) -> list[int]:
        """The steps that the run's attempts began with."""
        path = self.folder / "starts"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def wait_for_training(self) -> None:
        wait_until(lambda: (self.out / "metrics.jsonl").exists(), 30, lambda: f"{self.printed}\nthe first epoch")

    def end(self, seconds: float = 80) -> str:
        """The state in which the job ended."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "")
        wait_until(lambda: self.slurm.state(self.number) in over, seconds, lambda: f"{self.printed}\nthe job")
        return self.slurm.state(self.number)

    def must_have_gone_on(self, undisturbed: Path) -> None:
        """Ended, after more than one attempt, as if it had never been stopped."""
        assert self.end() == "COMPLETED", self.printed
        assert len(self.starts) > 1
        assert self.starts == sorted(self.starts), "a attempt began before the step where the last one stopped"
        # Its mpirun kills the ranks 0.25 s after SIGTERM, so the last checkpoint may be an older one.
        assert OPEN_MPI or len(set(self.starts)) == len(self.starts), "a attempt came to nothing"
        assert result(self.out) == result(undisturbed)


def submit(slurm: Slurm, folder: Path, launcher: str, *options: object, extra: Mapping[str, str] = {}) -> Job:
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").write_text(f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH\n")
    (folder / "slow.py").write_text(SLOW)
    more = map(str, (*OPTIONS, "--callback", "slow.py:Slow", *options))
    settings = {"LAUNCHER": launcher, "PYTHONPATH": str(ROOT), "OMPI_ALLOW_RUN_AS_ROOT": "1"}
    settings |= {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", **extra}
    number = slurm.run("sbatch", "--parsable", "--time=10", str(SCRIPT), *more, folder=folder, extra=settings)
    return Job(slurm, folder, number)


def test_to_the_end(slurm: Slurm, tmp_path: Path, undisturbed: Path) -> None:
    job = submit(slurm, tmp_path, LAUNCHERS[0])
    assert job.end() == "COMPLETED", job.printed
    assert job.starts == [0]
    assert result(job.out) == result(undisturbed)
    assert "ranks      4 on " in job.printed
    assert f"time       Slurm job {job.number} ends in " in job.printed
    assert slurm.leftovers() == []


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_warned_of_the_time_limit(slurm: Slurm, tmp_path: Path, undisturbed: Path, launcher: str) -> None:
    """As --signal=B:USR1@120 has it: SIGUSR1 to the batch shell alone."""
    job = submit(slurm, tmp_path, launcher)
    job.wait_for_training()
    slurm.run("scancel", "--batch", "--signal=USR1", job.number)
    job.must_have_gone_on(undisturbed)


@pytest.mark.parametrize("launcher", first_of(LAUNCHERS))
def test_a_program_that_calls_fit_is_warned_and_continues(slurm: Slurm, tmp_path: Path, launcher: str) -> None:
    (tmp_path / "fit.py").write_text(FIT)
    job = submit(slurm, tmp_path, launcher, extra={"COMMAND": "python fit.py"})
    job.wait_for_training()
    slurm.run("scancel", "--batch", "--signal=USR1", job.number)
    settings = {"PYTHONPATH": str(ROOT), "SLURM_JOB_ID": "undisturbed", "TEST_SECONDS": "0"}
    (tmp_path / "alone").mkdir()
    for name in ("fit.py", "slow.py"):
        (tmp_path / "alone" / name).write_text((tmp_path / name).read_text())
    done = run_command(None, [sys.executable, "fit.py"], tmp_path / "alone", extra=settings)
    assert done.status == 0, done.text
    undisturbed = tmp_path / "alone" / "runs" / "slurm-undisturbed"
    job.must_have_gone_on(undisturbed)
    assert "distsgd: stopped by SIGUSR1 at step " in job.printed
    assert "Traceback" not in job.printed


def test_preempted(slurm: Slurm, tmp_path: Path, undisturbed: Path) -> None:
    job = submit(slurm, tmp_path, LAUNCHERS[0])
    job.wait_for_training()
    slurm.run(
        "sbatch",
        "--partition=urgent",
        "--nodes=4",
        "--exclusive",
        "--output=/dev/null",
        "--wrap=sleep 1",
        folder=tmp_path,
    )
    job.must_have_gone_on(undisturbed)


@pytest.mark.long
def test_requeued_by_an_operator(slurm: Slurm, tmp_path: Path, undisturbed: Path) -> None:
    job = submit(slurm, tmp_path, LAUNCHERS[0])
    job.wait_for_training()
    slurm.run("scontrol", "requeue", job.number)
    job.must_have_gone_on(undisturbed)


def test_stops_in_time_before_the_limit(slurm: Slurm, tmp_path: Path, undisturbed: Path) -> None:
    """No signal at all: each attempt ends 9 minutes and 46 seconds before the job of 10 minutes would."""
    job = submit(slurm, tmp_path, LAUNCHERS[0], "--max-time", "auto-9m46s", extra={"TEST_SECONDS": "0.085"})
    job.must_have_gone_on(undisturbed)
    assert "; stopping 9m46s before" in job.printed


@pytest.mark.parametrize("launcher", first_of(LAUNCHERS))
def test_scancel_leaves_no_file(slurm: Slurm, tmp_path: Path, launcher: str) -> None:
    job = submit(slurm, tmp_path, launcher)
    job.wait_for_training()
    assert len([words for words in slurm.processes(job.number).values() if "-m distsgd.train" in words]) >= 4
    slurm.run("scancel", job.number)
    assert job.end() == "CANCELLED"
    wait_until(lambda: not slurm.processes(job.number), 5, "the end of what the job started")
    assert slurm.leftovers() == []
    assert OPEN_MPI or summary(job.out)["status"] == "stopped"
    time.sleep(1)
    assert slurm.state(job.number) == "CANCELLED"  # and does not requeue itself


def test_a_killed_rank_ends_the_job(slurm: Slurm, tmp_path: Path) -> None:
    job = submit(slurm, tmp_path, LAUNCHERS[0])
    job.wait_for_training()
    started = slurm.processes(job.number).items()
    ranks = [number for number, words in started if "/python -m distsgd.train " in f"/{words}"]
    assert len(ranks) == 4
    os.kill(ranks[2], signal.SIGKILL)
    assert job.end(seconds=12) == "FAILED", job.printed
    assert not slurm.processes(job.number)


def test_leftovers_would_be_seen(slurm: Slurm, tmp_path: Path) -> None:
    touch = f"touch {' '.join(f'{place}/left-by-a-test' for place in slurm.watched)}; sleep 1"
    number = slurm.run("sbatch", "--parsable", "--output=/dev/null", f"--wrap={touch}", folder=tmp_path)
    wait_until(lambda: slurm.state(number) == "COMPLETED", 20, "the job")
    assert [Path(path).name for path in slurm.leftovers()] == ["left-by-a-test"] * len(slurm.watched)
