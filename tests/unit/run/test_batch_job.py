"""How long a batch job still lasts, as reported by commands that print what those of Slurm, PBS and LSF do."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from distsgd.core.errors import ConfigurationError
from distsgd.run.batch_job import Job, current_job, in_words, time_limit
from distsgd.run.config import TrainConfig
from tests.parallel.launch import module, summary


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first on PATH; `say` puts a command there."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def say(folder: Path, command: str, text: str, expected: str = "") -> None:
    """From now on `command` prints `text`, unless its arguments are others than expected."""
    check = f'[ "$*" = "{expected}" ] || exit 2\n' if expected else ""
    (folder / command).write_text(f"#!/bin/sh\n{check}cat <<'END'\n{text}\nEND\n")
    (folder / command).chmod(0o755)


def test_outside_any_job() -> None:
    assert current_job({}) is None
    assert time_limit("auto", {}) == (None, "")


@pytest.mark.parametrize(
    ("printed", "seconds"),
    [
        ("1-02:03:04", 93784), ("3:59:58", 14398), ("09:58", 598), ("0:45", 45), ("0", 0),
        ("UNLIMITED", None), ("NOT_SET", None), ("INVALID", None), ("", None), ("slurm_load_jobs error: Timeout", None),
    ],
)  # fmt: skip
def test_slurm(answers: Path, printed: str, seconds: float | None) -> None:
    say(answers, "squeue", printed, "--noheader --jobs 17 --format %L")
    assert current_job({"SLURM_JOB_ID": "17"}) == Job("Slurm job 17", seconds)


def test_newer_slurm_is_not_asked(answers: Path) -> None:
    say(answers, "squeue", "5:00")
    job = current_job({"SLURM_JOB_ID": "17", "SLURM_JOB_END_TIME": str(int(time.time()) + 1000)})
    assert job is not None
    assert job.seconds_left is not None
    assert 990 < job.seconds_left <= 1000


def ago(seconds: float) -> str:
    return time.asctime(time.localtime(time.time() - seconds))


OPENPBS = """Job Id: 42.head
    Job_Name = distsgd
    resources_used.walltime = 00:09:00
    job_state = R
    exec_vnode = (node1:ncpus=1)+(node2:ncpus=1)+(node3:ncpus=1)+(node4:ncpus=1
\t)
    Resource_List.select = 4:ncpus=1:mpiprocs=1
    Resource_List.walltime = {limit}
    stime = {began}
    Variable_List = PBS_O_HOME=/home/ada,PBS_O_PATH=/usr/bin:/bin,
