"""python -m distsgd.train: train a model on all ranks of an MPI job, or in this process alone."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from distsgd.cli.commands import run_command
from distsgd.core.output import report_to_launcher, say

if TYPE_CHECKING:
    from distsgd.nn.objective import Objective
    from distsgd.parallel import Communicator
    from distsgd.run.config import TrainConfig
    from distsgd.run.folder import RunFolder
    from distsgd.run.placement import Data
    from distsgd.run.resume import Start
    from distsgd.training.callbacks import Callback
    from distsgd.training.trainer import Trainer


def main() -> int:
    """The command; returns the exit status."""
    signals = Signals()  # before MPI begins, for a signal may come at any time
    return run_command(lambda communicator, arguments: train(communicator, arguments, signals))


def train(communicator: Communicator, arguments: Sequence[str], signals: Signals) -> int:
    """Parses, builds, trains and writes the run folder; returns the exit status. Collective."""
    from distsgd.cli.command_line import load_config
    from distsgd.gpu.devices import device_of_rank
    from distsgd.run.build import check_ranks
    from distsgd.run.config import resolved
    from distsgd.run.resume import beginning, run_folder

    config = communicator.on_root(lambda: resolved(load_config(arguments)))
    config = replace(config, max_time=config.max_time or "auto")
    check_ranks(communicator, config)
    if config.plot:  # reported before training, not after it
        from distsgd.plots.canvas import check_installed

        communicator.on_root(check_installed)
    device_of_rank(communicator, config.device, config.precision)
    folder = run_folder(config)
    with beginning(communicator, config, folder) as start:
        if start.finished is None:
            return run(communicator, folder, start, signals)
        if communicator.is_root:
            if config.plot:
                from distsgd.run.pictures import draw_finished

                draw_finished(folder.path, config)
            report_to_launcher("ended", status="finished")
            say(start.finished)
    return 0


def run(communicator: Communicator, folder: RunFolder, start: Start, signals: Signals) -> int:
    """Trains this attempt. Collective."""
    from distsgd.core.status_table import Phase
    from distsgd.run.build import build_metrics, build_objective, build_own_optimizer, check_targets, user_code
    from distsgd.run.lifecycle import Attempt
    from distsgd.run.placement import load_data
    from distsgd.run.summary import EXIT_STATUS, last_line

    config = start.config
    communicator.watch(config.stall_seconds, config.stall_stacks)
    communicator.set_phase(Phase.START)
    data = load_data(communicator, config)
    objective = build_objective(communicator, config, data.signature)
    if config.check_gradient:
        return check_gradient(communicator, config, data, objective)
    optimizer = build_own_optimizer(config)
    check_targets(communicator, objective, data)
    metrics = build_metrics(communicator, config, data.signature, objective)
    users = [user_code(communicator, name, "callback") for name in config.callback]
    callbacks = communicator.everywhere(lambda: make_callbacks(communicator.is_root, config, users))
    attempt = Attempt(data, objective, optimizer, None, metrics, callbacks, folder, start)
    trainer = attempt.begin(communicator)
    announce(communicator, config, data, trainer, folder, [*start.notes, *trainer.notes])
    if config.dry_run:
        return 0
    signals.watch(trainer)
    summary = attempt.run(communicator, trainer)
    if communicator.is_root:
        if config.plot:
            plot(config, data, trainer, folder)
        report_to_launcher("ended", status=summary["status"])
        say(last_line(summary, str(folder.place())))
    return EXIT_STATUS[summary["status"]]


def make_callbacks(is_root: bool, config: TrainConfig, users: Sequence[Any]) -> list[Callback]:
    """What watches the run; rank 0's list alone is used."""
    from distsgd.core.errors import ConfigurationError
    from distsgd.run.progress import make_progress
    from distsgd.training.callbacks import Callback

    own = [user() if isinstance(user, type) else user for user in users]
    for name, callback in zip(config.callback, own, strict=True):
        if not isinstance(callback, Callback):
            raise ConfigurationError(f"callback: {name} must be a distsgd.Callback, got {type(callback).__name__}")
    if not is_root:
        return []
    progress = make_progress(config.quiet)
    return [*([] if progress is None else [progress]), *own]


