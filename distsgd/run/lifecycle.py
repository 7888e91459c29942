"""The life of a run, in one place: open, build, restore, train, finish. `train` and `fit` make a RunSpec for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distsgd.core.components import is_own
from distsgd.core.device import Array, Device
from distsgd.core.errors import REPORTED_ONLY, ConfigurationError, DistsgdError, RunFolderError, UserCodeError
from distsgd.core.kernel_family import AUTO
from distsgd.core.output import say, say_lines
from distsgd.core.runtime import cpu_probe, older_probe
from distsgd.core.status_table import Phase
from distsgd.data.examples import Signature
from distsgd.nn.objective import Objective
from distsgd.nn.task import Task
from distsgd.optim.optimizers import Optimizer
from distsgd.optim.schedules import Schedule
from distsgd.parallel import Communicator
from distsgd.run.build import (
    build_task,
    check_outputs,
    check_targets,
    note_on_targets,
    refuse_one_class,
    refuse_unused,
    refuse_without_effect,
)
from distsgd.run.build_metrics import build_metrics, confusion_matrix
from distsgd.run.build_trainer import build_own_schedule, build_trainer, check_ranks, measured
from distsgd.run.compared.agreement import agreed_family
from distsgd.run.compared.digests import digest_of_rows
from distsgd.run.config import TrainConfig
from distsgd.run.config_file import to_toml
from distsgd.run.data.loading import Data, in_use
from distsgd.run.data.measuring import check_values
from distsgd.run.devices import device_for
from distsgd.run.files.summary import doubt, finish
from distsgd.run.resume import Start, find_start, load_initial
from distsgd.training.callbacks import Callback, pass_notes
from distsgd.training.metrics.base import Metric, UserMetric
from distsgd.training.run_state import Metadata
from distsgd.training.trainer import StopReason, Trainer

if TYPE_CHECKING:
    from distsgd.run.files.folder import RunFolder


def say_notes(communicator: Communicator, attempt: Attempt) -> bool:
    """Passes the notes to the callbacks, and prints what none of them takes; True, to train. Collective."""
    pass_notes(communicator, attempt.trainer.callbacks, attempt.notes)
    return True


@dataclass(frozen=True)
class RunSpec:
    """What is asked of a run: all in which one that `train` begins differs from one that `fit` begins.

    config           as `resolved` returns it
    folder           None for a run that writes no files
    load_data        the examples, collective
    build_objective  the model with its loss, for data of this signature; collective
    schedule         the user's own; None for the configuration's, whose horizon is that of the run's first start
    initial          parameters by name that training begins with, in place of the model's own
    metrics          the user's own, besides the configuration's
    callbacks        what watches the run, besides the writer of its folder; collective, and rank 0's list alone is used
    finished         called on rank 0 with the last line of a run that is finished already, instead of training; None
                     to go through it again, without a step
    before_training  called when all is built and restored; returns whether to train; collective
    ended            called on rank 0 when the run has ended
    """

    config: TrainConfig
    folder: RunFolder | None
    load_data: Callable[[Communicator, TrainConfig], Data]
    build_objective: Callable[[Communicator, TrainConfig, Signature], Objective]
    optimizer: Optimizer
    schedule: Schedule | None = None
    initial: Mapping[str, Array] | None = None
    metrics: Sequence[Metric] = ()
    callbacks: Callable[[Communicator], Sequence[Callback]] = lambda communicator: ()
    finished: Callable[[str], None] | None = None
    before_training: Callable[[Communicator, Attempt], bool] = say_notes
    ended: Callable[[Attempt], None] = lambda attempt: None

    def __post_init__(self) -> None:
        if self.folder is None and self.config.on_non_finite == "rollback":
            raise ConfigurationError("on_non_finite: rollback needs checkpoints to go back to; give out= a folder")
        if self.folder is None and self.config.plot:
            raise ConfigurationError("plot draws into the run's folder; say which with out=")
        unused = {"keep": (3,), "checkpoint_every": ("1epoch",), "resume": ("auto", "never")}
        for name, values in unused.items() if self.folder is None else ():
            if getattr(self.config, name) not in values:
                raise ConfigurationError(f"{name}: would change nothing without a run folder; say which with out=")


@dataclass
class Attempt:
    """One attempt of a run: what was built, from where it starts to what it came to.

    config   what the start has decided on
    notes    lines to print before training
    doubt    why its bits may not be the same on any number of ranks; None where nothing is known against it
    summary  what summary.json says, when the attempt has ended
    has_begun  whether training has, and what is in the folder is this attempt's
    """

    spec: RunSpec
    config: TrainConfig
    data: Data
    task: Task
    metrics: Sequence[Metric]
    trainer: Trainer
    notes: list[str]
    doubt: str | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    has_begun: bool = False


def run(communicator: Communicator, spec: RunSpec) -> Attempt | None:
    """Trains to a limit, a decision or a signal; None where nothing was trained. Collective.

    Raises DistsgdError, on all ranks. Once training has begun, the summary then holds its message; the last checkpoint
    is unchanged.
    """
    config = spec.config
    communicator.watch(config.stall_seconds, config.stall_stacks)
    communicator.heartbeat.set_phase(Phase.START)
    _check(communicator, spec)
    device, notes = device_for(communicator, config.device, config.precision)
    if device.host_memory:
        config = replace(config, kernels=agreed_family(communicator, config.kernels))
    with opened(communicator, config, spec.folder) as start:
        if start.finished is not None and spec.finished is not None:
            if communicator.is_root:
                for note in start.notes:
                    say(note, sys.stderr)
                spec.finished(start.finished)
            return None
        attempt = _build(communicator, spec, start, device, notes)
        with _closed_at_the_end(communicator, attempt), in_use(communicator, attempt.data):
            _restore(communicator, attempt, start)
            start.checkpoint = None  # its arrays are as large as the run's state
            _check_repeatable(communicator, attempt)
            if not spec.before_training(communicator, attempt):
                attempt.trainer.close()
                return None
            communicator.on_root(lambda: _prepare_folder(attempt, start.records))
            attempt.has_begun = True
            with attempt.trainer.step.objective.running():
                with measured(attempt.trainer, config):
                    reason = attempt.trainer.fit()
                attempt.summary = _finish(communicator, attempt, reason)
        if communicator.is_root:
            _draw(attempt)
            spec.ended(attempt)
    return attempt


def _check(communicator: Communicator, spec: RunSpec) -> None:
    """Raises ConfigurationError for what can't be done, before anything is read or written. Collective."""
    check_ranks(communicator, spec.config)
    if spec.config.plot:
        from distsgd.plots.canvas import check_installed

        communicator.on_root(check_installed)
    if (trace := spec.config.trace) is not None:
        from distsgd.run.files.trace import check_trace

        communicator.on_root(lambda: check_trace(trace))


