"""python -m distsgd.launch as a user sees it: what it prints, when it starts again, when it stops, what it leaves."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.cases import first_of
from tests.faults.tools import CALLBACK, QUICK, QUIET, Job, fault, launch, mpirun, nothing_left, sha256
from tests.parallel.launch import find_mpirun
from tests.waiting import wait_until

LONG = (*QUICK, "--epochs", "100000", "--checkpoint-every", "20")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("undisturbed")
    with nothing_left(launch(3, folder, *QUIET)) as ended:
        assert ended.status == 0
        assert ended.out.startswith("completed: 4 epochs, 52 steps")
        assert ended.err == ""
    return sha256(folder)


@pytest.mark.long
def test_finished_already(tmp_path: Path) -> None:
    first = launch(2, tmp_path, *QUIET, "--epochs", 1).end()
    with nothing_left(launch(2, tmp_path, *QUIET, "--epochs", 1)) as again:
        assert (again.status, again.out, again.err) == (0, first.out, "")


@pytest.mark.long
def test_dry_run(tmp_path: Path) -> None:
    with nothing_left(launch(2, tmp_path, "--dry-run")) as ended:
        assert ended.status == 0
        assert "model      mlp" in ended.out
        assert ended.err == ""


@pytest.mark.parametrize(
    ("options", "reported"),
    first_of(
        [
            (("--epoch", "3"), "did you mean --epochs?"),
            (("--microbatches", 1), "2 ranks share 1 microbatches"),
            (("--dataset", "missing.npz"), "missing.npz"),
        ]
    ),
)
def test_usage(tmp_path: Path, options: tuple[object, ...], reported: str) -> None:
    with nothing_left(launch(2, tmp_path, *options)) as ended:
        assert ended.status == 2
        assert len(ended.lines) == 1, ended.err
        assert ended.err.startswith("distsgd: error: ")
        assert reported in ended.err


@pytest.mark.long
def test_help(tmp_path: Path) -> None:
    with nothing_left(Job([sys.executable, "-m", "distsgd.launch", "--help"], tmp_path, {})) as ended:
        assert ended.status == 0
        assert "usage: python -m distsgd.launch" in ended.out
        assert "--max-restarts N" in ended.out


def test_a_killed_rank_is_named_and_the_run_continues(tmp_path: Path, undisturbed: str) -> None:
    options = (*QUIET, "--callback", CALLBACK)
    with nothing_left(launch(3, tmp_path, *options, **fault(tmp_path, "SIGKILL", count=23))) as ended:
        assert ended.status == 0
        (printed,) = ended.lines
        assert printed.startswith("distsgd.launch: rank 1 on ")
        assert "was killed by signal 9 (SIGKILL" in printed
        # The last checkpoint, or the one before it where a busy machine was still writing.
        found = re.search(r"in step 23; continuing from step (18|21) with 3 rank\(s\), restart 1 of 3$", printed)
        assert found, printed
    assert sha256(tmp_path) == undisturbed
    assert int((tmp_path / "first-step").read_text().split()[1]) == int(found[1]) + 1


@pytest.mark.long
def test_resume_never_is_not_printed_again(tmp_path: Path, undisturbed: str) -> None:
    launch(2, tmp_path, *QUIET, "--max-steps", 10).end()
    options = (*QUIET, "--resume", "never", "--callback", CALLBACK)
    ended = launch(3, tmp_path, *options, **fault(tmp_path, "SIGKILL", count=23)).end()
    assert ended.status == 0
    assert re.search(r"continuing from step (18|21) ", ended.err), ended.err
    assert sha256(tmp_path) == undisturbed
    assert (tmp_path / "run.1").is_dir()
    assert not (tmp_path / "run.2").exists()


BROKEN = """
import os

import distsgd

