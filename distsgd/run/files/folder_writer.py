"""Writes the run folder while a run trains, on rank 0: records, checkpoints and the summary."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, final

from distsgd.core.checkpoint import Checkpoint
from distsgd.core.errors import CheckpointError, DistsgdError, OutputError
from distsgd.core.output import report_to_launcher, say
from distsgd.run.files.background import BackgroundWriter, Task
from distsgd.run.files.folder import RunFolder
from distsgd.run.files.records import RECORDS
from distsgd.training.callbacks import Callback, RunView


@final
class FolderWriter(Callback):
    """Writes the run folder: records as they come, checkpoints in the background, and the summary last.

    As a callback it hears of records and the summary; it is the run's `CheckpointStore`, too.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._writer = BackgroundWriter(_warn)
        self._submitted: int | None = None
        self._written: int | None = None
        self._best: int | None = None
        self._problem = ""

    def on_start(self, run: RunView) -> None:
        self._written = run.steps_done or None  # the checkpoint that the run continues from

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
        """See CheckpointStore."""
        return self._writer.busy(patience)

    def save(self, checkpoint: Checkpoint, best: Checkpoint, step: int, final: bool) -> None:
        """See CheckpointStore."""
        if step != self._submitted:
            self._submitted = step
            name, lines = f"the checkpoint of step {step}", self.folder.written_lines()
            self._writer.submit(Task(name, lambda: self._write(checkpoint, best, step, lines)))
        if final:
            self._finish()

    def _write(self, checkpoint: Checkpoint, best: Checkpoint, step: int, lines: int) -> None:
        """On the writer's thread. Records go first: a run that resumes has those up to its checkpoint, which counts
        them."""
        self._report(self.folder.make_again() or self.folder.moved())
        self.folder.sync_metrics()
        checkpoint.document[RECORDS] = self.folder.lines_until(lines)
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
                f"{error}, tried several times; {last}; put this right, and the same command continues from there"
            ) from None

    def go_back(self, step: int) -> Checkpoint | None:
        """See CheckpointStore."""
        try:
            self._writer.finish()
        except DistsgdError as error:
            _warn(f"{error}; continuing from an older one")
        self._submitted = self._best = None
        return self.folder.checkpoints.newest(step)[0]

    def on_rollback(self, step: int) -> None:
        if note := self.folder.cut_metrics(step):
            _warn(note)

    def on_end(self, summary: Mapping[str, Any]) -> None:
        self._report(self.folder.moved())
        self.folder.write_summary(summary)

    def _report(self, change: str) -> None:
        """Reports that the folder was moved or removed, to distsgd.launch too, which reads it."""
        if change:
            _warn(change)
            report_to_launcher("folder", path=os.path.abspath(self.folder.place()))

    def close(self) -> None:
        self._writer.close()


def _warn(text: str) -> None:
    say(f"warning: {text}", sys.stderr)
