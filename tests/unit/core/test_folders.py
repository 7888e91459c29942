"""Files are written whole or not at all, into the folder that was opened, and never through what waits for them."""

from __future__ import annotations

import errno
import os
import stat
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from distsgd.core.checkpoint import Checkpoint
from distsgd.core.errors import OutputError
from distsgd.core.folders import Folder, is_leftover, open_folder, write_atomically
from distsgd.run.files.folder import RunFolder

OLD_NAMES = (".config.toml.tmp", ".summary.json.tmp", ".metrics.jsonl.tmp")
OLD_CHECKPOINTS = (".step-1.safetensors.tmp", ".last.safetensors.tmp", ".best.safetensors.tmp")


def held(path: Path) -> Folder:
    folder = Folder(path)
    folder.hold(open_folder(path), lambda descriptor: None)
    return folder


def test_a_folder_that_is_moved_is_written_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "a" / "inside").mkdir(parents=True)
    folder = held(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "a" / "inside").mkdir(parents=True)
    folder.write("file", b"1")
    folder.link("file", "second")
    folder.child("inside").write("file", b"2")
    assert folder.child("new").make()
    with folder.open_own("log", os.O_WRONLY | os.O_CREAT):
        pass
    assert sorted(folder.names()) == sorted(os.listdir(tmp_path / "b")) == ["file", "inside", "log", "new", "second"]
    assert (tmp_path / "b" / "inside" / "file").read_bytes() == b"2"
    folder.remove("second")
    folder.release()
    assert sorted(path.name for path in (tmp_path / "a").rglob("*")) == ["inside"]
    with pytest.raises(OSError, match="let go"):
        folder.write("file", b"3")


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_waits_at_the_names_of_older_versions(tmp_path: Path, kind: str) -> None:
    """Temporary files had names that anybody could know before: a link there was written through, a pipe waited for."""
    precious = tmp_path / "precious"
    precious.write_text("years of work")
    run = RunFolder(tmp_path / "run")
    run.create("")
    for path in (*(run.path / name for name in OLD_NAMES), *(run.checkpoints.folder / n for n in OLD_CHECKPOINTS)):
        path.symlink_to(precious) if kind == "link" else os.mkfifo(path)
    run.cut_metrics(0)
    run.add_metrics({"step": 1})
    run.write_summary({"status": "completed"})
    run.checkpoints.save(Checkpoint(), 1)
    run.checkpoints.save_best(Checkpoint())
    run.unlock()
    assert precious.read_text() == "years of work"
    names = (
        "best.safetensors",
        "config.toml",
        "last.safetensors",
        "metrics.jsonl",
        "step-1.safetensors",
        "summary.json",
    )
    assert run_files(run.path) == list(names)


def run_files(path: Path) -> list[str]:
    return sorted(file.name for file in path.rglob("*") if stat.S_ISREG(file.lstat().st_mode))


