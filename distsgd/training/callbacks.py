"""What watches the loop, on rank 0 alone: records, checkpoints, progress, and the user's own."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from distsgd.core.checkpoint import Checkpoint
from distsgd.core.errors import CheckpointError, DistsgdError, OutputError
from distsgd.core.output import report_to_launcher, say
from distsgd.run.background import BackgroundWriter, Task
from distsgd.run.folder import RunFolder

if TYPE_CHECKING:
    from distsgd.training.trainer import Trainer


class Callback:
    """Hooks of the training loop; subclass it and override what you need. Called on rank 0 alone.

    A hook must not communicate. To end training in an orderly way, call `trainer.stop()`.
    """

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step of this attempt."""

    def on_step(self, step: int, loss: float, examples: int) -> None:
        """After every step: its number from 1, its mean loss and its number of examples."""

    def on_record(self, record: Mapping[str, Any]) -> None:
        """A record for metrics.jsonl: at the end of an epoch, at a validation, every log_every steps."""

    def busy(self, patience: float) -> bool:
        """Whether a checkpoint is still being written, for which this waits up to `patience` seconds."""
        return False

    def on_checkpoint(self, checkpoint: Checkpoint, best: Checkpoint, step: int, final: bool) -> None:
        """Time to save: all that the run needs to go on, and the parameters that it would hand over now. Both hold
        copies, which nobody changes any more."""

    def newest_checkpoint(self, step: int) -> Checkpoint | None:
        """The newest of the checkpoints saved, from no later than `step`; None where this callback saves none."""
        return None

    def on_rollback(self, step: int) -> None:
        """The run has gone back to this step: what came after it will come again, without a minibatch."""

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """After the last step of this attempt, with what summary.json says."""

    def close(self) -> None:
        """Always called last, also when the attempt failed."""


class FolderWriter(Callback):
    """Writes the run folder: records as they come, checkpoints in the background, and the summary last."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._writer = BackgroundWriter(_warn)
        self._submitted: int | None = None
        self._written: int | None = None
        self._best: int | None = None
        self._problem = ""

    def on_start(self, trainer: Trainer) -> None:
        self._written = trainer.progress.step or None  # what it goes on from

    def on_record(self, record: Mapping[str, Any]) -> None:
        try:
            self.folder.add_metrics(record)
        except OutputError as error:
            if str(error) != self._problem:
                _warn(f"{error}; it is kept, and tried again")
            self._problem = str(error)
        else:
            self._problem = ""

    def busy(self, patience: float) -> bool:
        return self._writer.busy(patience)

    def on_checkpoint(self, checkpoint: Checkpoint, best: Checkpoint, step: int, final: bool) -> None:
        if step != self._submitted:
            self._submitted = step
            name = f"the checkpoint of step {step}"
            self._writer.submit(Task(name, lambda: self._write(checkpoint, best, step)))
        if final:
            self._finish()

    def _write(self, checkpoint: Checkpoint, best: Checkpoint, step: int) -> None:
        """On the writer's thread. Records go first, for a run that goes on has those up to its checkpoint."""
        self._tell(self.folder.make_again() or self.folder.moved())
        self.folder.sync_metrics()
        self.folder.checkpoints.save(checkpoint, step)
        handed = best.document["step"] if best.document.get("best") else None
        if handed is None or handed != self._best:
            self.folder.checkpoints.save_best(best)
        self._best, self._written = handed, step

    def _finish(self) -> None:
        try:
            self._writer.finish()
        except DistsgdError as error:
            last = "there is no checkpoint yet" if self._written is None else f"the last is of step {self._written}"
            raise CheckpointError(
                f"{error}, tried several times; {last}; put this right, and the same command goes on from there"
            ) from None

    def newest_checkpoint(self, step: int) -> Checkpoint | None:
        try:
            self._writer.finish()
        except DistsgdError as error:
            _warn(f"{error}; going on from an older one")
        return self.folder.checkpoints.newest(step)[0]

    def on_rollback(self, step: int) -> None:
        self.folder.cut_metrics(step)
        self._submitted = self._best = None

    def on_end(self, summary: Mapping[str, Any]) -> None:
        self._tell(self.folder.moved())
        self.folder.write_summary(summary)

    def _tell(self, change: str) -> None:
        """Says that the folder isn't what or where it was, to distsgd.launch too, which looks into it."""
        if change:
            _warn(change)
            report_to_launcher("folder", path=os.path.abspath(self.folder.place()))

    def close(self) -> None:
        self._writer.close()


def _warn(text: str) -> None:
    say(f"warning: {text}", sys.stderr)


class History(Callback):
    """Keeps the records in memory."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def on_record(self, record: Mapping[str, Any]) -> None:
        self.records.append(dict(record))

    def on_rollback(self, step: int) -> None:
        self.records[:] = [record for record in self.records if record["step"] <= step]
