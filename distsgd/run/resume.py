"""Where an attempt of a run starts: at the beginning, at a checkpoint, or nowhere because the run is finished."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import CheckpointError, ConfigurationError, DistsgdError, RunFolderError
from distsgd.core.kernel_family import AUTO, other_than
from distsgd.optim.schedules import has_horizon
from distsgd.parallel import Communicator
from distsgd.run.config import TrainConfig
from distsgd.run.files.summary import last_line
from distsgd.run.user_code import names_code
from distsgd.training.early_stopping import EpochsRule, PatienceRule, StoppingRule, reaches
from distsgd.training.intervals import parse_target
from distsgd.training.run_state import Metadata, RunState
from distsgd.training.step import TrainingStep

if TYPE_CHECKING:
    from distsgd.core.checkpoint import Checkpoint
    from distsgd.run.files.folder import RunFolder

_REQUIRED = {"epochs": int, "steps": int, "parameters_sha256": str}
"""What the summary of a run that is finished holds at least."""


@dataclass
class Start:
    """Where an attempt starts: finished already, at a checkpoint (on rank 0 alone), or at the beginning.

    records   how many lines metrics.jsonl had when the checkpoint was saved, 0 where it is of another folder
    """

    config: TrainConfig
    finished: str | None = None
    has_checkpoint: bool = False
    checkpoint: Checkpoint | None = None
    records: int = 0
    notes: list[str] = field(default_factory=list)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "checkpoint": None}  # its arrays travel through the reduction


def find_start(config: TrainConfig, folder: RunFolder) -> Start:
    """Looks into the run folder, on rank 0, and decides where this attempt starts."""
    try:
        return _find_start(config, folder)
    except OSError as error:
        raise RunFolderError(
            f"could not read the run folder {folder.path}: {error.strerror or error}; choose another with --out"
        ) from None


def _find_start(config: TrainConfig, folder: RunFolder) -> Start:
    from distsgd.core.checkpoint_folder import find_checkpoint
    from distsgd.run.files.records import lines_of

    start = Start(config)
    if config.resume == "never":
        _refuse_foreign(folder)
        return start
    _refuse_saved(folder)
    where = str(folder.path)
    if config.resume != "auto":
        start.checkpoint = _begun_elsewhere(config, folder)
        if start.checkpoint is not None:
            start.notes.append(f"continuing in {folder.path}, where this run is already, and not from {config.resume}")
        else:
            start.checkpoint, where = find_checkpoint(Path(config.resume), prefer="newest"), config.resume
    else:
        start.checkpoint, problems = folder.checkpoints.newest()
        if problems and start.checkpoint is None:
            raise CheckpointError(
                f"no checkpoint in {folder.checkpoints.folder} is whole ({problems[0]}); start anew with --resume never"
            )
        start.notes += [f"warning: {problem}; continuing from an older one" for problem in problems]
    if start.checkpoint is None:
        _refuse_foreign(folder)
        return start
    start.config = compare(config, start.checkpoint, where)
    start.has_checkpoint = True
    if where == str(folder.path) or folder.holds(Path(config.resume)):
        start.records = lines_of(start.checkpoint.document)
    if where != str(folder.path):
        return start
    summary, state = folder.read_summary(), RunState.from_document(start.checkpoint.document)
    if summary is None and folder.files.status(folder.summary.name) is not None:
        start.notes.append(f"warning: {folder.summary} is damaged; the run's end writes it again")
    if summary is not None and is_finished(config, summary, state):
        start.finished = last_line(summary, str(folder.path), quiet=config.quiet)
        start.notes += _look_after(folder, start.checkpoint, state, start.records)
        _look_after_rows(folder, start)
    return start


def _look_after(folder: RunFolder, checkpoint: Checkpoint, state: RunState, records: int) -> list[str]:
    """Lines about what is damaged in the folder of a run that is finished; its best model is written again."""
    from distsgd.core.checkpoint import Checkpoint
    from distsgd.core.checkpoint_folder import best_of

    notes = []
    try:
        if damage := folder.damage_of_records(records):
            notes.append(f"warning: {folder.metrics} is damaged: {damage}; the other records are whole")
    except OSError as error:
        notes.append(f"warning: could not read {folder.metrics}: {error.strerror or error}")
    try:
        folder.checkpoints.best()
    except CheckpointError as problem:
        best = best_of(checkpoint)
        try:
            folder.check_locked()
            folder.checkpoints.save_best(Checkpoint(best.arrays, state.best_document()))
        except DistsgdError as error:
            notes.append(f"warning: {problem}, and can't be written again: {error}")
        else:
            notes.append(f"warning: {problem}; it is written again, from the run's last checkpoint")
    return notes


def _look_after_rows(folder: RunFolder, start: Start) -> None:
    """Has the run go through its end again, without a step, where the file of its validation rows is damaged: the split
    follows from the data."""
    from distsgd.run.files.records import ROWS

    assert start.checkpoint is not None
    digest = Metadata.from_document(start.checkpoint.document).validation_rows
    try:
        if digest is None or folder.rows_are_whole(digest):
            return
        problem = f"warning: {folder.path / ROWS} is damaged"
    except OSError as error:
        problem = f"warning: could not read {folder.path / ROWS}: {error.strerror or error}"
    try:
        folder.check_locked()
    except RunFolderError as error:
        start.notes.append(f"{problem}, and can't be written again: {error}")
    else:
        start.notes.append(f"{problem}; the run's end writes it again")
        start.finished = None


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


def _refuse_saved(folder: RunFolder) -> None:
    """Raises RunFolderError where a program has saved a model, which a new run would write over."""
    from distsgd.run.files.records import SAVED

    if folder.checkpoints.exists():
        return
    with suppress(CheckpointError):
        if folder.checkpoints.best().document.get(SAVED):
            raise RunFolderError(
                f"{folder.path} holds a saved model and no run to continue; choose another folder with --out, start "
                "from its parameters with --init-from, or move it aside with --resume never"
            )


def is_finished(config: TrainConfig, summary: dict[str, Any], state: RunState) -> bool:
    """Whether the run that left this summary has nothing left to do under this configuration."""
    if not all(isinstance(summary.get(key), kind) for key, kind in _REQUIRED.items()):
        return False  # damaged: it is written again
    if summary.get("status") == "early_stopped" and _has_stopped(config, state):
        return True
    if summary.get("status") != "completed":
        return False
    enough = summary["epochs"] >= config.epochs
    enough = enough or (config.max_steps is not None and summary["steps"] >= config.max_steps)
    return enough or (config.target is not None and reaches(parse_target(config.target), state.scores or {}))


def _has_stopped(config: TrainConfig, state: RunState) -> bool:
    """Whether the stopping rule, as it is set now, ends the run where it stands."""
    patience = config.patience or 0
    rule: StoppingRule = EpochsRule(patience)
    if config.early_stopping == "patience":
        rule = PatienceRule(patience)
    if state.rule is None:
        return True
    rule.restore(state.rule)
    end = rule.stop_step()
    return end is not None and state.step >= end


_BY_CONTENT = ("dataset", "validation", "test")
"""Options whose files are compared, when they are read, and not their paths: a data set may have moved. Two names of
data sets are no paths."""
_MAY_CHANGE = ("early_stopping", "patience", "min_delta", "patience_increase", "improvement_threshold")
"""They say when to stop, as --epochs does; but they are part of a run's name."""