@pytest.mark.parametrize("kind", ["link", "pipe", "pipe with a reader", "other link", "folder"])
def test_records_go_into_no_other_file(tmp_path: Path, kind: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("years of work")
    run = RunFolder(tmp_path / "run")
    run.create("")
    reader = None
    if kind == "link":
        run.metrics.symlink_to(precious)
    elif kind == "other link":
        run.metrics.hardlink_to(precious)
    elif kind == "folder":
        run.metrics.mkdir()
    else:
        os.mkfifo(run.metrics)
        reader = os.open(run.metrics, os.O_RDONLY | os.O_NONBLOCK) if "reader" in kind else None
    printed = {"link": "a link", "folder": "directory", "other link": "a second name"}.get(kind, "a pipe")
    with pytest.raises(OutputError, match=rf"could not write .*metrics\.jsonl: .*{printed}"):
        run.add_metrics({"step": 1})
    with pytest.raises(OutputError, match=r"could not write .*metrics\.jsonl"):
        run.sync_metrics()
    assert precious.read_text() == "years of work"
    run.metrics.rmdir() if kind == "folder" else run.metrics.unlink()
    run.add_metrics({"step": 2})
    assert [record["step"] for record in run.read_metrics()] == [1, 2]
    if reader is not None:
        os.close(reader)
    run.unlock()


def test_a_backup_made_of_links_does_not_stop_a_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.create("")
    run.cut_metrics(0)
    run.add_metrics({"step": 1})
    (tmp_path / "backup").hardlink_to(run.metrics)
    run.add_metrics({"step": 2})
    (tmp_path / "lock").hardlink_to(run.path / ".lock")  # and it is killed
    os.unlink(run.path / "config.toml")
    run.unlock()
    (tmp_path / "lock").rename(run.path / ".lock")
    again = RunFolder(run.path)
    again.create("")
    assert [record["step"] for record in again.read_metrics()] == [1, 2]
    again.unlock()


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    mine = (".config.toml.0123456789abcdef.tmp", ".config.toml.tmp")
    theirs = (".notes.tmp", "notes.0123456789abcdef.tmp", ".hidden")
    for folder in (run, run / "checkpoints", run / "plots"):
        folder.mkdir()
        for name in (*mine, *theirs):
            (folder / name).touch()
        (folder / ".link.0123456789abcdef.tmp").symlink_to("/etc/passwd")
    (run / "config.toml").touch()
    created = RunFolder(run)
    created.create("")
    created.unlock()
    for folder in (run, run / "checkpoints", run / "plots"):
        assert {name for name in os.listdir(folder) if is_leftover(name)} == {".link.0123456789abcdef.tmp"}
        assert set(theirs) <= set(os.listdir(folder))


def test_outputs_that_the_user_names(tmp_path: Path) -> None:
    """A link is replaced; what it leads to isn't touched."""
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").read_text() == "new"
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "old"
    write_atomically(tmp_path / ("n" * 255), b"the longest name")


def test_checkpoints_on_another_disk(tmp_path: Path) -> None:
    """The user's own link in place of the folder is followed."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "disk")
    run = RunFolder(tmp_path / "run")
    run.create("")
    run.checkpoints.save(Checkpoint({}, {"step": 3}), 3)
    run.unlock()
    assert sorted(os.listdir(tmp_path / "disk")) == ["last.safetensors", "step-3.safetensors"]


def test_operations_in_progress_keep_the_descriptor(tmp_path: Path) -> None:
    """It isn't closed under a thread that writes, which would then write wherever its number leads to."""
    folder, done = held(tmp_path), threading.Event()
    inside, go = threading.Event(), threading.Event()

    def write() -> None:
        with folder.opened() as descriptor:
            inside.set()
            go.wait(30)
            os.stat("..", dir_fd=descriptor)
            done.set()

    thread = threading.Thread(target=write)
    thread.start()
    inside.wait(30)
    folder.release()
    other = os.open(os.devnull, os.O_RDONLY)
    go.set()
    thread.join()
    os.close(other)
    assert done.is_set()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS])
def test_a_folder_that_cannot_be_synced_is_no_reason_not_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Some network file systems refuse it."""
    sync = os.fsync

    def refusing(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refusing)
    run = RunFolder(tmp_path / "deep" / "run")
    run.create("seed = 1\n")
    run.add_metrics({"step": 1})
    run.sync_metrics()
    run.checkpoints.save(Checkpoint({}, {"step": 1}), 1)
    run.write_summary({"status": "completed"})
    run.unlock()
    found = RunFolder(run.path)
    assert found.read_summary() == {"status": "completed"}
    assert found.checkpoints.newest()[0] is not None


def test_a_sync_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output error"):
        Folder(tmp_path).write("file", b"text")


def test_a_file_system_without_hard_links_gets_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In slices: a checkpoint may be larger than the free memory."""
    data = os.urandom(5 << 20)
    Folder(tmp_path).write("a", data)

    def refusing(*arguments: Any, **keywords: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refusing)
    tracemalloc.start()
    try:
        Folder(tmp_path).link("a", "b")
        assert tracemalloc.get_traced_memory()[1] < len(data)
    finally:
        tracemalloc.stop()
    assert (tmp_path / "b").read_bytes() == data