\tPBS_O_WORKDIR=/home/ada"""


def test_openpbs_counts_from_the_start_of_the_job(answers: Path) -> None:
    say(answers, "qstat", OPENPBS.format(limit="04:00:00", began=ago(600)), "-f 42.head")
    job = current_job({"PBS_JOBID": "42.head"})
    assert job is not None
    assert job.seconds_left is not None
    assert 4 * 3600 - 605 < job.seconds_left <= 4 * 3600 - 599
    assert job.name == "PBS job 42.head"


@pytest.mark.parametrize(
    ("limit", "began"),
    [("", ago(0)), ("4 hours", ago(0)), ("01:00:00", "yesterday"), ("1:00", "")],
    ids=["no limit", "words", "no time", "no start"],  # the same for workers that collect a second apart
)
def test_openpbs_without_limit_or_start(answers: Path, limit: str, began: str) -> None:
    say(answers, "qstat", OPENPBS.format(limit=limit, began=began))
    assert current_job({"PBS_JOBID": "42.head"}) == Job("PBS job 42.head", None)


def test_torque_says_what_remains(answers: Path) -> None:
    say(answers, "qstat", OPENPBS.format(limit="04:00:00", began=ago(600)) + "\n    Walltime.Remaining = 8598")
    assert current_job({"PBS_JOBID": "42.head"}) == Job("PBS job 42.head", 8598)


@pytest.mark.parametrize(
    ("printed", "seconds"), [("3:58 L", 14280), ("0:05 L", 300), ("1:10 E", None), ("0:00 X", None), ("-", None)]
)
def test_lsf(answers: Path, printed: str, seconds: float | None) -> None:
    say(answers, "bjobs", printed, "-noheader -o time_left 7")
    assert current_job({"LSB_JOBID": "7", "LSB_JOBINDEX": "0"}) == Job("LSF job 7", seconds)


def test_an_element_of_an_lsf_array(answers: Path) -> None:
    say(answers, "bjobs", "0:10 L", "-noheader -o time_left 7[3]")
    assert current_job({"LSB_JOBID": "7", "LSB_JOBINDEX": "3"}) == Job("LSF job 7", 600)


@pytest.mark.parametrize("variable", ["SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID"])
def test_a_job_without_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    seconds, why = time_limit("auto", {variable: "5"})
    assert seconds is None
    assert why.endswith("job 5 doesn't say when it ends; --max-time does")


def test_a_command_that_hangs(answers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distsgd.run.batch_job.ASK_SECONDS", 0.2)
    (answers / "squeue").write_text("#!/bin/sh\nexec sleep 600\n")
    (answers / "squeue").chmod(0o755)
    assert current_job({"SLURM_JOB_ID": "5"}) == Job("Slurm job 5", None)


@pytest.mark.parametrize(
    ("left", "text", "seconds", "why"),
    [
        ("4:00:00", "auto", 14280, "Slurm job 5 ends in 4h; stopping 2m before"),
        ("10:00", "auto", 540, "Slurm job 5 ends in 10m; stopping 1m before"),
        ("4:00:00", "auto-10m", 13800, "Slurm job 5 ends in 4h; stopping 10m before"),
        ("5:00", "auto-10m", 0, "Slurm job 5 ends in 5m; stopping 10m before"),
        ("0", "auto", 0, "Slurm job 5 ends in 0s; stopping 0s before"),
        ("4:00:00", "3h50m", 13800, ""),
        ("4:00:00", "never", None, ""),
        ("4:00:00", None, None, ""),
        ("UNLIMITED", "auto", None, "Slurm job 5 doesn't say when it ends; --max-time does"),
    ],
)
def test_what_max_time_makes_of_it(answers: Path, left: str, text: str | None, seconds: float | None, why: str) -> None:
    say(answers, "squeue", left)
    assert time_limit(text, {"SLURM_JOB_ID": "5"}) == (seconds, why)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0s"),
        (45.4, "45s"),
        (90, "1m30s"),
        (600, "10m"),
        (13800, "3h50m"),
        (14399, "3h59m"),
        (90000, "1d1h"),
        (-3, "0s"),
    ],
)
def test_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


@pytest.mark.parametrize("text", ["auto", "auto-90s", "never", "3h50m"])
def test_the_option_takes(text: str) -> None:
    assert TrainConfig(max_time=text).max_time == text


@pytest.mark.parametrize("text", ["auto-", "auto-soon", "automatic", "auto5m", "Never"])
def test_the_option_refuses(text: str) -> None:
    with pytest.raises(ConfigurationError, match="max_time: expected a time such as"):
        TrainConfig(max_time=text)


def test_training_stops_before_the_job_ends(answers: Path) -> None:
    say(answers, "squeue", "1:00:00")
    options = ("--epochs", 10**6, "--patience", 0, "--hidden", 8, "--out", answers / "run")
    done = module(None, "train", answers, *options, "--max-time", "auto-59m59s", extra={"SLURM_JOB_ID": "17"})
    assert done.status == 75
    assert "time       Slurm job 17 ends in 1h; stopping 59m59s before\n" in done.out
    assert done.out.splitlines()[-1].startswith("stopped: ")
    assert 1 <= summary(answers / "run")["steps"] < 7 * 10**6


def test_training_asks_of_its_own_accord(answers: Path) -> None:
    say(answers, "squeue", "5:00")
    done = module(None, "train", answers, "--epochs", 1, "--out", answers / "run", extra={"SLURM_JOB_ID": "17"})
    assert done.status == 0
    assert "time       Slurm job 17 ends in 5m; stopping 30s before\n" in done.out
