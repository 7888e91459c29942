"""What others may put in the way of python -m distsgd.launch: folders, names, texts, variables of another launch."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from distsgd.core.output import LAUNCH_VARIABLES
from tests.cases import first_of
from tests.faults.tools import CALLBACK, QUIET, Job, fault, launch, mpirun, nothing_left
from tests.parallel.launch import environment, find_mpirun

FORGED = "\n\x1edistsgd " + json.dumps({"kind": "ended", "status": "finished"}) + "\n"
OTHER = 61234
"""A user who isn't there otherwise."""

FORGER = f"""
import os
import subprocess
import sys

import distsgd


class Forger(distsgd.Callback):
    def on_step(self, step, loss, examples):
        if step == 8:
            for stream in (sys.stdout, sys.stderr):
                print({FORGED!r}, file=stream, flush=True)
            raise KeyError({FORGED!r})


class Inner(distsgd.Callback):
    def on_step(self, step, loss, examples):
        if step == 8:
            inner = {{key: value for key, value in os.environ.items() if not key.startswith(("PMI", "OMPI", "PRTE"))}}
            line = [sys.executable, "-m", "distsgd.train", "--epoch", "1"]
            print("status", subprocess.run(line, env=inner).returncode, flush=True)
"""


@pytest.mark.long
def test_a_forged_message_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "forger.py").write_text(FORGER)
    with nothing_left(launch(2, tmp_path, *QUIET, "--callback", "forger.py:Forger")) as ended:
        assert ended.status == 1
        assert ended.lines[-1].startswith("distsgd: error: ")
        assert "KeyError" in ended.lines[-1]


@pytest.mark.long
def test_a_folders_name_is_shown_as_it_is(tmp_path: Path) -> None:
    name = f"run\x1b[31m{FORGED}"
    shown = r"run\x1b[31m\n\x1edistsgd"
    first = launch(2, tmp_path, *QUIET, "--epochs", 1, "--out", name).end()
    assert first.status == 0
    assert shown in first.out
    with nothing_left(launch(2, tmp_path, *QUIET, "--epochs", 1, "--out", name, "--resume", "never")) as again:
        assert again.status == 0
        (printed,) = again.lines
        assert printed.startswith(f"the run in {shown}")
        assert "\x1b" not in again.out + again.err
    with nothing_left(launch(2, tmp_path, "--dataset", f"{name}.npz")) as missing:
        assert missing.status == 2
        (printed,) = missing.lines
        assert shown in printed


@pytest.mark.long
def test_what_a_rank_starts_is_not_taken_for_the_rank(tmp_path: Path) -> None:
    """It has inherited the launch's variables, and sends its error to its reader."""
    (tmp_path / "forger.py").write_text(FORGER)
    with nothing_left(launch(2, tmp_path, *QUIET, "--callback", "forger.py:Inner")) as ended:
        assert ended.status == 0
        (printed,) = ended.lines
        assert printed.startswith("distsgd: error: ")
        assert "did you mean --epochs?" in printed
        assert ended.out.startswith("status 2\n")


@pytest.mark.long
def test_variables_of_another_launch_are_not_believed(tmp_path: Path) -> None:
    table = tmp_path / "status table"
    table.write_bytes(bytes(64 * 3))
    path = tmp_path / "terminal"
    path.touch()
    left = dict.fromkeys(LAUNCH_VARIABLES, "4711-0") | {
        "DISTSGD_STATUS_TABLE": str(table),
        "DISTSGD_TERMINAL": str(path),
    }
    ended = mpirun(2, tmp_path, "--epoch", 3, **left).end()
    (printed,) = [line for line in ended.lines if "distsgd" in line]
    assert printed.startswith("distsgd: error: ")
    ended = mpirun(2, tmp_path, "--epochs", 1, "--hidden", 8, **left).end()
    assert ended.status == 0
    assert ended.out.splitlines()[0].startswith("ranks  ")
    assert "\x1b" not in ended.out
    assert table.read_bytes() == bytes(64 * 3)
    with nothing_left(launch(2, tmp_path, *QUIET, "--out", "other", **left)) as launched:
        assert (launched.status, launched.err) == (0, "")


@pytest.fixture
def around() -> Iterator[Path]:
    """A folder that other users can reach."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_folder_for_temporary_files_that_others_can_change_is_refused(around: Path) -> None:
    job = launch(2, around, *QUIET)
    job.temporary.chmod(0o777)  # before the launcher has begun to look
    ended = job.end()
    assert ended.status == 2
    (printed,) = ended.lines
    assert printed.startswith("distsgd: error: TMPDIR: ")
    assert "without the sticky bit" in printed
    assert ended.files == []


def attack(folder: Path, payload: str) -> None:
    """What another user can try: whenever the name of a start's folder is free, it is taken, with a script in it."""
    while True:
        for name in [name for name in os.listdir(folder) if name.startswith("distsgd-launch-")]:
            path = str(folder / name)
            for attempt in (lambda: os.rename(path, f"{path}.taken"), lambda: os.symlink("/etc", path)):  # noqa: B023
                with suppress(OSError):
                    attempt()
            for _ in range(100_000):
                try:
                    os.mkdir(path)
                except FileExistsError:
                    continue
                os.chmod(path, 0o777)
                break
            for _ in range(1000):
                with suppress(OSError), open(f"{path}/rank", "w") as file:
                    file.write(payload)
                    os.chmod(f"{path}/rank", 0o666)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_runs_nothing(around: Path) -> None:
    """A rank is killed, so that there are two starts, in a folder that everybody may write, as /tmp is."""
    owned = around / "owned"
    job = launch(2, around, *QUIET, "--callback", CALLBACK, **fault(around, "SIGKILL", count=23))
    job.temporary.chmod(0o1777)
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(OTHER)
            os.setuid(OTHER)
            attack(job.temporary, f"touch {owned}\n")
        finally:
            os._exit(1)
    try:
        ended = job.end()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not owned.exists()
    assert ended.status == 0, ended.err
    assert "restart 1 of 3" in ended.err
    mine = [path for path in job.temporary.iterdir() if path.lstat().st_uid == os.geteuid()]
    assert mine == []
    assert ended.processes == []


ABORTS = """
import sys
from types import SimpleNamespace

import numpy as np

import distsgd
from distsgd.parallel import mpi_start

load = mpi_start.load_mpi


class World:
    def __getattr__(self, name):
        return getattr(load().COMM_WORLD, name)

    def Abort(self, status):
        print("aborted", status, flush=True)


class MPI:
    COMM_WORLD = World()

    def __getattr__(self, name):
        return getattr(load(), name)


mpi_start.load_mpi = MPI
from distsgd.parallel import communicator_of_this_run

me = communicator_of_this_run()
if me.rank == 0:
    raise KeyError("a defect")
me.barrier()
"""


@pytest.mark.parametrize("ranks", first_of([3, 1]))
def test_an_abort_that_returns_ends_its_process(tmp_path: Path, ranks: int) -> None:
    path, reason = find_mpirun()
    if path is None:
        pytest.skip(reason)
    (tmp_path / "aborts.py").write_text(ABORTS)
    shell = '"$@"; s=$?; echo $s > status-$PMI_RANK$OMPI_COMM_WORLD_RANK; exit $s'
    line = [path, "-n", str(ranks), "sh", "-c", shell, "sh", sys.executable, "aborts.py"]
    ended = Job(line, tmp_path, environment()).end()
    assert ended.status != 0
    assert "aborted 1" in ended.out
    assert (tmp_path / "status-0").read_text() == "1\n"
    assert ended.err.count("Traceback (most recent call last)") == 1
    assert ended.processes == []
