"""One attempt of a run: from its start, wherever that is, to a limit, a decision or a signal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distsgd.core.device import Device
from distsgd.core.errors import RAISED_BY_USERS, ConfigurationError, DistsgdError, RunFolderError, UserCodeError
from distsgd.core.output import say, say_lines
from distsgd.core.runtime import cpu_probe
from distsgd.core.status_table import Phase
from distsgd.nn.objective import Objective
from distsgd.optim.optimizers import Optimizer
from distsgd.optim.schedules import Schedule
from distsgd.parallel import Communicator
from distsgd.run.build import build_own_schedule, build_trainer, confusion_matrix
from distsgd.run.config import TrainConfig, to_toml
from distsgd.run.folder import RunFolder
from distsgd.run.folder_writer import FolderWriter
from distsgd.run.placement import Data
from distsgd.run.resume import Start
from distsgd.run.summary import finish
from distsgd.training.callbacks import Callback
from distsgd.training.metrics import Metric
from distsgd.training.state import fill_model, find_model, running_layout
from distsgd.training.trainer import Trainer


@dataclass(frozen=True)
class Attempt:
    """Everything that an attempt is made from.

    schedule   the user's own; None for the configuration's, whose horizon is that of the run's first start
    folder     None for a run that writes no files
    """

    data: Data
    objective: Objective
    optimizer: Optimizer
    schedule: Schedule | None
    metrics: Sequence[Metric]
    callbacks: Sequence[Callback]
    folder: RunFolder | None
    start: Start

    @property
    def config(self) -> TrainConfig:
        """The configuration that the start has decided on."""
        return self.start.config

    def begin(self, communicator: Communicator) -> Trainer:
        """The trainer, where the attempt starts. Collective."""
        if self.config.on_non_finite == "rollback" and self.folder is None:
            raise ConfigurationError("on_non_finite: rollback needs checkpoints to go back to; give out= a folder")
        schedule = build_own_schedule(self.config) if self.schedule is None else self.schedule
        writer = None if self.folder is None else FolderWriter(self.folder)
        trainer = build_trainer(
            communicator,
            self.config,
            self.data,
            self.objective,
            self.optimizer,
            schedule,
            self.metrics,
            self.callbacks if writer is None else (writer, *self.callbacks),
            writer,
        )
        if self.start.has_checkpoint:
            metadata = self._metadata(trainer.step.device)
            trainer.notes = [*trainer.notes, *communicator.on_root(lambda: self._compare_metadata(metadata))]
            trainer.restore(self.start.checkpoint)
        elif self.config.init_from is not None:
            self._initialize_from(communicator, trainer, Path(self.config.init_from))
        trainer.progress.metadata = self._metadata(trainer.step.device)
        return trainer

    def run(self, communicator: Communicator, trainer: Trainer) -> dict[str, Any]:
        """Trains, finalizes, and returns the summary on every rank. Collective.

        After an error the summary holds its message, and the last checkpoint is unchanged.
        """
        communicator.on_root(lambda: self._prepare_folder(trainer.progress.step))
        try:
            reason = trainer.fit()
            communicator.set_phase(Phase.END, trainer.progress.step)
            summary = finish(trainer, reason, confusion_matrix(self.data.signature, self.metrics))
            trainer.end(summary)
            trainer.step.device.synchronize()
            communicator.barrier()  # no messages are still in flight
            trainer.close()
        except DistsgdError as error:
            trainer.close()
            if communicator.is_root and self.folder is not None:
                self.folder.write_failure(str(error), trainer.progress.step)
            raise
        finally:
            communicator.set_phase(Phase.OUTSIDE, trainer.progress.step)
            trainer.step.workers.close()
            if communicator.is_root:
                _close(trainer.callbacks)
        return summary

    def _metadata(self, device: Device) -> dict[str, Any]:
        """What a checkpoint says besides numbers and the state of training."""
        validation, test, signature = self.data.validation, self.data.test, asdict(self.data.signature)
        return {
            "config": self.config.identity(),
            "schedule_epochs": self.config.schedule_epochs or float(max(self.config.epochs, 1)),
            "signature": {key: list(v) if isinstance(v, tuple) else v for key, v in signature.items()},
            "contents": self.data.fingerprint,
            "examples": [len(self.data.train), len(validation or ()), len(test or ())],
            "probe": cpu_probe(),
            **({} if device.host_memory else {"gpu": device.description}),
        }

    def _compare_metadata(self, mine: dict[str, Any]) -> list[str]:
        """Refuses other data under the same name, and returns a line where the CPU or GPU is another. On rank 0."""
        assert self.start.checkpoint is not None
        theirs = self.start.checkpoint.document
        for key in ("signature", "examples", "contents"):
            if key in theirs and theirs[key] != mine[key]:
                raise RunFolderError(
                    f"{self.data.name} is not what the run began with: {key} was {theirs[key]}, is now {mine[key]}; "
                    "give it the same data, or another folder with --out"
                )
        if theirs.get("gpu") != mine.get("gpu"):
            began, now = (metadata.get("gpu", "the CPU") for metadata in (theirs, mine))
            return [f"warning: the run began on {began}; {now} computes other bits"]
        if theirs.get("probe") in (None, mine["probe"]):
            return []
        return ["warning: this CPU computes other bits than the one that the run began on"]

    def _initialize_from(self, communicator: Communicator, trainer: Trainer, path: Path) -> None:
        step = trainer.step
        params = step.params_buffer()

        def fill() -> None:
            found = find_model(path)
            fill_model(params.flat, step.layout, found.group("parameters"), str(path))
            fill_model(step.running.flat, running_layout(step), found.group("statistics"), str(path))

        communicator.on_root(fill)
        step.load(params)
        communicator.transport.broadcast(step.running.flat)

    def _prepare_folder(self, step: int) -> None:
        if self.folder is None:
            return
        aside = self.folder.create(to_toml(self.config), anew=self.config.resume == "never")
        if aside is not None:
            say(f"the run in {self.folder.path} is moved aside to {aside}", sys.stderr)
        self.folder.cut_metrics(step)


def _close(callbacks: Sequence[Callback]) -> None:
    for callback in callbacks:
        try:
            callback.close()
        except RAISED_BY_USERS:
            say_lines(str(UserCodeError.here("a callback failed as it was closed")), sys.stderr)
