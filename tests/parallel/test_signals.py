"""Signals to training and to a program that calls `fit`: before the first step, at a step, under a batch system."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cases import first_of
from tests.parallel.launch import find_mpirun, result, run_command, start
from tests.waiting import LIMIT, wait_until

# How a model keeps a rank before the first step: a wait that Python resumes after a signal, and one call into C.
WAITS = {"sleep": "time.sleep(60)", "C": "hashlib.pbkdf2_hmac('sha256', b'x', b'y', 1_000_000_000)"}
MODEL = """
import hashlib, os, time

import distsgd

open("importing", "w").close()
if os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0")) == "0":
    {wait}


def model(shape, outputs):
    return distsgd.Sequential([distsgd.Dense(64, outputs)])


class Slow(distsgd.Callback):
    def on_step(self, step, loss, examples):
        open("stepping", "w").close()
        time.sleep(0.02)
"""
FIT = """
import signal, sys, time

import numpy as np

import distsgd

handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]


class Slow(distsgd.Callback):
    def on_step(self, step, loss, examples):
        open("stepping", "w").close()
        time.sleep(0.02)


x = np.random.default_rng(0).random((128, 4))
epochs, out = int(sys.argv[1]), sys.argv[2]
options = {"epochs": epochs, "batch_size": 16, "patience": 0, "out": None if out == "-" else out}
mine = []
if "handler" in sys.argv:
    signal.signal(signal.SIGTERM, lambda number, frame: mine.append(number))
try:
    result = distsgd.fit("softmax", (x, np.arange(128) % 4), callbacks=[Slow()] * (epochs > 50), **options)
except distsgd.Interrupted as stop:
    if "catch" not in sys.argv:
        raise
    now = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    sys.stdout.write(f"rank {distsgd.rank()} {stop.exit_status} {now == handlers}\\n")
else:
    sys.stdout.write(f"{result.summary['status']} {mine == [signal.SIGTERM]}\\n")
"""
ANSWER = (
    "distsgd: asked to stop by {}: training stops after its first step, with a checkpoint; "
    "a second signal ends it now\n"
)
SLURM = {"SLURM_JOB_ID": "7"}


class Program:
    """A command that runs, in a group of its own, as a terminal's shell starts it."""

    def __init__(self, folder: Path, ranks: int | None, arguments: list[str], extra: Mapping[str, str]) -> None:
        line = [sys.executable, *arguments]
        if ranks is not None:
            mpirun, reason = find_mpirun()
            if mpirun is None:
                pytest.skip(reason)
            line = [mpirun, "-n", str(ranks), *line]
        self.folder = folder
        self.process = start(line, folder, extra)

    def wait_for(self, name: str) -> None:
        def is_there() -> bool:
            assert self.process.poll() is None, self.process.communicate()
            return (self.folder / name).exists()

        wait_until(is_there, name)

    def signal(self, number: signal.Signals, group: bool = False) -> None:
        (os.killpg if group else os.kill)(self.process.pid, number)

    def end(self) -> tuple[int, str, str]:
        """(the exit status, standard output, standard error)."""
        out, err = self.process.communicate(timeout=LIMIT)
        return self.process.returncode, out, err


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    started: list[Program] = []
    yield started
    for program in started:
        with suppress(ProcessLookupError):
            os.killpg(program.process.pid, signal.SIGKILL)
        program.process.communicate()


def train(
    programs: list[Program], folder: Path, ranks: int | None, wait: str, *more: str, before: tuple[str, ...] = ()
) -> Program:
    (folder / "slow.py").write_text(MODEL.format(wait=wait))
    options = ["--out", "run", "--epochs", "1000", "--batch-size", "100", "--patience", "0", "--quiet", *more]
    arguments = [*before, "-m", "distsgd.train", "--model", "slow.py:model", "--callback", "slow.py:Slow", *options]
    programs.append(Program(folder, ranks, arguments, {}))
    return programs[-1]


def fit(programs: list[Program], folder: Path, ranks: int | None, *arguments: str, **extra: str) -> Program:
    (folder / "fit.py").write_text(FIT)
    programs.append(Program(folder, ranks, ["fit.py", *arguments], extra))
    return programs[-1]


@pytest.mark.parametrize("name", first_of(["SIGTERM", "SIGINT"]))
@pytest.mark.parametrize(("ranks", "wait"), first_of([(None, "C"), (2, "C"), (None, "sleep"), (2, "sleep")], 2))
def test_the_second_signal_before_the_first_step_ends_training(
    programs: list[Program], tmp_path: Path, name: str, ranks: int | None, wait: str
) -> None:
    program, number = train(programs, tmp_path, ranks, WAITS[wait]), getattr(signal, name)
    program.wait_for("importing")
    program.signal(number, group=True)
    time.sleep(1.5)  # longer than what counts as one
    assert program.process.poll() is None, "one signal asks for an end in order"
    program.signal(number, group=True)
    status, out, _ = program.end()
    assert status == -number if ranks is None else status not in (0, 75)
    assert "stopped" not in out


