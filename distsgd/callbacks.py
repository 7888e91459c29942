"""What watches the loop, on rank 0 alone: records, checkpoints, progress, and the user's own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from distsgd.checkpoint import Checkpoint
from distsgd.errors import CheckpointError
from distsgd.output import say
from distsgd.records import RunFolder

if TYPE_CHECKING:
    from distsgd.trainer import Trainer


class Callback:
    """Hooks of the training loop; subclass it and override what you need. Called on rank 0 alone.

    A hook must not communicate. To end training in an orderly way, call `trainer.stop()`.
    """

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step of this leg."""

    def on_step(self, step: int, loss: float, examples: int) -> None:
        """After every step: its number from 1, its mean loss and its number of examples."""

    def on_record(self, record: Mapping[str, Any]) -> None:
        """A record for metrics.jsonl: at the end of an epoch, at a validation, every log_every steps."""

    def on_checkpoint(self, checkpoint: Checkpoint, best: Checkpoint, step: int, final: bool) -> None:
        """Time to save: all that the run needs to go on, and the parameters that it would hand over now."""

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """After the last step of this leg, with what summary.json says."""

    def close(self) -> None:
        """Always called last, also when the leg failed."""


class FolderWriter(Callback):
    """Writes the run folder: records as they come, checkpoints, and the summary last."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def on_record(self, record: Mapping[str, Any]) -> None:
        self.folder.add_metrics(record)

    def on_checkpoint(self, checkpoint: Checkpoint, best: Checkpoint, step: int, final: bool) -> None:
        self.folder.sync_metrics()
        try:
            self.folder.checkpoints.save(checkpoint, step)
            self.folder.checkpoints.save_best(best)
        except CheckpointError as error:
            if final:
                raise
            say(f"warning: {error}; training goes on, the last good checkpoint stays", sys.stderr)

    def on_end(self, summary: Mapping[str, Any]) -> None:
        self.folder.write_summary(summary)

    def close(self) -> None:
        self.folder.unlock()


class History(Callback):
    """Keeps the records in memory."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def on_record(self, record: Mapping[str, Any]) -> None:
        self.records.append(dict(record))
