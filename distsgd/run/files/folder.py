"""The files of a run: config.toml, metrics.jsonl and summary.json in its folder, written by rank 0 alone."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from distsgd.core.checkpoint_folder import CheckpointFolder
from distsgd.core.device import Array
from distsgd.core.errors import DistsgdError, OutputError, RunFolderError
from distsgd.core.files import expanded, remove_empty
from distsgd.core.folders import Folder, Identity, is_at, is_leftover, path_of, sync
from distsgd.core.locks import LOCK_FILE, FolderInUseError, lock_folder
from distsgd.core.output import counted
from distsgd.run.compared.digests import digest_of_rows
from distsgd.run.config import TrainConfig
from distsgd.run.files.records import ROWS, UNENDED, Reading, encode, finite, missing, repaired

_SUMMARY_LIMIT = 64 << 20  # bytes


def _npy(rows: Array) -> bytes:
    """A .npy file of these rows."""
    file = BytesIO()
    np.save(file, rows)
    return file.getvalue()


def run_folder(config: TrainConfig) -> RunFolder:
    """The run's folder, whether or not it exists."""
    path = Path(os.path.expanduser(config.out)) if config.out is not None else Path("runs") / config.name()
    return RunFolder(path, config.keep)


class RunFolder:
    """The folder of one run. Records may be added by one thread while another syncs them.

    `lock` comes before all that writes. From then on the run has this very folder, wherever it is moved to.
    """

    def __init__(self, path: Path, keep: int = 3) -> None:
        self._whole = Path(os.path.abspath(path))  # the user's own code may change the working directory
        self.path = path = self._whole if path.name in ("", "..") else path
        self._keep = keep
        self.metrics, self.summary = path / "metrics.jsonl", path / "summary.json"
        self._use(Folder(path))
        self._unlockable: RunFolderError | None = None
        self._can_lock = self._stays = True
        self._made: list[Path] = []
        self._config = ""
        self._validation_rows: Array | None = None
        self._metrics_file: Identity | None = None
        self._unwritten: list[bytes] = []
        self._begun = 0
        self._lines, self._elsewhere = 0, 0
        self._one_at_a_time = threading.Lock()

    def _use(self, files: Folder) -> None:
        self.files = files
        self._checkpoint_files = files.child("checkpoints")
        self.checkpoints = CheckpointFolder(self._checkpoint_files, self._keep)

    def lock(self) -> str:
        """Keeps other runs out until `unlock`, or until this process ends; makes the folder where there is none.

        Returns a line where others aren't kept out, else nothing. Raises FolderInUseError where another run has the
        folder. Where it can't be locked, `check_locked` says why: a run that is finished needs no lock.
        """
        self._unlockable = None
        try:
            return "" if self.files.held else self._lock()
        except FolderInUseError:
            raise
        except RunFolderError as error:
            self._unlockable = error
            return ""

    def _lock(self, again: bool = False) -> str:
        try:
            locked = lock_folder(self._whole if again else self.path)
        except OSError as error:
            raise self._not_writable(error) from None
        self._use(locked.folder)
        self._made, self._can_lock = locked.made, locked.sure
        return locked.note

    @contextmanager
    def _writing(self, path: Path, kind: type[DistsgdError], advice: str = "") -> Iterator[None]:
        """Turn an OSError inside into an error of this kind, which names the file."""
        try:
            yield
        except OSError as error:
            raise kind(f"could not write {path}: {error.strerror or error}{advice}") from None

    def _not_writable(self, error: OSError) -> RunFolderError:
        where = error.filename if isinstance(error.filename, str) else self.path
        return RunFolderError(
            f"could not write the run folder {self.path} ({where}: {error.strerror or error}); choose another with "
            "--out"
        )

    def check_locked(self) -> None:
        """Raises RunFolderError where the folder can't be locked, or written."""
        if not self.files.held:
            raise self._unlockable or RunFolderError(f"the run folder {self.path} is not locked")

    def unlock(self) -> None:
        """Lets other processes in; nothing more can be written. A folder that was only made to be locked is removed."""
        made, self._made = self._made, []
        is_here = self._whereabouts() == "here"
        self.files.release()
        remove_empty(made if is_here else [])

    def create(self, config_toml: str, anew: bool = False, validation_rows: Array | None = None) -> Path | None:
        """Writes config.toml, and which rows are split off for validation.

        With `anew` into a new folder, where there is a run; returns where that is moved to.
        Locks the folder where that is yet to be done. Raises RunFolderError; the folder is then as it was.
        """
        self._config, self._validation_rows = config_toml, validation_rows
        if self._unlockable is None:
            self.lock()
        self.check_locked()
        if not anew or self.is_unused():
            self._begin()
            return None
        aside = self._move_aside()
        try:
            self._take_another()
        except RunFolderError as error:
            try:
                os.rename(aside, self._whole)
            except OSError:
                raise RunFolderError(f"{error}; the run that was there is in {aside} now") from None
            raise
        return self.path.with_name(aside.name)

    def is_unused(self) -> bool:
        """Whether there is nothing but what a start leaves that was killed before it had begun. Raises OSError."""
        names = {name for name in self.files.names() if not is_leftover(name)} - {LOCK_FILE}
        return not names or (names == {"checkpoints"} and not self._checkpoint_files.names())

    def _begin(self) -> None:
        made = False
        try:
            self.read_metrics()  # cut_metrics will need them: before anything is changed
            made = self._checkpoint_files.make()
            with self._checkpoint_files.opened():
                pass  # raises where that is a link of somebody else, or no folder
            for part in (self.files, self._checkpoint_files, self.files.child("plots")):
                part.remove_leftovers()
            self.files.write("config.toml", self._config.encode())
            if self._validation_rows is not None:
                self.files.write(ROWS, _npy(self._validation_rows))
        except OSError as error:
            if made:
                self._checkpoint_files.remove_if_empty()
            raise self._not_writable(error) from None
        self._made = []

    def _move_aside(self) -> Path:
        """Renames the folder to NAME.1, NAME.2, …: the first that is free. Raises RunFolderError."""
        if not self._can_lock:
            raise RunFolderError(
                f"--resume never would move {self.path} aside, but its file system has no locks that say whether a run "
                "writes there; move it yourself, or choose another folder with --out"
            )
        number = 1
        while os.path.lexists(aside := self._whole.with_name(f"{self._whole.name}.{number}")):
            number += 1
        try:
            with self.files.opened() as folder:
                if not is_at(folder, self._whole):
                    raise RunFolderError(f"{self.path} was moved while this run began; start it again")
                os.rename(self._whole, aside)
                if not is_at(folder, aside):  # somebody has exchanged it since: what is another's goes back
                    os.rename(aside, self._whole)
                    raise RunFolderError(f"{self.path} was moved while this run began; start it again")
        except OSError as error:
            raise RunFolderError(f"could not move {self.path} to {aside}: {error.strerror or error}") from None
        return aside

    def _take_another(self) -> None:
        """Takes a new folder where the run's own is no more. Raises RunFolderError; it has its old one then."""
        before = self.files
        try:
            self._lock(again=True)
            if not self.is_unused():
                raise RunFolderError(f"another run has begun in {self.path} meanwhile; choose another with --out")
            self._begin()
        except (RunFolderError, OSError) as error:
            if self.files is not before:
                self.unlock()
                self._use(before)
            raise error if isinstance(error, RunFolderError) else self._not_writable(error) from None
        before.release()
        self._stays, self._metrics_file = True, None
        with self._one_at_a_time:
            self._elsewhere, self._begun = self._lines - len(self._unwritten), 0
            records = map(json.loads, self._unwritten)
            self._unwritten = [encode(record, number) for number, record in enumerate(records, 1)]

    def make_again(self) -> str:
        """Makes the folder anew where somebody has removed it under the run; returns a line that says so, or nothing.
        Raises OutputError where that can't be done."""
        if self._whereabouts() != "removed":
            return ""
        if os.path.lexists(self._whole):
            raise OutputError(f"the run folder {self.path} was removed; what is there now is another's, and left alone")
        try:
            self._take_another()
        except RunFolderError as error:
            raise OutputError(f"the run folder {self.path} was removed: {error}") from None
        return f"the run folder {self.path} was removed; it is made anew, without the earlier records"

    def moved(self) -> str:
        """A line where the folder is no longer where it was, the first time; else nothing."""
        if not self._stays or self._whereabouts() != "moved":
            return ""
        self._stays = False
        to = self.place()
        where = "" if to == self.path else f" to {to}"
        return f"the run folder {self.path} was moved{where}; this run continues to write into it"

    def _whereabouts(self) -> str:
        """Whether the folder is `here`, was `moved`, or is `removed`; `unknown` where it can't be opened."""
        try:
            with self.files.opened() as folder:
                if is_at(folder, self._whole):
                    return "here"
                return "moved" if os.fstat(folder).st_nlink else "removed"
        except OSError as error:
            return "removed" if error.errno == errno.ESTALE else "unknown"

    def place(self) -> Path:
        """Where the folder is now, as far as the system says."""
        try:
            with self.files.opened() as folder:
                return self.path if is_at(folder, self._whole) else path_of(folder) or self.path
        except OSError:
            return self.path

    def holds(self, path: Path) -> bool:
        """Whether a path is this folder, or inside it."""
        return expanded(path).resolve().is_relative_to(self.path.resolve())

    def cut_metrics(self, step: int, expected: int = 0) -> str:
        """Drops the records after `step`, a last line that was cut short, and the summary: the run isn't done now.

        A file that is damaged, or that has fewer records than expected, is kept beside it under another name. Returns a
        line about what was found, or nothing. Raises RunFolderError.
        """
        with self._one_at_a_time, suppress(OutputError):  # what can't be written now can't be cut either: see below
            self._write_metrics()
        with self._writing(self.metrics, RunFolderError):
            reading = self._reading()
            kept = [line.text for line in reading if line.record.get("step", 0) <= step]
            damage = reading.damage
            if len(kept) < expected:
                damage = damage or missing(expected - len(kept), f" at the end, of {expected}")
            aside = ""
            if damage:
                aside = self._keep_aside()
                kept = list(repaired(kept))
            self._metrics_file = self.files.write(self.metrics.name, *kept)
            self._lines, self._elsewhere = len(kept), 0
            self.files.remove(self.summary.name)
        if damage:
            aside = f"it is kept as {aside}" if aside else "there was no file"
            whole = counted(len(kept), "record")
            return f"{self.metrics} is damaged: {damage}; {aside}, and the run continues with {whole}"
        return f"the last line of {self.metrics} was cut short, and is removed" if reading.torn else ""

    def _keep_aside(self) -> str:
        """Gives a damaged metrics.jsonl a second name, the first that is free of those with a number; returns it."""
        if not (names := set(self.files.names())) & {self.metrics.name}:
            return ""
        number = 1
        while (aside := f"{self.metrics.name}.damaged-{number}") in names:
            number += 1
        self.files.link(self.metrics.name, aside)
        return aside

    def damage_of_records(self, expected: int) -> str:
        """What is wrong with a finished run's metrics.jsonl, which should have at least so many records, and ends with
        a line end; empty where nothing is. Raises OSError."""
        reading = self._reading()
        for _ in reading:
            pass
        found = reading.damage or (missing(expected - reading.count, " at the end") if reading.count < expected else "")
        return found or ("" if reading.ended else UNENDED)

    def rows_are_whole(self, digest: str) -> bool:
        """Whether the rows split off for validation are in their file, and those of this digest. Raises OSError."""
        try:
            data = self.files.read_no_link(ROWS)
            rows = np.load(BytesIO(data), allow_pickle=False)
            return digest_of_rows(rows) == digest and _npy(rows) == data
        except (FileNotFoundError, ValueError, EOFError, TypeError, SyntaxError, MemoryError):
            return False

    def read_metrics(self) -> list[dict[str, Any]]:
        """The whole records of metrics.jsonl. Raises OSError."""
        return [line.record for line in self._reading()]

    def _reading(self) -> Reading:
        try:
            return Reading(BytesIO(self.files.read_no_link(self.metrics.name)))
        except FileNotFoundError:
            return Reading(())

    def written_lines(self) -> int:
        """A number for `lines_until`."""
        return self._lines

    def lines_until(self, written: int) -> int:
        """How many lines metrics.jsonl has of those that `written_lines` has counted: none of an earlier folder's."""
        return max(written - self._elsewhere, 0)

    def add_metrics(self, record: Mapping[str, Any]) -> None:
        """Appends one record. Raises OutputError where it can't be written now: it is kept, and goes before the next.

        A line that a full disk cut short is completed later.
        """
        with self._one_at_a_time:
            self._lines += 1
            self._unwritten.append(encode(record, self._lines - self._elsewhere))
            self._write_metrics()

    def sync_metrics(self) -> None:
        """Makes the records so far last through a power cut, as a later checkpoint does. Raises OutputError."""
        with self._one_at_a_time:
            self._write_metrics()
        with (
            self._writing(self.metrics, OutputError),
            suppress(FileNotFoundError),  # there is none yet
            self.files.open_own(self.metrics.name, os.O_RDONLY, self._metrics_file) as (descriptor, _),
        ):
            sync(descriptor)

    def _write_metrics(self) -> None:
        if not self._unwritten:
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with (
            self._writing(self.metrics, OutputError),
            self.files.open_own(self.metrics.name, flags, self._metrics_file) as (descriptor, self._metrics_file),
        ):
            while self._unwritten:
                line = self._unwritten[0]
                while self._begun < len(line):
                    self._begun += os.write(descriptor, line[self._begun :])
                del self._unwritten[0]
                self._begun = 0

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json: the proof that an attempt has ended. Raises OutputError."""
        text = json.dumps(finite(summary), indent=2, allow_nan=False) + "\n"
        advice = "; the checkpoints are complete: put this right, and the same command finishes the run"
        with self._writing(self.summary, OutputError, advice):
            self.files.write(self.summary.name, text.encode())

    def write_failure(self, message: str, step: int) -> None:
        """Writes a summary of an attempt that failed, as far as the folder can be written at all."""
        with suppress(OutputError):
            self.write_summary({"status": "failed", "steps": step, "error": message})

    def read_summary(self) -> dict[str, Any] | None:
        """The summary, or None where there is no whole one."""
        try:
            with self.files.open(self.summary.name) as file:
                summary = json.loads(file.read(_SUMMARY_LIMIT))
        except (OSError, ValueError, RecursionError):
            return None
        return summary if isinstance(summary, dict) else None
