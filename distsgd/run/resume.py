"""Where an attempt of a run starts: at the beginning, at a checkpoint, or nowhere because the run is finished."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from distsgd.core.checkpoint import Checkpoint, CheckpointFolder, read_checkpoint, understanding
from distsgd.core.errors import CheckpointError, ConfigurationError, RunFolderError
from distsgd.core.folders import Folder
from distsgd.optim.schedules import has_horizon
from distsgd.parallel import Communicator
from distsgd.run.config import TrainConfig
from distsgd.run.folder import RunFolder
from distsgd.run.summary import last_line
from distsgd.training.early_stopping import reaches
from distsgd.training.intervals import parse_target

_REQUIRED = {"epochs": int, "steps": int, "parameters_sha256": str}
"""What the summary of a run that is finished holds at least."""


class Start:
    """Where an attempt starts: finished already, at a checkpoint (on rank 0 alone), or at the beginning."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.finished: str | None = None
        self.has_checkpoint = False
        self.checkpoint: Checkpoint | None = None
        self.notes: list[str] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "checkpoint": None}  # its arrays travel through the reduction


def run_folder(config: TrainConfig) -> RunFolder:
    """The run's folder, whether or not it exists."""
    path = Path(config.out) if config.out is not None else Path("runs") / config.name()
    return RunFolder(path, config.keep)


@contextmanager
def beginning(communicator: Communicator, config: TrainConfig, folder: RunFolder | None) -> Iterator[Start]:
    """Where this attempt starts. Until the block ends, other runs are kept out of its folder. Collective."""

    def begin() -> Start:
        if folder is None or config.dry_run or config.check_gradient:  # nothing is written
            return Start(config)
        note = folder.lock()
        start = find_start(config, folder)
        if start.finished is None:
            folder.check_locked()
        start.notes += [note] if note else []
        return start

    try:
        yield communicator.on_root(begin)
    finally:
        if communicator.is_root and folder is not None:
            folder.unlock()


def find_start(config: TrainConfig, folder: RunFolder) -> Start:
    """Looks into the run folder, on rank 0, and decides where this attempt starts."""
    try:
        return _find_start(config, folder)
    except OSError as error:
        raise RunFolderError(
            f"could not read the run folder {folder.path}: {error.strerror or error}; choose another with --out"
        ) from None


def _find_start(config: TrainConfig, folder: RunFolder) -> Start:
    start = Start(config)
    if config.dry_run or config.check_gradient:
        return start
    if config.resume == "never":
        _refuse_foreign(folder)
        return start
    where = str(folder.path)
    if config.resume != "auto":
        start.checkpoint = _begun_elsewhere(config, folder)
        if start.checkpoint is not None:
            start.notes.append(f"going on in {folder.path}, where this run is already, and not from {config.resume}")
        else:
            start.checkpoint, where = find_run(Path(config.resume)), config.resume
    else:
        start.checkpoint, problems = folder.checkpoints.newest()
        if problems and start.checkpoint is None:
            raise CheckpointError(
                f"no checkpoint in {folder.checkpoints.folder} is whole ({problems[0]}); start anew with --resume never"
            )
        start.notes += [f"warning: {problem}; going on from an older one" for problem in problems]
    if start.checkpoint is None:
        _refuse_foreign(folder)
        return start
    with understanding(f"the checkpoint in {where}"):
        start.config = compare(config, start.checkpoint, where)
        start.has_checkpoint = True
        summary = folder.read_summary() if where == str(folder.path) else None
        if summary is not None and is_finished(config, summary, start.checkpoint):
            start.finished = last_line(summary, str(folder.path))
    return start


def _begun_elsewhere(config: TrainConfig, folder: RunFolder) -> Checkpoint | None:
    """The newest checkpoint in the folder, where the run that continues another one has saved there already: the same
    command continues after a stop. Raises RunFolderError where another run has the folder."""
    if folder.holds(Path(config.resume)):
        return None
    found, _ = folder.checkpoints.newest()
    try:
        if found is not None:
            compare(config, found, str(folder.path))
    except RunFolderError:
        raise RunFolderError(
            f"{folder.path} holds a run of its own, which {config.resume} isn't part of; choose another --out"
        ) from None
    return found


def _refuse_foreign(folder: RunFolder) -> None:
    """Raises RunFolderError where there is something else than a run: it is neither written into nor moved aside."""
    path = folder.path
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"{path} is a file, not a folder; choose another with --out")
    if folder.files.status("config.toml") is not None or folder.checkpoints.exists():
        return
    if not folder.is_unused():
        raise RunFolderError(f"{path} is not empty and holds no run; choose another folder with --out")


def find_run(path: Path) -> Checkpoint:
    """The checkpoint at this path, or the newest valid one of the run folder at it. Raises CheckpointError."""
    try:
        there = path.exists()
    except OSError:  # such as a name that is too long
        there = False
    if not there:
        raise ConfigurationError(f"resume: there is no checkpoint and no run folder {path}; check the path")
    if not path.is_dir():
        return read_checkpoint(path)
    found, problems = CheckpointFolder(Folder(path / "checkpoints")).newest()
    if found is None:
        raise CheckpointError(problems[0] if problems else f"{path} holds no checkpoint to resume from")
    return found


def is_finished(config: TrainConfig, summary: dict[str, Any], checkpoint: Checkpoint) -> bool:
    """Whether the run that left this summary has nothing left to do under this configuration."""
    if not all(isinstance(summary.get(key), kind) for key, kind in _REQUIRED.items()):
        return False  # damaged: it is written again
    if summary.get("status") == "early_stopped":
        return True
    if summary.get("status") != "completed":
        return False
    enough = summary["epochs"] >= config.epochs
    enough = enough or (config.max_steps is not None and summary["steps"] >= config.max_steps)
    scores = checkpoint.document.get("scores") or {}
    return enough or (config.target is not None and reaches(parse_target(config.target), scores))


def compare(config: TrainConfig, checkpoint: Checkpoint, where: str) -> TrainConfig:
    """The configuration to continue with. Raises RunFolderError where the checkpoint's says another run, and
    ConfigurationError where no run says that any more."""
    horizon = checkpoint.document.get("schedule_epochs")
    if config.schedule_epochs is None:
        config = replace(config, schedule_epochs=horizon)
    theirs, mine = checkpoint.document.get("config", {}), config.identity()
    if has_horizon(config.schedule):  # the horizon is the first start's, whatever epochs says now
        theirs, mine = theirs | {"schedule_epochs": horizon}, mine | {"schedule_epochs": config.schedule_epochs}
    differ = [key for key in mine if key in theirs and theirs[key] != mine[key]]
    if differ:
        differences = "; ".join(f"{key} is {theirs[key]!r} there, {mine[key]!r} here" for key in differ)
        raise RunFolderError(
            f"{where} holds a run with another configuration: {differences}; choose another folder with --out, or move "
            "that run aside with --resume never"
        )
    return config
