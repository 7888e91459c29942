"""A run folder's writer dies after each of its system calls, or the power fails, or one of the calls does: the newest
whole checkpoint is found.

The calls are recorded as they are made, and played back up to each of them: into every state that a disk may be in
after a power cut, where only what was synced is sure to be there.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd.core.checkpoint import Checkpoint
from distsgd.core.errors import CheckpointError
from distsgd.run.files import folder_writer
from distsgd.run.files.background import BackgroundWriter
from distsgd.run.files.folder import RunFolder
from distsgd.run.files.folder_writer import FolderWriter

SAVES, KEEP = 3, 2


def save(folder: RunFolder, step: int) -> None:
    """What the writer does for one checkpoint, records first."""
    folder.add_metrics({"step": step - 1, "loss": 0.5})
    folder.add_metrics({"step": step, "loss": 1 / step})
    folder.sync_metrics()
    folder.checkpoints.save(checkpoint(step), step)
    folder.checkpoints.save_best(Checkpoint({"w": np.arange(3.0)}, {"step": step}))


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint({"w": np.full(5, float(step)), "v": np.full(3, step, np.float32)}, {"step": step})


class Died(BaseException):
    """The process is no more."""


CALLS = ("open", "write", "fsync", "close", "replace", "link", "unlink", "mkdir")


class Mortal:
    """Lets so many of the operating system's functions through; all that come later have no effect."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, life: int) -> None:
        self.life = life
        self._open: set[int] = set()
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, function: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if self.life == 0:
                raise Died
            self.life -= 1
            result = function(*arguments, **keywords)
            if name == "open":
                self._open.add(result)
            elif name == "close":
                self._open.discard(arguments[0])
            return result

        return call

    def bury(self) -> None:
        """Closes what is still open, and so lets go of locks, as the system does."""
        for descriptor in self._open:
            os.close(descriptor)


def test_death_after_each_system_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # for the machine lives on: it would only take time
    for life in itertools.count():
        folder = RunFolder(tmp_path / str(life), KEEP)
        completed = 0
        with pytest.MonkeyPatch.context() as monkeypatch:
            mortal = Mortal(monkeypatch, life)
            try:
                folder.create("seed = 1\n")
                for step in range(1, SAVES + 1):
                    save(folder, step)
                    completed = step
            except Died:
                pass
        survived = mortal.life > 0
        mortal.bury()
        check(RunFolder(tmp_path / str(life), KEEP), completed)
        if survived:
            assert life > 20 * SAVES, "the calls were not counted"
            return


def check(folder: RunFolder, completed: int) -> None:
    """The newest checkpoint is at least the last that was completed, whole, with its records; and the next is found."""
    found, _ = folder.checkpoints.newest()
    step = 0 if found is None else found.document["step"]
    assert completed <= step <= completed + 1
    assert {record["step"] for record in folder.read_metrics()} >= set(range(1, step + 1))
    if found is not None:
        assert found.arrays["w"].tolist() == [float(step)] * 5
    folder.create("seed = 1\n")
    folder.cut_metrics(step)
    save(folder, step + 1)
    assert folder.checkpoints.newest()[0].document["step"] == step + 1  # type: ignore[union-attr]
    assert not list(folder.path.rglob("*.tmp"))
    folder.unlock()


class Refusing:
    """From one call of the operating system's functions on, all, or this one alone, are refused."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, first: int, number: int, lasting: bool) -> None:
        self.calls, self.refused = 0, 0
        self._first, self._number, self._lasting = first, number, lasting
        for name in set(CALLS) - {"close"}:
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name)))

    def _wrap(self, function: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            number, self.calls = self.calls, self.calls + 1
            if number == self._first or (self._lasting and number > self._first):
                self.refused += 1
                raise OSError(self._number, os.strerror(self._number))
            return function(*arguments, **keywords)

        return call


@pytest.mark.parametrize("lasting", [True, False])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE])
def test_refused_at_each_system_call(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    lasting: bool,
) -> None:
    """One sentence says why; the checkpoint before stays, whole; tried again, or with the next one, all is well."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(folder_writer, "BackgroundWriter", functools.partial(BackgroundWriter, first_pause=0.0))
    for first in itertools.count():
        writer = FolderWriter(RunFolder(tmp_path / str(first), KEEP))
        folder = writer.folder
        folder.create("seed = 1\n")
        finalize(writer, 1)
        with pytest.MonkeyPatch.context() as monkeypatch, contextlib.suppress(CheckpointError):
            refusing = Refusing(monkeypatch, first, number, lasting)
            finalize(writer, 2)
        found, problems = folder.checkpoints.newest()
        assert problems == []
        assert found is not None
        assert found.document["step"] == 2 or lasting
        for line in capsys.readouterr().err.splitlines():
            assert re.fullmatch(rf"warning: (could not write .*: {os.strerror(number)}; .*|.* written again)", line)
        finalize(writer, 3)
        assert folder.checkpoints.newest()[0].document["step"] == 3  # type: ignore[union-attr]
        assert [record["step"] for record in folder.read_metrics()] == [1, 2, 3]
        assert not list(folder.path.rglob("*.tmp"))
        writer.close()
        if not refusing.refused:
            assert first > 15, "the calls were not counted"
            return


