"""One run at a time in a folder: who holds it, what a lock file may be, and what happens where there are no locks."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd.core.errors import RunFolderError
from distsgd.core.locks import lock_folder
from distsgd.run.files.folder import RunFolder
from distsgd.run.fit import fit
from tests.parallel.launch import environment
from tests.waiting import LIMIT

X = np.arange(60.0).reshape(20, 3) % 7
QUICK = {"epochs": 1, "batch_size": 10, "validation_fraction": 0.0}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distsgd.core.locks.PATIENCE", 0.0)


def train(out: Path, **options: object) -> None:
    fit("softmax", (X, np.arange(20) % 2), out=str(out), **{**QUICK, **options})


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Another process, which prints a line when it has the lock, or has not got it."""
    line = [sys.executable, "-c", f"import os, sys, time\nfrom pathlib import Path\n{code}", *map(str, arguments)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment())


HOLD = """
from distsgd.run.files.folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
folder.create("")
print("has it", flush=True)
"""


def listen(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_the_second_learns_who_is_first(tmp_path: Path) -> None:
    first = child(HOLD + "time.sleep(600)", tmp_path / "run")
    try:
        assert listen(first) == "has it"
        path = tmp_path / "run" / ".lock"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(
            RunFolderError, match=rf"another process is training in .*run \(process {first.pid} on .*sin"
        ):
            train(tmp_path / "run", resume="never")
        assert os.listdir(tmp_path) == ["run"], "nothing is moved aside"
    finally:
        end(first)
    assert path.exists(), "the process had no time to remove it"
    train(tmp_path / "run")
    assert not path.exists()


def test_a_child_of_a_fork_does_not_keep_the_folder(tmp_path: Path) -> None:
    code = (
        "if os.fork() == 0:\n    print(os.getpid(), flush=True)\n    os.close(1)\n    time.sleep(600)\ntime.sleep(600)"
    )
    first = child(HOLD + code, tmp_path / "run")
    assert listen(first) == "has it"
    left = int(listen(first))
    try:
        end(first)
        train(tmp_path / "run")
    finally:
        os.kill(left, signal.SIGKILL)


def test_one_at_a_time(tmp_path: Path) -> None:
    """Lock files are made and removed all the time; still, never are two processes inside."""
    code = """
from distsgd.core.locks import lock_folder
from distsgd.core.errors import RunFolderError
path, inside, times = Path(sys.argv[1]) / "run", Path(sys.argv[1]) / "inside", 0
while times < 60:
    try:
        locked = lock_folder(path)
    except RunFolderError:
        continue
    os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
    os.unlink(inside)
    if times % 10 == 0:  # as --resume never does
        path.rename(path.with_name(f"aside-{os.getpid()}-{times}"))
    locked.folder.release()
    times += 1
print(times)
"""
    others = [child(code, tmp_path) for _ in range(3)]
    assert [process.communicate(timeout=LIMIT)[0].strip() for process in others] == ["60"] * 3
    assert [process.returncode for process in others] == [0] * 3


def linked(path: Path, precious: Path) -> None:
    path.symlink_to(precious)


def hard_linked(path: Path, precious: Path) -> None:
    path.hardlink_to(precious)


def pipe(path: Path, precious: Path) -> None:
    os.mkfifo(path)


def folder(path: Path, precious: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [linked, hard_linked, pipe, folder])
def test_what_is_no_lock_file(tmp_path: Path, make: Callable[[Path, Path], None]) -> None:
    precious = tmp_path / "precious"
    precious.write_text("years of work")
    precious.chmod(0o600)
    train(tmp_path / "run")
    make(tmp_path / "run" / ".lock", precious)
    with pytest.raises(
        RunFolderError, match=r"can't lock the run folder .*run: expected \.lock in it to be a file of y"
    ):
        train(tmp_path / "run", epochs=2)
    assert precious.read_text() == "years of work"
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_lock_file_that_others_may_open_is_closed_to_them(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / ".lock"
    path.touch()
    path.chmod(0o666)
    locked = lock_folder(tmp_path / "run")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    locked.folder.release()
    assert not path.exists()


def test_any_bytes_in_a_lock_file(tmp_path: Path) -> None:
    for content in (
        b"\xff",
        b"[]",
        b'{"host": [1], "process": 1e999}',
        b'{"read": 1}',
        b'{"host": "\x1b[2J"}',
        b"[" * 3000,
    ):
        (tmp_path / ".lock").write_bytes(content)
        (tmp_path / ".lock").chmod(0o600)
        with open(tmp_path / ".lock", "rb+") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(RunFolderError, match="another process is training in") as caught:
                lock_folder(tmp_path)
            assert str(caught.value).isprintable()
        lock_folder(tmp_path).folder.release()


def refuse_locks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    """It is reported once, and what would move another run's files is refused."""
    refuse_locks(monkeypatch, number)
    train(tmp_path / "run")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"warning: the file system of {tmp_path / 'run'} has no locks ({os.strerror(number)}), so no"
    )
    with pytest.raises(RunFolderError, match=r"--resume never would move .* no locks"):
        train(tmp_path / "run", resume="never")
    assert os.listdir(tmp_path) == ["run"]
    train(tmp_path / "new", resume="never")


def test_without_locks_a_run_that_may_still_be_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = child(HOLD + "time.sleep(600)", tmp_path / "run")
    try:
        assert listen(first) == "has it"
        refuse_locks(monkeypatch, errno.ENOLCK)
        train(tmp_path / "run")
    finally:
        end(first)
    assert f"has not ended in order (process {first.pid} on " in capsys.readouterr().err


def test_a_start_waits_for_one_that_is_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distsgd.core.locks.PATIENCE", 600.0)
    first = child(HOLD + "time.sleep(1)\nfolder.unlock()", tmp_path / "run")
    assert listen(first) == "has it"
    train(tmp_path / "run")
    first.communicate()


def test_a_launcher_that_has_seen_the_end_waits_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file server may take a minute to miss a host that is lost, and its locks with it."""
    monkeypatch.setenv("DISTSGD_LAUNCH", "this one")
    first = child(HOLD + "time.sleep(1)\nfolder.unlock()", tmp_path / "run")
    assert listen(first) == "has it"
    train(tmp_path / "run")
    first.communicate()


def test_a_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    train(tmp_path / "run")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(RunFolderError, match="holds a run with another configuration"):
        train(tmp_path / "run", seed=9)
    with pytest.raises(Exception, match="there is no checkpoint"):
        train(tmp_path / "deep" / "new", resume=str(tmp_path / "missing"))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert os.listdir(tmp_path) == ["run"]


def test_what_a_write_in_progress_does_not_finish_is_not_let_go(tmp_path: Path) -> None:
    """The folder stays locked as long as the background thread writes into it, and nothing new begins."""
    run = RunFolder(tmp_path / "run")
    run.create("")
    with run.files.opened():
        run.unlock()
        with pytest.raises(RunFolderError, match="another process is training"):
            RunFolder(tmp_path / "run").create("")
        with pytest.raises(OSError, match="let go of its folder"):
            run.files.write("late", b"")
    again = RunFolder(tmp_path / "run")
    again.create("")
    again.unlock()


def test_a_folder_that_takes_the_place_of_the_one_to_be_moved_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look and the rename: another's run stays where it was."""
    run, rename = RunFolder(tmp_path / "run"), os.rename
    run.create("seed = 1")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.toml").write_text("seed = 2")

    def late(source: Any, target: Any) -> None:
        if (tmp_path / "other").exists():
            rename(tmp_path / "run", tmp_path / "away")
            rename(tmp_path / "other", tmp_path / "run")
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(RunFolderError, match="was moved while this run began"):
        run.create("seed = 3", anew=True)
    run.unlock()
    assert sorted(os.listdir(tmp_path)) == ["away", "run"]
    assert (tmp_path / "run" / "config.toml").read_text() == "seed = 2"