def _may_differ(key: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a run continues where this option isn't what it was."""
    if key not in _BY_CONTENT:
        return key in _MAY_CHANGE
    from distsgd.data.named.datasets import DATASETS

    return not all(str(options[key]) in DATASETS for options in (then, now))


def _without_paths(options: dict[str, Any]) -> dict[str, Any]:
    """The options where the checkpoint says what user's code and --init-from are, wherever they lie."""
    metrics = [text.rpartition(":")[2] if names_code(text) else text for text in options.get("metric", ())]
    left = {"init_from": options.get("init_from") is not None, "metric": metrics}
    if names_code(str(options.get("model"))):
        left["model"] = "code"
    return options | {key: value for key, value in left.items() if key in options}


def compare(config: TrainConfig, checkpoint: Checkpoint, where: str) -> TrainConfig:
    """The configuration to continue with. Raises RunFolderError where the checkpoint's says another run, and
    ConfigurationError where no run says that any more."""
    metadata = Metadata.from_document(checkpoint.document)
    horizon = metadata.schedule_epochs
    if config.schedule_epochs is None and has_horizon(config.schedule):
        config = replace(config, schedule_epochs=horizon)
    if metadata.device is None and metadata.kernels is not None and config.kernels not in (AUTO, metadata.kernels):
        raise RunFolderError(
            f"{where} holds a run with the kernels {metadata.kernels}, and "
            f"{other_than(metadata.kernels, config.kernels)} (distsgd train takes --kernels {metadata.kernels}), or "
            "choose another folder with --out"
        )
    theirs, mine = metadata.config or {}, config.identity()
    if has_horizon(config.schedule):  # the horizon is the first start's, whatever epochs says now
        theirs, mine = theirs | {"schedule_epochs": horizon}, mine | {"schedule_epochs": config.schedule_epochs}
    then, now = (theirs, mine) if metadata.identity is None else map(_without_paths, (theirs, mine))
    differ = [key for key in mine if key in theirs and then[key] != now[key] and not _may_differ(key, then, now)]
    if differ:
        differences = "; ".join(f"{key} is {theirs[key]!r} there, {mine[key]!r} here" for key in differ)
        raise RunFolderError(
            f"{where} holds a run with another configuration: {differences}; choose another folder with --out, or move "
            "that run aside with --resume never"
        )
    return config


def load_initial(communicator: Communicator, step: TrainingStep, given: Mapping[str, Array]) -> None:
    """Parameters of the user's, and running statistics where they are given, as those that training begins with.
    Raises ConfigurationError where they are others than the model has. Collective."""
    params, running = step.params_buffer(), step.running

    def fill() -> None:
        lacking = sorted(params.keys() - given.keys())
        extra = sorted(given.keys() - params.keys() - running.keys())
        if lacking or extra:
            what = f"{lacking[0]} is missing" if lacking else f"the model has no {extra[0]}"
            raise ConfigurationError(f"params: {what}; the model's parameters are {', '.join(params)}")
        for name, view in [*params.items(), *((name, view) for name, view in running.items() if name in given)]:
            array = np.asarray(given[name])
            if array.shape != view.shape or array.dtype.kind not in "biuf":
                raise ConfigurationError(
                    f"params: {name} has shape {array.shape} and dtype {array.dtype}, the model needs numbers of shape "
                    f"{view.shape}"
                )
            with np.errstate(over="ignore"):
                view[...] = array
            if not np.isfinite(view).all():
                raise ConfigurationError(f"params: {name} holds a number that is not finite in {view.dtype}")

    communicator.on_root(fill)
    step.load(params)
    communicator.transport.broadcast(running.flat)
