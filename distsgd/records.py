"""What a run leaves behind: config.toml, metrics.jsonl and summary.json in its folder, written by rank 0 alone."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from distsgd.checkpoint import CheckpointFolder, write_atomically
from distsgd.errors import OutputError, RunFolderError
from distsgd.files import make_folders, read_regular, remove_empty


def finite(value: Any) -> Any:
    """The value for JSON, which has no NaN and no infinity: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


class RunFolder:
    """The folder of one run. Records may be added by one thread while another syncs them."""

    def __init__(self, path: Path, keep: int = 3) -> None:
        self.path = path
        self.checkpoints = CheckpointFolder(path / "checkpoints", keep)
        self._locked: int | None = None
        self.metrics, self.summary = path / "metrics.jsonl", path / "summary.json"
        self._config = ""
        self._unwritten, self._one_at_a_time = b"", threading.Lock()

    def create(self, config_toml: str) -> None:
        """Makes the folder and writes config.toml. Where that fails, the folder is as it was, or not there again."""
        self._config = config_toml
        made: list[Path] = []
        try:
            self.read_metrics()  # cut_metrics will need them: before anything is changed
            made = make_folders(self.checkpoints.folder)
            self._lock()
            for left in (*self.path.glob(".*.tmp"), *self.checkpoints.folder.glob(".*.tmp")):
                left.unlink(missing_ok=True)  # of a process that was killed while it wrote
            write_atomically(self.path / "config.toml", config_toml.encode())
        except OSError as error:
            self.unlock()
            remove_empty(made)
            where = error.filename if isinstance(error.filename, str) else self.path
            raise RunFolderError(
                f"could not write the run folder {self.path} ({where}: {error.strerror or error}); choose another with "
                "--out"
            ) from None

    def make_again(self) -> None:
        """Makes the folder anew where somebody has removed it under the run. Raises RunFolderError."""
        if not self.path.exists():
            self.unlock()  # the old folder's lock keeps nobody out of the new one
            self.create(self._config)

    def _lock(self) -> None:
        """Keeps other processes out until `unlock`, or until this one ends; where the file system can lock at all."""
        if sys.platform == "win32" or self._locked is not None:
            return
        import fcntl

        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise RunFolderError(
                f"another process is training in {self.path}; wait for it, or choose another folder with --out"
            ) from None
        except OSError:
            os.close(descriptor)
            return
        self._locked = descriptor

    def unlock(self) -> None:
        """Lets other processes in."""
        if self._locked is not None:
            os.close(self._locked)
            self._locked = None

    def holds(self, path: Path) -> bool:
        """Whether a path is this folder, or inside it."""
        return path.resolve().is_relative_to(self.path.resolve())

    def aside(self) -> Path:
        """NAME.1, NAME.2, …: the first that is free."""
        number = 1
        while (path := self.path.with_name(f"{self.path.name}.{number}")).exists():
            number += 1
        return path

    def move_aside(self) -> Path | None:
        """Renames the folder, where there is one, to NAME.1, NAME.2, …; returns the new name."""
        if not self.path.exists():
            return None
        aside = self.aside()
        try:
            self.path.rename(aside)
        except OSError as error:
            raise RunFolderError(f"could not move {self.path} to {aside}: {error.strerror or error}") from None
        return aside

    def move_back(self, aside: Path) -> None:
        """Gives a folder that was moved aside its name back, as far as that is possible."""
        with suppress(OSError):
            aside.rename(self.path)

    def cut_metrics(self, step: int) -> None:
        """Drops the records behind `step`, a last line that was cut short, and the summary: the run isn't done now."""
        with self._one_at_a_time, suppress(OutputError):  # what can't be written now can't be cut either: see below
            self._write_metrics()
        try:
            kept = (
                json.dumps(record).encode() + b"\n" for record in self._each_record() if record.get("step", 0) <= step
            )
            write_atomically(self.metrics, b"".join(kept))
            self.summary.unlink(missing_ok=True)
        except OSError as error:
            raise RunFolderError(f"could not write {self.metrics}: {error.strerror or error}") from None

    def read_metrics(self) -> list[dict[str, Any]]:
        """The whole records of metrics.jsonl. Raises OSError."""
        return list(self._each_record())

    def _each_record(self) -> Iterator[dict[str, Any]]:
        """One at a time, for all at once take five times the file's length."""
        if not self.metrics.exists():
            return
        for line in BytesIO(read_regular(self.metrics)):
            try:
                record = json.loads(line.decode("utf-8", errors="replace"))
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and isinstance(record.get("step", 0), int):
                yield record

    def add_metrics(self, record: Mapping[str, Any]) -> None:
        """Appends one record. Raises OutputError where it can't be written now: it is kept, and goes before the next.

        A part of a line that found no room any more is completed later, too.
        """
        with self._one_at_a_time:
            self._unwritten += (json.dumps(finite(record), allow_nan=False) + "\n").encode()
            self._write_metrics()

    def sync_metrics(self) -> None:
        """Makes the records so far last through a power cut, as a checkpoint behind them does. Raises OutputError."""
        with self._one_at_a_time:
            self._write_metrics()
        try:
            descriptor = os.open(self.metrics, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            return  # there is none yet
        except OSError as error:
            raise OutputError(f"could not write {self.metrics}: {error.strerror or error}") from None

    def _write_metrics(self) -> None:
        if not self._unwritten:
            return
        try:
            descriptor = os.open(self.metrics, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                while self._unwritten:
                    self._unwritten = self._unwritten[os.write(descriptor, self._unwritten) :]
            finally:
                os.close(descriptor)
        except OSError as error:
            raise OutputError(f"could not write {self.metrics}: {error.strerror or error}") from None

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json: the proof that a leg came to its end. Raises OutputError."""
        text = json.dumps(finite(summary), indent=2, allow_nan=False) + "\n"
        try:
            write_atomically(self.summary, text.encode())
        except OSError as error:
            raise OutputError(
                f"could not write {self.summary}: {error.strerror or error}; the checkpoints are complete: put this "
                "right, and the same command finishes the run"
            ) from None

    def write_failure(self, message: str, step: int) -> None:
        """Writes a summary of a leg that failed, as far as the folder can be written at all."""
        with suppress(OutputError):
            self.write_summary({"status": "failed", "steps": step, "error": message})

    def read_summary(self) -> dict[str, Any] | None:
        """The summary, or None where there is no whole one."""
        try:
            summary = json.loads(read_regular(self.summary))
        except (OSError, ValueError, RecursionError):
            return None
        return summary if isinstance(summary, dict) else None