@contextmanager
def opened(communicator: Communicator, config: TrainConfig, folder: RunFolder | None) -> Iterator[Start]:
    """Where this attempt starts. Until the block ends, other runs are kept out of its folder. Collective."""
    if folder is None or config.dry_run or config.check_gradient:  # nothing is written
        if folder is not None and config.resume not in ("auto", "never"):
            communicator.on_root(lambda: find_start(config, folder))  # it has to be there all the same
        yield Start(config)
        return

    def find() -> Start:
        note = folder.lock()
        start = find_start(config, folder)
        if start.finished is None:
            folder.check_locked()
        start.notes += [note] if note else []
        return start

    try:
        yield communicator.on_root(find)
    finally:
        if communicator.is_root:
            folder.unlock()


def _build(communicator: Communicator, spec: RunSpec, start: Start, device: Device, notes: list[str]) -> Attempt:
    """Everything that trains, with initial parameters. Collective."""
    config = start.config
    data = spec.load_data(communicator, config)
    objective = spec.build_objective(communicator, config, data.signature)
    check_targets(communicator, config, objective, data)
    refuse_unused(config, objective, data)
    refuse_without_effect(config, data, spec.metrics)
    task = build_task(config, data.signature, objective)
    refuse_one_class(communicator, config, objective, task, data)
    if config.standardize_targets:
        check_values(task.kind not in ("classification", "multilabel"))
    notes += note_on_targets(communicator, task, data)
    metrics = build_metrics(communicator, config, data.signature, objective, task, spec.metrics)
    callbacks, writer = list(spec.callbacks(communicator)), None
    if spec.folder is not None and communicator.is_root:
        from distsgd.run.files.folder_writer import FolderWriter

        writer = FolderWriter(spec.folder)
        callbacks.insert(0, writer)
    schedule = build_own_schedule(config) if spec.schedule is None else spec.schedule
    trainer = build_trainer(
        communicator, config, data, device, objective, spec.optimizer, schedule, metrics, callbacks, writer
    )  # fmt: skip
    trainer.scores.in_memory = data.changed
    check_outputs(communicator, trainer, task)
    return Attempt(spec, config, data, task, metrics, trainer, [*start.notes, *notes, *data.notes, *trainer.notes])