def finalize(writer: FolderWriter, step: int) -> None:
    """What a run does at its end: all is on the disk when this returns."""
    writer.on_record({"step": step})
    writer.save(checkpoint(step), Checkpoint({"w": np.arange(3.0)}, {"step": step}), step, final=True)


# What follows is a disk. An entry of a folder leads to a file; a file is what was written to it.


@dataclass
class File:
    written: bytes = b""
    synced: bytes = b""


@dataclass(frozen=True)
class Change:
    """Of the entries of a folder: `name` now leads to `file`, or nowhere; `old` no longer leads anywhere."""

    folder: Path
    name: Path
    file: File | None
    old: Path | None = None


@dataclass
class Disk:
    """What a machine's disk has received: files' contents, and folders' changes, by whether they are synced."""

    files: dict[Path, File] = field(default_factory=dict)
    open: dict[int, Path] = field(default_factory=dict)
    synced: dict[Path, list[Change]] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    def change(self, name: Path, file: File | None, old: Path | None = None) -> None:
        self.changes.append(Change(name.parent, name, file, old))

    def sync_folder(self, folder: Path) -> None:
        self.synced.setdefault(folder, []).extend(change for change in self.changes if change.folder == folder)
        self.changes = [change for change in self.changes if change.folder != folder]

    def states(self) -> Iterator[dict[Path, bytes]]:
        """All that may be found after a power cut now: any of the changes that aren't synced, any of the data."""
        for chosen in itertools.product((False, True), repeat=len(self.changes)):
            entries: dict[Path, File] = {}
            lasting = [change for changes in self.synced.values() for change in changes]
            for change in (*lasting, *itertools.compress(self.changes, chosen)):
                if change.old is not None:
                    entries.pop(change.old, None)
                if change.file is None:
                    entries.pop(change.name, None)
                else:
                    entries[change.name] = change.file
            for keep in ("synced", "half", "zeros", "written"):
                yield {name: contents(file, keep) for name, file in entries.items()}