@pytest.mark.parametrize("ranks", first_of([2, None]))
def test_ctrl_c_that_comes_twice_at_once_counts_as_one(
    programs: list[Program], tmp_path: Path, ranks: int | None
) -> None:
    """A terminal sends it to its whole group, and mpirun passes it on."""
    program = train(programs, tmp_path, ranks, "time.sleep(2)")
    program.wait_for("importing")
    program.signal(signal.SIGINT, group=True)
    if ranks is None:
        program.signal(signal.SIGINT)
    status, out, err = program.end()
    assert (status, err) == (75, ANSWER.format("SIGINT"))
    assert "stopped: 0 epochs, 1 step" in out


@pytest.mark.parametrize("ranks", [None, 2])
def test_the_first_signal_before_the_first_step_is_answered(
    programs: list[Program], tmp_path: Path, ranks: int | None
) -> None:
    """By one line of one rank, while the model is still being imported."""
    program = train(programs, tmp_path, ranks, "time.sleep(60)")
    program.wait_for("importing")
    program.signal(signal.SIGTERM, group=True)
    assert program.process.stderr is not None
    assert program.process.stderr.readline() == ANSWER.format("SIGTERM")
    assert program.process.poll() is None


def test_a_hangup_stops_with_a_checkpoint(programs: list[Program], tmp_path: Path) -> None:
    program = train(programs, tmp_path, None, "pass")
    program.wait_for("stepping")
    program.signal(signal.SIGHUP)
    status, out, _ = program.end()
    assert (status, out[:8]) == (75, "stopped:")
    assert (tmp_path / "run" / "checkpoints" / "last.safetensors").exists()


@pytest.mark.long
def test_a_hangup_that_is_ignored_stays_so(programs: list[Program], tmp_path: Path) -> None:
    """As under nohup."""
    start = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.executable, sys.argv[1:])"
    )
    program = train(programs, tmp_path, None, "pass", "--max-steps", "60", before=("-c", start, sys.executable))
    program.wait_for("stepping")
    program.signal(signal.SIGHUP)
    status, out, _ = program.end()
    assert (status, out[:10]) == (0, "completed:")


@pytest.mark.parametrize(("ranks", "name"), first_of([(2, "SIGUSR1"), (None, "SIGTERM")]))
def test_fit_under_a_batch_system_stops_with_a_checkpoint(
    programs: list[Program], tmp_path: Path, ranks: int | None, name: str
) -> None:
    program = fit(programs, tmp_path, ranks, "1000", "run", **SLURM)
    program.wait_for("stepping")
    program.signal(getattr(signal, name))
    status, out, err = program.end()
    assert (status, out) == (75, "")
    (line,) = err.splitlines()
    step = json.loads((tmp_path / "run" / "summary.json").read_text())["steps"]
    assert line == f"distsgd: stopped by {name} at step {step}, with a checkpoint in run; the same call continues"
    (tmp_path / "fit.py").write_text(FIT.replace("callbacks=[Slow()] * (epochs > 50)", "max_steps=int(sys.argv[3])"))
    for ranks_then, out_then in ((ranks, "run"), (None, "whole")):
        done = run_command(ranks_then, [sys.executable, "fit.py", "1000", out_then, str(step + 9)], tmp_path)
        assert done.status == 0, done.text
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_interrupted_is_raised_on_all_ranks_and_handlers_are_restored(programs: list[Program], tmp_path: Path) -> None:
    program = fit(programs, tmp_path, 2, "1000", "run", "catch", LSB_JOBID="3")
    program.wait_for("stepping")
    program.signal(signal.SIGUSR1)
    status, out, _ = program.end()
    assert (status, sorted(out.splitlines())) == (0, ["rank 0 75 True", "rank 1 75 True"])


@pytest.mark.long
def test_a_handler_of_the_programs_own_is_left_alone(programs: list[Program], tmp_path: Path) -> None:
    program = fit(programs, tmp_path, None, "60", "run", "handler", PBS_JOBID="3")
    program.wait_for("stepping")
    program.signal(signal.SIGTERM)
    status, out, err = program.end()
    assert (status, out, err) == (0, "completed True\n", "")


@pytest.mark.parametrize(("out", "extra"), [("run", {}), ("-", SLURM)])
def test_fit_takes_no_signal_without_a_batch_system_or_a_folder(
    programs: list[Program], tmp_path: Path, out: str, extra: dict[str, str]
) -> None:
    program = fit(programs, tmp_path, None, "1000", out, **extra)
    program.wait_for("stepping")
    program.signal(signal.SIGUSR1)
    assert program.end()[0] == -signal.SIGUSR1