def _restore(communicator: Communicator, attempt: Attempt, start: Start) -> None:
    """Puts in place what the attempt starts from: the run's own checkpoint, or another's parameters. Collective."""
    trainer, initial = attempt.trainer, attempt.spec.initial
    if initial is not None:  # also before a checkpoint, which is compared with what the run began with
        load_initial(communicator, trainer.step, initial)
    if not start.has_checkpoint and attempt.config.init_from is not None:
        attempt.notes += _initialize_from(communicator, attempt, Path(attempt.config.init_from))
    identity = communicator.on_root(lambda: _identity(attempt, start))
    metadata = replace(_metadata(attempt), identity=identity)
    if start.has_checkpoint:
        attempt.notes += communicator.on_root(lambda: _compare_metadata(attempt, start, metadata))
        trainer.restore(start.checkpoint)
    trainer.progress.metadata = metadata


def _check_repeatable(communicator: Communicator, attempt: Attempt) -> None:
    """Notes why a model that isn't distsgd's own may have other bits on other ranks. Collective."""
    if not is_own(attempt.trainer.step.objective):
        from distsgd.run.compared.repeatable import check_repeatable

        attempt.doubt = check_repeatable(communicator, attempt.trainer)
        attempt.notes += [f"warning: {attempt.doubt}"] if attempt.doubt else []


def _identity(attempt: Attempt, start: Start) -> dict[str, dict[str, str]] | None:
    """What is compared of the user's own objects, where there is a folder to continue in. On rank 0."""
    spec = attempt.spec
    if spec.folder is None:
        return None
    from distsgd.run.compared.same_run import identity_of

    metrics = [*spec.metrics, *(one for one in attempt.metrics if isinstance(one, UserMetric))]
    return identity_of(attempt.config, attempt.trainer.step, spec.schedule, metrics, start.checkpoint, spec.initial)


def _metadata(attempt: Attempt) -> Metadata:
    """What this attempt's checkpoints say besides numbers and the state of training."""
    config, data, device = attempt.config, attempt.data, attempt.trainer.step.device
    return Metadata(
        config=config.identity(),
        schedule_epochs=config.schedule_epochs or float(max(config.epochs, 1)),
        signature=data.signature,
        task=attempt.task,
        contents=data.fingerprint,
        split=None if data.split is None else data.split.digest(data.train),
        validation_rows=None if data.split is None else digest_of_rows(data.split.validation),
        examples=[len(data.train), len(data.validation or ()), len(data.test or ())],
        kernels=None if config.kernels == AUTO else config.kernels,
        probe=cpu_probe(),
        device=device.description or None,
    )


def _compare_metadata(attempt: Attempt, start: Start, metadata: Metadata) -> list[str]:
    """Refuses other data and another model, and returns lines where the CPU or GPU is another. On rank 0."""
    assert start.checkpoint is not None
    name, normalizes = attempt.data.name, len(attempt.trainer.step.running) > 0
    began = Metadata.from_document(start.checkpoint.document)
    theirs, mine = began.to_document(), metadata.to_document()
    known = theirs.get("signature", {})  # an older version says less
    known.pop("features", None)  # which follow from the contents
    mine["signature"] = {key: value for key, value in mine["signature"].items() if key in known}
    if "task" not in theirs and (normalizes or metadata.split is not None):
        what = "normalized over microbatches of one or two examples"
        if metadata.split is not None:
            what = "split validation examples off without a look at their classes"
        raise RunFolderError(
            f"{name}: the run was begun by an older version, which {what}; begin anew with --resume never, or in "
            "another folder with --out"
        )
    for key in ("signature", "examples", "contents", "split"):
        if key in theirs and theirs[key] != mine[key]:
            raise RunFolderError(
                f"{name} is not what the run began with: {key} was {theirs[key]}, is now {mine[key]}; "
                "give it the same data, or another folder with --out"
            )
    notes: list[str] = []
    if began.identity is not None and metadata.identity is not None:
        from distsgd.run.compared.same_run import refuse_another

        notes = refuse_another(began.identity, metadata.identity)
    if began.device != metadata.device:
        then, now = (known.device or "the CPU" for known in (began, metadata))
        return [*notes, f"warning: the run began on {then}; {now} computes other bits"]
    if began.probe in (None, metadata.probe if began.kernels is not None else older_probe()):
        return notes
    return [*notes, "warning: this CPU computes other bits than the one that the run began on"]


