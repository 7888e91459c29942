"""What a person sees: plain lines, or a progress bar on a terminal. Rank 0 alone prints."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from distsgd.core.errors import visible
from distsgd.core.output import columns_of_launcher, say, silence
from distsgd.core.runtime import launcher_size
from distsgd.training.callbacks import Callback, RunView
from distsgd.training.metrics import METRICS

_REFRESH_SECONDS = 0.1
_SHOWN = ("train_loss", "validation_loss", "validation_accuracy", "validation_r2", "test_accuracy")


def format_record(record: Mapping[str, Any]) -> str:
    """One line of the most telling numbers of a record."""
    parts = [f"epoch {record['epoch']:>3}", f"step {record['step']:>6}"]
    own = [name for name in record if name.startswith("validation_") and name.partition("_")[2] not in METRICS]
    for name in dict.fromkeys((*_SHOWN, *own)):
        if isinstance(record.get(name), float):
            parts.append(f"{name.replace('_', ' ')} {record[name]:.4f}")
    speed = record.get("run", {}).get("examples_per_second")
    if speed:
        parts.append(f"{speed:,.0f} examples/s")
    return "  ".join(parts) + ("  *" if record.get("best") else "")


class Lines(Callback):
    """One line a record."""

    def on_record(self, record: Mapping[str, Any]) -> None:
        say(format_record(record))


class Bar(Callback):
    """A progress bar with loss, accuracy, examples/s and remaining time; one line stays for each epoch's record."""

    def __init__(self, columns: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            transient=True,
            console=Console() if columns is None else Console(force_terminal=True, width=columns),
        )
        self._shown, self._examples, self._began, self._accuracy = 0.0, 0, 0.0, ""

    def on_start(self, run: RunView) -> None:
        self._task = self._bar.add_task("train", total=run.last_step, completed=run.steps_done, text="")
        self._bar.start()
        self._began = time.monotonic()

    def on_step(self, step: int, loss: float, examples: int) -> None:
        self._examples += examples
        now = time.monotonic()
        if now - self._shown < _REFRESH_SECONDS:
            return
        speed = self._examples / max(now - self._began, 1e-9)
        text = f"loss {loss:.4f}{self._accuracy}  {speed:,.0f} examples/s"
        self._bar.update(self._task, completed=step, text=text)
        self._shown = now

    def on_record(self, record: Mapping[str, Any]) -> None:
        if isinstance(record.get("validation_accuracy"), float):
            self._accuracy = f"  accuracy {record['validation_accuracy']:.4f}"
        try:
            line = visible(format_record(record))
            self._bar.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)
        except OSError:  # the terminal is gone
            silence(sys.stdout)

    def on_end(self, summary: Mapping[str, Any]) -> None:
        self._bar.stop()

    def close(self) -> None:
        self._bar.stop()  # the terminal is as it was, also after an error


def make_progress(quiet: bool) -> Callback | None:
    """A bar on a terminal where rich is installed (the extra `progress`), lines elsewhere, nothing when quiet.

    Under a launcher it is the launcher's terminal that counts: ranks have a pipe, or, under Open MPI, a terminal even
    where its own output goes to a file.
    """
    if quiet:
        return None
    columns = None if launcher_size() is None else columns_of_launcher()
    if columns is not None or (launcher_size() is None and sys.stdout.isatty()):
        try:
            return Bar(columns)
        except ImportError:
            pass
    return Lines()
