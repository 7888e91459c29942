"""Callbacks, which watch the training loop on rank 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from distsgd.core.checkpoint import Checkpoint


class RunView(Protocol):
    """What a callback reads of the run, and the one thing that it does to it: `stop`."""

    @property
    def steps_done(self) -> int:
        """Steps that have ended."""

    @property
    def last_step(self) -> int:
        """The step that the limits end the run at."""

    @property
    def epoch(self) -> int:
        """Epochs that have ended."""

    def stop(self) -> None:
        """Ends the run after the current step, with a checkpoint."""


class Callback:
    """Hooks of the training loop: subclass it and override what you need. Rank 0 alone calls them.

    A hook must not communicate. To end training in order, keep the `run` of `on_start` and call `run.stop()`.
    """

    def on_start(self, run: RunView) -> None:
        """Called before the first step of this attempt."""

    def on_step(self, step: int, loss: float, examples: int) -> None:
        """Called after every step, with its number from 1, its mean loss and its number of examples."""

    def on_record(self, record: Mapping[str, Any]) -> None:
        """Called with each record of metrics.jsonl: at an epoch's end, at a validation, every log_every steps."""

    def busy(self, patience: float) -> bool:
        """Whether a checkpoint is still being written, for which this waits up to `patience` seconds."""
        return False

    def on_checkpoint(self, checkpoint: Checkpoint, best: Checkpoint, step: int, final: bool) -> None:
        """Called to save the state that the run resumes from, and its best model so far. Both are copies, which do not
        change later."""

    def newest_checkpoint(self, step: int) -> Checkpoint | None:
        """The newest of the checkpoints saved, from no later than `step`; None where this callback saves none."""
        return None

    def on_rollback(self, step: int) -> None:
        """Called after the run has returned to this step: later steps follow again, without one minibatch."""

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Called after the last step of this attempt, with the contents of summary.json."""

    def close(self) -> None:
        """Called last, also when the attempt has failed."""


class History(Callback):
    """Keeps the records in memory."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def on_record(self, record: Mapping[str, Any]) -> None:
        self.records.append(dict(record))

    def on_rollback(self, step: int) -> None:
        self.records[:] = [record for record in self.records if record["step"] <= step]