class Signals:
    """SIGTERM, SIGINT and SIGUSR1 to any rank: a checkpoint after the next step, exit status 75."""

    def __init__(self) -> None:
        self._asked = False
        self._trainer: Trainer | None = None
        for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        self._asked = True
        if self._trainer is not None:
            self._trainer.stop()

    def watch(self, trainer: Trainer) -> None:
        """From now on signals stop this trainer; one that came before stops it after its first step."""
        self._trainer = trainer
        if self._asked:
            trainer.stop()


def announce(
    communicator: Communicator, config: TrainConfig, data: Data, trainer: Trainer, folder: RunFolder, notes: list[str]
) -> None:
    """Prints the header, and a warning where hosts compute other bits. Collective."""
    from distsgd.core.device import FULL
    from distsgd.core.runtime import blas_description

    probes = communicator.gather_object(trainer.progress.metadata["probe"])
    if probes is None:
        return
    for note in notes:
        say(note, sys.stderr)
    odd = sorted({host for host, probe in zip(communicator.hosts, probes, strict=True) if probe != probes[0]})
    if odd:
        say(
            f"warning: {', '.join(odd)} compute other bits than {communicator.hosts[0]}; replicas agree, but another "
            "number of ranks may give other results; one OPENBLAS_CORETYPE and NPY_DISABLE_CPU_FEATURES would not",
            sys.stderr,
        )
    if config.quiet:
        return
    hosts = sorted(set(communicator.hosts))
    validation = 0 if data.validation is None else len(data.validation)
    test = 0 if data.test is None else len(data.test)
    say(
        f"ranks      {communicator.size} on {', '.join(hosts)}, {trainer.step.workers.count} thread(s) each, "
        f"{config.microbatches} microbatches"
    )
    device = trainer.step.device
    way = trainer.step.reduction.transport.description
    travel = f"; gradients travel {way}" if way else ""
    arithmetic = config.dtype if config.precision == FULL else f"{config.dtype}, products in {config.precision}"
    say(f"compute    {blas_description() if device.host_memory else device}, {arithmetic}{travel}")
    augmented = f"; training images: {', '.join(config.augment)}" if config.augment else ""
    say(
        f"data       {data.name}: {len(data.train):,} training, {validation:,} validation, {test:,} test examples"
        f"{augmented}"
    )
    say(f"model      {describe(config, trainer)}: {trainer.step.layout.size:,} parameters")
    say(f"optimizer  {trainer.step.optimizer}, batch {config.batch_size}")
    if trainer.limits.why:
        say(f"time       {trainer.limits.why}")
    begin = f", from step {trainer.progress.step}" if trainer.progress.step else ""
    say(f"run        {folder.path}{begin}")


def describe(config: TrainConfig, trainer: Trainer) -> str:
    """The model in a few words: its name, and the layers."""
    from distsgd.nn.models import describe as describe_layer
    from distsgd.nn.models.text import is_text
    from distsgd.nn.objective import Supervised

    objective = trainer.step.objective
    name = config.model.partition(":")[0] if is_text(config.model) and ":" in config.model else config.model
    layers = describe_layer(objective.model) if isinstance(objective, Supervised) else "(own function)"
    return layers if "," in name else f"{name} {layers}"


def plot(config: TrainConfig, data: Data, trainer: Trainer, folder: RunFolder) -> None:
    """Draws the run that has just ended, on rank 0."""
    from distsgd.run.pictures import draw_after_training
    from distsgd.run.stored_model import StoredModel

    step = trainer.step
    stored = StoredModel(config, data.signature, step.objective, step.host_params(), step.running)
    draw_after_training(folder.place(), stored, data, quiet=config.quiet)


def check_gradient(communicator: Communicator, config: TrainConfig, data: Data, objective: Objective) -> int:
    """Compares the gradient with central differences in float64 on rank 0; 0 where it is right. Collective."""
    from distsgd.cli.gradient_check import check_objective

    def check() -> bool:
        result = check_objective(objective, data.train, config.seed)
        say(str(result))
        return result.ok

    return 0 if communicator.on_root(check) else 1