def contents(file: File, keep: str) -> bytes:
    new = file.written[len(file.synced) :]
    if keep == "synced":
        return file.synced
    if keep == "half":
        return file.synced + new[: len(new) // 2]
    return file.synced + (bytes(len(new)) if keep == "zeros" else new)


class Recorder:
    """Makes the real calls, passes each to the disk, and calls `look` after each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, disk: Disk, look: Any) -> None:
        self.disk, self.look = disk, look
        self.real = {name: getattr(os, name) for name in CALLS}
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrap(name))

    def _wrap(self, name: str) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            replay = getattr(self, f"_{name}", None)
            result = self.real[name](*arguments, **keywords)
            if replay is not None:
                replay(result, *self._whole_paths(arguments, keywords))
            self.look()
            return result

        return call

    def _whole_paths(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, ...]:
        """The arguments with paths that are relative to a descriptor's folder made whole."""
        folders = [keywords.get(name) for name in ("dir_fd", "src_dir_fd", "dst_dir_fd") if name in keywords]
        whole = [
            argument if folder is None else self.disk.open[folder] / argument
            for argument, folder in zip(arguments, folders, strict=False)
        ]
        return (*whole, *arguments[len(folders) :])

    def _open(self, descriptor: int, path: Any, flags: int, *rest: Any) -> None:
        self.disk.open[descriptor] = path = Path(path)
        if flags & os.O_CREAT and path not in self.disk.files:
            self.disk.files[path] = File()
            self.disk.change(path, self.disk.files[path])
        elif flags & os.O_TRUNC:
            self.disk.files[path].written = self.disk.files[path].synced = b""

    def _write(self, count: int, descriptor: int, data: Any) -> None:
        self.disk.files[self.disk.open[descriptor]].written += bytes(data[:count])

    def _fsync(self, _: None, descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            self.disk.sync_folder(self.disk.open[descriptor])
        else:
            file = self.disk.files[self.disk.open[descriptor]]
            file.synced = file.written

    def _close(self, _: None, descriptor: int) -> None:
        self.disk.open.pop(descriptor, None)

    def _replace(self, _: None, old: Any, new: Any) -> None:
        self.disk.files[Path(new)] = file = self.disk.files.pop(Path(old))
        self.disk.change(Path(new), file, old=Path(old))

    def _link(self, _: None, old: Any, new: Any) -> None:
        self.disk.files[Path(new)] = file = self.disk.files[Path(old)]
        self.disk.change(Path(new), file)

    def _unlink(self, _: None, path: Any) -> None:
        self.disk.files.pop(Path(path))
        self.disk.change(Path(path), None)


def test_power_cut_after_each_system_call(tmp_path: Path) -> None:
    disk, root, again = Disk(), tmp_path / "run", tmp_path / "again"
    completed, seen = 0, set[Any]()
    folder = RunFolder(root, KEEP)

    def look() -> None:
        for state in disk.states():
            key = (completed, tuple(sorted((str(path), data) for path, data in state.items())))
            if key not in seen:
                seen.add(key)
                restart(state)

    def restart(state: dict[Path, bytes]) -> None:
        found = RunFolder(again, KEEP)
        for left in (*again.glob("*.*"), *again.glob("checkpoints/*"), *again.glob(".*"), *again.glob("*/.*")):
            if left.is_file():
                left.unlink()
        (again / "checkpoints").mkdir(parents=True, exist_ok=True)
        for path, data in state.items():
            (again / path.relative_to(root)).write_bytes(data)
        newest, _ = found.checkpoints.newest()
        step = 0 if newest is None else newest.document["step"]
        assert completed <= step <= completed + 1
        assert {record["step"] for record in found.read_metrics()} >= set(range(1, step + 1))

    with pytest.MonkeyPatch.context() as monkeypatch:
        recorder = Recorder(monkeypatch, disk, lambda: None)

        def paused() -> None:
            """Looking makes calls of its own, which are not to be recorded."""
            with pytest.MonkeyPatch.context() as real:
                for name, function in recorder.real.items():
                    real.setattr(os, name, function)
                look()

        recorder.look = paused
        folder.create("seed = 1\n")
        folder.cut_metrics(0)
        for step in range(1, SAVES + 1):
            save(folder, step)
            completed = step
    folder.unlock()
    assert len(seen) > 50


@pytest.mark.parametrize("broken", ["no fsync of the file", "rename first", "records last"])
def test_the_disk_notices_what_a_careless_writer_would_lose(tmp_path: Path, broken: str) -> None:
    """The test above can fail: each shortcut leads to a state without the newest checkpoint, or its records."""
    root, lost = tmp_path / "run", []
    folder, disk = RunFolder(root, KEEP), Disk()
    with pytest.MonkeyPatch.context() as monkeypatch:
        recorder = Recorder(monkeypatch, disk, lambda: None)
        folder.create("")
        folder.cut_metrics(0)
        if broken == "no fsync of the file":
            recorder._fsync = lambda _, descriptor: (  # type: ignore[method-assign]
                Recorder._fsync(recorder, _, descriptor) if stat.S_ISDIR(os.fstat(descriptor).st_mode) else None
            )
        if broken == "rename first":
            recorder._fsync = lambda _, descriptor: (  # type: ignore[method-assign]
                None if stat.S_ISDIR(os.fstat(descriptor).st_mode) else Recorder._fsync(recorder, _, descriptor)
            )
        if broken == "records last":
            monkeypatch.setattr(folder, "sync_metrics", lambda: None)
        save(folder, 1)
    for state in disk.states():
        where = tmp_path / "again" / "checkpoints"
        where.mkdir(parents=True, exist_ok=True)
        for left in where.parent.rglob("*"):
            if left.is_file():
                left.unlink()
        for path, data in state.items():
            (where.parent / path.relative_to(root)).write_bytes(data)
        found = RunFolder(where.parent)
        newest, _ = found.checkpoints.newest()
        lost.append(newest is None or {record["step"] for record in found.read_metrics()} < {1})
    folder.unlock()
    assert any(lost)
