"""The files of checkpoints: written completely or not at all, and found again, the newest or the best."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from distsgd.core.checkpoint import Checkpoint, open_stored, pieces
from distsgd.core.errors import CheckpointError, ConfigurationError, NoCheckpointError
from distsgd.core.files import expanded, open_regular
from distsgd.core.folders import Folder, identity

_LAST, _BEST = "last.safetensors", "best.safetensors"
_MODEL = ("parameters", "statistics")
_NUMBERED = re.compile(r"step-(.*)\.safetensors", re.DOTALL)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"could not write the checkpoint {path}: {error.strerror or error}") from None


def open_checkpoint(path: Path, folder: Folder | None = None) -> Checkpoint:
    """The checkpoint at `path`, which is in `folder` where one is given; its arrays are read when they are asked for.

    Raises CheckpointError where the file can't be read, is damaged, or is of another format.
    """
    try:
        with open_regular(path) if folder is None else folder.open(path.name) as file:
            return open_stored(file)
    except OSError as error:
        raise CheckpointError(f"could not read the checkpoint {path}: {error.strerror or error}") from None
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def read_checkpoint(path: Path) -> Checkpoint:
    """As open_checkpoint, with all arrays in memory."""
    found = open_checkpoint(path)
    return Checkpoint(dict(found.arrays), found.document)


class CheckpointFolder:
    """The folder of a run's checkpoints: `last`, `best` and the newest `keep` numbered ones."""

    def __init__(self, files: Folder, keep: int = 3) -> None:
        self.folder, self._files, self._keep = files.path, files, keep

    def save(self, checkpoint: Checkpoint, step: int) -> None:
        """Writes step-N.safetensors, points last.safetensors to it, and removes old ones. Raises CheckpointError."""
        numbered = _numbered_name(step)
        with _writing(self.folder / numbered):
            self._files.make()
            self._files.write(numbered, *pieces(checkpoint))
            self._files.link(numbered, _LAST)
            numbers = self._numbered()
            # Later ones are from before the run went back to an older checkpoint.
            later = [number for number in numbers if number > step]
            for number in later + [number for number in numbers if number <= step][self._keep :]:
                self._files.remove(_numbered_name(number))
            self._files.remove_leftovers()  # of earlier writes, where removing them failed

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Writes best.safetensors. Raises CheckpointError."""
        with _writing(self.folder / _BEST):
            self._files.write(_BEST, *pieces(checkpoint))

    def _numbered(self) -> list[int]:
        """The steps of the numbered checkpoints, newest first."""
        steps = [found[1] for name in self._files.names() if (found := _NUMBERED.fullmatch(name))]
        return sorted((int(step) for step in steps if step.isdecimal()), reverse=True)

    def _candidates(self) -> Iterator[str]:
        """The names of checkpoints, those that may be the newest first."""
        last = self._files.status(_LAST)
        numbered = [_numbered_name(step) for step in self._numbered()]
        newest = self._files.status(numbered[0]) if numbered else None
        if last is not None and (newest is None or identity(last) != identity(newest)):
            yield _LAST
        yield from numbered

    def best(self) -> Checkpoint:
        """The checkpoint of the best model. Raises CheckpointError."""
        return open_checkpoint(self.folder / _BEST, self._files)

    def exists(self) -> bool:
        """Whether there is any checkpoint, valid or not."""
        return any(True for _ in self._candidates())

    def newest_step(self) -> int | None:
        """The step of the newest numbered checkpoint by its name; what is in it isn't looked at. Raises OSError."""
        return max(self._numbered(), default=None)

    def newest(self, limit: int | None = None) -> tuple[Checkpoint | None, list[str]]:
        """(the valid checkpoint with the most steps, up to `limit` where one is given, or None; the problems of newer
        ones)."""
        problems: list[str] = []
        best: Checkpoint | None = None
        for name in self._candidates():
            try:
                found = open_checkpoint(self.folder / name, self._files)
            except CheckpointError as error:
                problems.append(str(error))
                continue
            step = found.document.get("step", 0)
            if limit is not None and step > limit:
                continue
            if best is None or step > best.document.get("step", 0):
                best = found
            if name != _LAST:
                break
        return best, problems


def _numbered_name(step: int) -> str:
    return f"step-{step}.safetensors"


def best_of(whole: Checkpoint) -> Checkpoint:
    """The best model so far, with the arrays of best.safetensors, from a checkpoint of the whole run."""
    kept = "best/" if whole.document.get("best") else ""
    arrays = {f"{kind}/{name}": array for kind in _MODEL for name, array in whole.group(kept + kind).items()}
    return Checkpoint(arrays, whole.document)


def _find_best(folder: CheckpointFolder) -> Checkpoint | None:
    """The best model in a run's folder; None where there is no checkpoint at all. Raises CheckpointError with the
    remedy."""
    problem = ""
    if os.path.lexists(folder.folder / _BEST):
        try:
            return folder.best()
        except CheckpointError as error:
            problem = str(error)
    newest, problems = folder.newest()
    if newest is None and not problem and not problems:
        return None
    if newest is None:
        raise CheckpointError(f"{problem or problems[0]}; no checkpoint of this run is whole: train it anew")
    if problem:
        raise CheckpointError(f"{problem}; start the run's training command again: it writes the file anew")
    return best_of(newest)


def find_checkpoint(path: Path, prefer: Literal["newest", "best"]) -> Checkpoint:
    """The checkpoint at this path, or in the run folder at it.

    Parameters
    ----------
    path
        A checkpoint's file, or a run folder.
    prefer
        Of a run folder: `newest` for the one with the most steps that is whole, to resume from; `best` for that of the
        best model, to predict with.

    Raises
    ------
    ConfigurationError
        Where there is nothing to resume from at this path.
    CheckpointError
        Where there is no checkpoint, or none that is whole.
    """
    path = expanded(path)
    inside = path / "checkpoints"
    try:
        if path.is_dir() and prefer == "newest":
            found, problems = CheckpointFolder(Folder(inside)).newest()
            if found is None:
                raise CheckpointError(problems[0] if problems else f"{path} holds no checkpoint to resume from")
            return found
        if path.is_dir():
            best = _find_best(CheckpointFolder(Folder(inside)))
        else:
            best = open_checkpoint(path) if path.exists() else None
        if best is not None:
            return best
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise CheckpointError(f"could not read {path}: {error.strerror or error}") from None
    if prefer == "newest":
        raise ConfigurationError(f"resume: there is no checkpoint and no run folder {path}; check the path")
    raise NoCheckpointError(f"{path} is neither a checkpoint nor a run folder with checkpoints; name one of the two")