def _initialize_from(communicator: Communicator, attempt: Attempt, path: Path) -> list[str]:
    """Another run's parameters. Returns a line where its inputs or targets were in other units. Collective."""
    from distsgd.core.checkpoint_folder import find_checkpoint
    from distsgd.training.checkpoint_store import fill_model

    step, mine = attempt.trainer.step, attempt.data.signature
    params = step.params_buffer()

    def fill() -> list[str]:
        found = find_checkpoint(path, prefer="best")
        fill_model(params, found.group("parameters"), str(path))
        fill_model(step.running, found.group("statistics"), str(path))
        theirs = Metadata.from_document(found.document).signature
        return [] if theirs is None else [f"warning: init_from {path}: {text}" for text in mine.other_units(theirs)]

    notes = communicator.on_root(fill)
    step.load(params)
    communicator.transport.broadcast(step.running.flat)
    return notes


def _prepare_folder(attempt: Attempt, records: int) -> None:
    """Begins in the folder: its configuration, and the records so far, of which there should be so many. On rank 0."""
    folder, config = attempt.spec.folder, attempt.config
    if folder is None:
        return
    split = attempt.data.split
    rows = None if split is None else split.validation[:]
    aside = folder.create(to_toml(config), anew=config.resume == "never", validation_rows=rows)
    if aside is not None:
        say(f"the run in {folder.path} is moved aside to {aside}", sys.stderr)
    if note := folder.cut_metrics(attempt.trainer.progress.step, records):
        say(f"warning: {note}", sys.stderr)


def _finish(communicator: Communicator, attempt: Attempt, reason: StopReason) -> dict[str, Any]:
    """Finalizes, and returns the summary on every rank. Collective."""
    trainer = attempt.trainer
    communicator.heartbeat.set_phase(Phase.END, trainer.progress.step)
    summary = finish(trainer, reason, confusion_matrix(attempt.task, attempt.metrics), attempt.doubt)
    trainer.step.objective.take_best(trainer.step.host_params().read_only(), trainer.step.running.read_only())
    pass_notes(communicator, trainer.callbacks, [*filter(None, [doubt(trainer, attempt.task, summary)])])
    trainer.end(summary)
    trainer.step.device.synchronize()
    communicator.barrier()  # no messages are still in flight
    trainer.close()
    return summary


@contextmanager
def _closed_at_the_end(communicator: Communicator, attempt: Attempt) -> Iterator[None]:
    """Closes threads and callbacks when the block ends; after an error the folder's summary holds its message."""
    trainer, folder = attempt.trainer, attempt.spec.folder
    try:
        yield
    except DistsgdError as error:
        trainer.close()
        if attempt.has_begun and communicator.is_root and folder is not None:
            folder.write_failure(str(error), trainer.progress.step)
        raise
    finally:
        trainer.step.workers.close()
        for callback in trainer.callbacks if communicator.is_root else ():
            try:
                callback.close()
            except REPORTED_ONLY:
                say_lines(str(UserCodeError.here("a callback failed as it was closed")), sys.stderr)
        communicator.heartbeat.set_phase(Phase.OUTSIDE, trainer.progress.step)


def _draw(attempt: Attempt) -> None:
    """Draws the run that has just ended into its folder, where that is asked for."""
    folder, config, step = attempt.spec.folder, attempt.config, attempt.trainer.step
    if not config.plot or folder is None:
        return
    from distsgd.run.pictures import draw_after_training
    from distsgd.run.trained.stored_model import StoredModel

    signature, metadata = attempt.data.signature, attempt.trainer.progress.metadata
    stored = StoredModel(config, signature, attempt.task, step.objective, step.host_params(), step.running, metadata)
    draw_after_training(folder.place(), stored, attempt.data, quiet=config.quiet)
