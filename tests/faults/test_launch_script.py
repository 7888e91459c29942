"""python -m distsgd.launch with a program of the user's own in place of distsgd.train."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.cases import first_of
from tests.faults.tools import Job, nothing_left
from tests.parallel.launch import find_mpirun

SCRIPT = """
import os, signal, sys, time
from pathlib import Path

import numpy as np

import distsgd


class Watch(distsgd.Callback):
    def on_step(self, step, loss, examples):
        Path("stepping").touch()
        time.sleep(0.02 if "slow" in sys.argv else 0)
        if step == 9 and "die" in sys.argv and not Path("died").exists():
            Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)


if "exit" in sys.argv:
    sys.exit(3)
if "raise" in sys.argv and distsgd.rank() == 1:
    raise KeyError("in the script")
x = np.random.default_rng(0).random((64, 4))
options = {"epochs": 1000 if "slow" in sys.argv else 4, "batch_size": 16, "checkpoint_every": "4"}
result = distsgd.fit("softmax", (x, np.arange(64) % 4), out="run", callbacks=[Watch()], **options)
if "wait" in sys.argv:
    Path("waiting").touch()
    time.sleep(60)
if distsgd.is_root():
    print(*sys.argv[1:], result.summary["status"], result.summary["steps"], result.summary["parameters_sha256"])
"""


def launch(folder: Path, *arguments: str) -> Job:
    if find_mpirun()[0] is None:
        pytest.skip(find_mpirun()[1])
    (folder / "program.py").write_text(SCRIPT)
    return Job([sys.executable, "-m", "distsgd.launch", "-n", "2", *arguments], folder, {})


@pytest.mark.parametrize("program", [("program.py",), pytest.param(("-m", "program"), marks=pytest.mark.long)])
def test_a_script_and_a_module_run_with_their_arguments(tmp_path: Path, program: tuple[str, ...]) -> None:
    with nothing_left(launch(tmp_path, *program, "--width", "--", "7")) as ended:
        assert (ended.status, ended.err) == (0, "")
        assert ended.out.startswith("--width -- 7 completed 16 ")


def test_hosts_end_where_the_script_begins(tmp_path: Path) -> None:
    with nothing_left(launch(tmp_path, "--hosts", "localhost:2", "program.py", "a")) as ended:
        assert (ended.status, ended.err) == (0, "")
        assert ended.out.startswith("a completed 16 ")


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (
            ("missing.py",),
            "there is no script missing.py; expected the path of a Python program, -m and a module, or --",
        ),
        (("-m", "no_such_module"), "-m: expected a module that Python finds, got 'no_such_module'"),
        (("-m",), "-m: expected a module that Python finds, got ''"),
    ],
)
def test_a_program_that_does_not_exist(tmp_path: Path, arguments: tuple[str, ...], reported: str) -> None:
    with nothing_left(launch(tmp_path, *arguments)) as ended:
        assert ended.status == 2
        (line,) = ended.lines
        assert line.startswith(f"distsgd: error: {reported}")


@pytest.mark.long
def test_the_scripts_own_exit_status(tmp_path: Path) -> None:
    with nothing_left(launch(tmp_path, "program.py", "exit")) as ended:
        assert ended.status == 3
        assert ended.lines[-1].startswith("distsgd: error: ")
        assert "left early with exit status 3" in ended.lines[-1]


def test_an_exception_of_one_rank_ends_the_script(tmp_path: Path) -> None:
    with nothing_left(launch(tmp_path, "program.py", "raise")) as ended:
        assert ended.status == 1
        assert ended.err.count("Traceback (most recent call last)") == 1
        assert ended.lines[-1].startswith("distsgd: error: rank 1 on ")
        assert ended.lines[-1].endswith("raised KeyError: 'in the script'")


@pytest.mark.long
def test_it_is_started_again_where_that_is_asked_for(tmp_path: Path) -> None:
    with nothing_left(launch(tmp_path, "program.py")) as whole:
        assert whole.status == 0
    (tmp_path / "other").mkdir()
    with nothing_left(launch(tmp_path / "other", "program.py", "die")) as ended:
        assert ended.status == 1
        assert "was killed by signal 9" in ended.err
    (tmp_path / "other" / "died").unlink()
    with nothing_left(launch(tmp_path / "other", "--max-restarts", "1", "program.py", "die")) as ended:
        assert ended.status == 0, ended.err
        (line,) = ended.lines
        assert line.endswith("; continuing from the beginning of the script with 2 rank(s), restart 1 of 1")
    assert ended.out.split()[-1] == whole.out.split()[-1]


@pytest.mark.parametrize("name", first_of(["SIGTERM", "SIGINT"]))
def test_a_signal_stops_the_fit_that_runs(tmp_path: Path, name: str) -> None:
    job = launch(tmp_path, "program.py", "slow")
    job.wait_for(tmp_path / "stepping")
    os.kill(job.process.pid, getattr(signal, name))
    with nothing_left(job) as ended:
        assert ended.status == 75
        (line,) = ended.lines
        step = json.loads((tmp_path / "run" / "summary.json").read_text())["steps"]
        assert line.startswith(f"distsgd: stopped by distsgd.launch at step {step}, with a checkpoint in run")


@pytest.mark.parametrize("name", first_of(["SIGTERM", "SIGINT"]))
def test_a_signal_after_a_fit_is_named_as_it_was_sent(tmp_path: Path, name: str) -> None:
    """The ranks get another one, which ends them where no fit takes it."""
    job = launch(tmp_path, "program.py", "wait")
    job.wait_for(tmp_path / "waiting")
    os.kill(job.process.pid, getattr(signal, name))
    with nothing_left(job) as ended:
        assert ended.status == 128 + getattr(signal, name)
        assert f"was ended by the {name} to distsgd.launch" in ended.lines[-1]
        assert ended.lines[-1].endswith(", after a request to stop")
        assert "SIGUSR1" not in ended.err, ended.err