RANK = int(os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", 0)))


class Defect(distsgd.Callback):
    def __init__(self):
        from distsgd.training.step import TrainingStep
        run = TrainingStep.run

        def broken(self, order, *arguments, **keywords):
            if order.step == 8 and RANK:
                raise RuntimeError("a defect")
            return run(self, order, *arguments, **keywords)

        TrainingStep.run = broken


class Mistake(distsgd.Callback):
    def on_step(self, step, loss, examples):
        if step == 8:
            raise KeyError("a mistake")


class Daemon(distsgd.Callback):
    def on_start(self, run):
        import subprocess
        subprocess.Popen(["sleep", "600"], env={"PATH": os.environ["PATH"]}, start_new_session=True)
        open(os.path.join(os.environ["TMPDIR"], "left"), "w").close()
"""


@pytest.mark.parametrize(
    ("name", "error"), first_of([("Defect", "RuntimeError: a defect"), ("Mistake", "KeyError: 'a mistake'")])
)
def test_a_failure_that_comes_again_ends_the_run_with_one_traceback(tmp_path: Path, name: str, error: str) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    with nothing_left(launch(3, tmp_path, *QUIET, "--callback", f"broken.py:{name}")) as ended:
        assert ended.status == 1
        assert ended.err.count("Traceback (most recent call last)") == 1
        last = ended.lines[-1]
        assert last.startswith("distsgd: error: ")
        assert error in last
        assert "the second failure without progress, still at the checkpoint of step 6" in last
        assert next(line for line in ended.lines if line.startswith("distsgd.launch: ")).endswith("restart 1 of 3")


@pytest.mark.long
def test_max_restarts(tmp_path: Path) -> None:
    options = (*QUIET, "--callback", CALLBACK)
    with nothing_left(launch(2, tmp_path, *options, own=("--max-restarts", 0), **fault(tmp_path, "exit0"))) as ended:
        assert ended.status == 1
        (printed,) = ended.lines
        assert printed.startswith("distsgd: error: rank 1 on ")
        assert printed.endswith("left early with exit status 0, in step 20")


@pytest.mark.parametrize("name", first_of(["SIGTERM", "SIGINT", "SIGUSR1"]))
def test_one_signal_stops_with_a_checkpoint(tmp_path: Path, name: str) -> None:
    job = launch(2, tmp_path, *LONG)
    job.wait_for(tmp_path / "run" / "checkpoints" / "last.safetensors")
    os.kill(job.process.pid, getattr(signal, name))
    with nothing_left(job) as ended:
        assert ended.status == 75
        assert ended.out.startswith("stopped: ")
        assert ended.err == ""
    step = json.loads((tmp_path / "run" / "summary.json").read_text())["steps"]
    assert (tmp_path / "run" / "checkpoints" / f"step-{step}.safetensors").exists()
    if name == "SIGTERM":
        again = launch(3, tmp_path, *LONG, "--max-steps", step + 1).end()
        assert again.out.startswith("completed: ")


def test_a_signal_at_the_very_beginning(tmp_path: Path) -> None:
    job = launch(2, tmp_path, *LONG)
    wait_until(job.ranks, "a rank", pause=0.005)
    os.kill(job.process.pid, signal.SIGTERM)
    with nothing_left(job) as ended:
        assert ended.status == 75
        assert "1 step" in ended.out


def test_two_signals_end_at_once(tmp_path: Path) -> None:
    job = launch(2, tmp_path, *LONG)
    job.wait_for(tmp_path / "run" / "checkpoints" / "last.safetensors")
    for number in job.ranks().values():
        os.kill(number, signal.SIGSTOP)  # no one writes a checkpoint any more
    for _ in range(2):
        os.kill(job.process.pid, signal.SIGTERM)
        time.sleep(0.3)
    with nothing_left(job) as ended:
        assert ended.status == 128 + signal.SIGTERM


@pytest.mark.long
def test_a_run_under_way_is_left_to_its_owner(tmp_path: Path) -> None:
    job = mpirun(2, tmp_path, *LONG)
    job.wait_for(tmp_path / "run" / "checkpoints" / "last.safetensors")
    with nothing_left(launch(2, tmp_path, *LONG)) as ended:
        assert ended.status == 2
        assert "another process is training in run" in ended.err
        assert len(ended.lines) == 1
    os.kill(job.ranks()[0], signal.SIGTERM)
    assert job.end().out.startswith("stopped: ")


@pytest.mark.long
def test_a_folder_that_is_moved_is_followed(tmp_path: Path) -> None:
    """Where a rank dies later, the run continues in it, and its end is looked for there."""
    job = launch(2, tmp_path, *LONG)
    job.wait_for(tmp_path / "run" / "checkpoints" / "last.safetensors")
    (tmp_path / "run").rename(tmp_path / "moved")
    wait_until(lambda: "was moved to" in job.printed(), job.printed)
    first = job.ranks()
    os.kill(first[1], signal.SIGKILL)
    wait_until(lambda: "continuing from step" in job.printed(), job.printed)
    wait_until(lambda: set(job.ranks().values()) - set(first.values()), "another attempt")
    os.kill(job.process.pid, signal.SIGTERM)
    with nothing_left(job) as ended:
        assert ended.status == 75
    assert json.loads((tmp_path / "moved" / "summary.json").read_text())["status"] == "stopped"
    assert not (tmp_path / "run").exists()


def wrapped(folder: Path, behind: str) -> Path:
    """The mpirun of this environment, with a command after it."""
    path = folder / "mpirun"
    path.write_text(f'#!/bin/sh\n"{find_mpirun()[0]}" "$@"\n[ "$1" = --version ] || {{ {behind}; }}\n')
    path.chmod(0o755)
    return path


@pytest.mark.long
def test_the_summary_is_believed_and_mpirun_is_not(tmp_path: Path) -> None:
    (tmp_path / "fails").mkdir()
    with nothing_left(launch(2, tmp_path / "fails", *QUIET, own=("--mpirun", wrapped(tmp_path, "exit 9")))) as ended:
        assert ended.status == 0
        (printed,) = ended.lines
        assert printed == "distsgd.launch: mpirun exited with status 9; the run is completed"
    (tmp_path / "lies").mkdir()
    fine = tmp_path / "fine"
    fine.write_text("#!/bin/sh\necho 'HYDRA build details:'; echo '    Version: 5.0'\n")
    fine.chmod(0o755)
    with nothing_left(launch(2, tmp_path / "lies", *QUIET, own=("--mpirun", fine))) as ended:
        assert ended.status == 1
        assert "mpirun exited with status 0 and the run isn't done; that is the second failure" in ended.lines[-1]


@pytest.mark.long
def test_what_users_code_leaves_is_cleaned_up(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    with nothing_left(launch(2, tmp_path, *QUIET, "--callback", "broken.py:Daemon")) as ended:
        assert ended.status == 0


@pytest.mark.long
def test_time_is_counted_over_restarts(tmp_path: Path) -> None:
    """Each attempt dies at its hundredth step, so only time that all attempts share ends the run with 75."""
    options, began = (*LONG, "--callback", CALLBACK), time.monotonic()
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    faulty = fault(tmp_path / "one", "SIGKILL", count=100)
    assert launch(2, tmp_path / "one", *options, own=("--max-restarts", 0), **faulty).end().status == 1
    several = ("--max-time", f"{3 * (time.monotonic() - began):.0f}s")  # attempts
    faulty = fault(tmp_path / "many", "SIGKILL", count=100)
    with nothing_left(launch(2, tmp_path / "many", *options, *several, own=("--max-restarts", 50), **faulty)) as ended:
        assert ended.status == 75
        assert "restart 1 of 50" in ended.err


SSH = """#!/bin/sh
while case $1 in -*) true;; *) false;; esac; do shift; done
host=$1; shift
[ -e "{folder}/$host-is-gone" ] && exit 255
exec sh -c "$*"
"""
VANISH = """
import os
import time
from pathlib import Path

import distsgd


class Vanish(distsgd.Callback):
    def on_step(self, step, loss, examples):
        gone = Path("second-is-gone")
        if step == 23 and not gone.exists():
            gone.touch()
            while not Path("run/checkpoints/step-21.safetensors").exists():  # it is written while training continues
                time.sleep(0.01)
            os.kill(os.getpid(), 9)
"""


@pytest.mark.long
def test_a_host_that_is_gone_is_skipped(tmp_path: Path, undisturbed: str) -> None:
    """Hosts that are all this one: what stands for ssh doesn't answer for the second any more."""
    agent = tmp_path / "ssh"
    agent.write_text(SSH.format(folder=tmp_path))
    agent.chmod(0o755)
    (tmp_path / "vanish.py").write_text(VANISH)
    settings = {"HYDRA_LAUNCHER": "ssh", "HYDRA_LAUNCHER_EXEC": str(agent), "PRTE_MCA_plm_ssh_agent": str(agent)}
    job = launch(
        3, tmp_path, *QUIET, "--callback", "vanish.py:Vanish", own=("--hosts", "first:2", "second:1"), **settings
    )
    with nothing_left(job) as ended:
        assert ended.status == 0, ended.err
        assert ended.lines[0] == "distsgd.launch: second no longer answers and is excluded"
        assert ended.lines[1].endswith("continuing from step 21 with 2 rank(s), restart 1 of 3")
        assert len(ended.lines) == 2
    assert sha256(tmp_path) == undisturbed
