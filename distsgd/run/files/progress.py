"""What a person sees while a run trains: rows of 80 columns, and a progress bar on a terminal. Rank 0 alone prints."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, final

from distsgd.core.errors import visible
from distsgd.core.output import COLUMNS, columns, columns_of_launcher, note_failure, number, say, shortened, silence
from distsgd.core.runtime import launcher_size
from distsgd.training.callbacks import Callback, RunView

_REFRESH_SECONDS = 0.1
_ROWS = 200
_SCORE = 11
"""Columns of a score, with the space before it."""
_SPEED_AND_MARK = 14
_FOR_CTRL_C = 4
"""Columns that the bar leaves free: a terminal shows ^C after it, and a line that wraps can't be taken back."""
_FIRST = ("train_loss", "validation_loss", "validation_accuracy", "validation_r2", "test_accuracy", "test_r2")
"""What is shown in any case, where it is measured; then what else is validated, and at last the test loss."""
_SETS = ("train", "validation", "test")
_SHORT = {"mean squared error": "MSE", "mean absolute error": "MAE"}


@final
class Table(Callback):
    """A row a record under a header; of more than 200 about 100 at equal distances, the best in between, and the last.

    show   prints a line
    """

    def __init__(self, show: Callable[[str], None] = say) -> None:
        self._show, self._seen = show, dict[str, None]()  # an ordered set
        self._header, self._held = "", list[Mapping[str, Any]]()

    def on_start(self, run: RunView) -> None:
        epochs = max(1, -(-run.last_step // run.steps_per_epoch))
        self._last_step, self._per_epoch = run.last_step, run.steps_per_epoch
        self._distance, self._began = run.steps_per_epoch, run.steps_done
        self._before = run.steps_done
        most = _ROWS // 2  # for each a best one may come, too
        self._every, self._in_epoch = -(-epochs // most), max(1, most // epochs)
        self._epoch, self._step = max(5, len(str(epochs))), max(6, len(str(run.last_step)) + 1)

    def on_record(self, record: Mapping[str, Any]) -> None:
        step, before = record["step"], self._before
        if not before == self._began > 0:  # between the step that a run continues at and its first record may be few
            self._distance = min(self._distance, max(1, step - before))
        earlier = [] if record.get("best") else [held for held in self._held if held.get("best")]
        self._held, self._before = [*earlier, record], step
        if self._last_step <= self._distance * _ROWS or self._part(step) > self._part(before):
            self._show_held()

    def _part(self, step: int) -> int:
        """The run's part, of 100 at most, that this step is in: of an epoch, or several epochs."""
        epoch, after = divmod(step, self._per_epoch)
        return epoch // self._every * self._in_epoch + after // -(-self._per_epoch // self._in_epoch)

    def on_rollback(self, step: int) -> None:
        self._held = [held for held in self._held if held["step"] <= step]
        self._before = min(self._before, step)

    def on_end(self, summary: Mapping[str, Any]) -> None:
        self._show_held()

    def close(self) -> None:
        self._show_held()  # after an error

    def _show_held(self) -> None:
        for record in self._held:
            self._seen |= {name: None for name, value in record.items() if isinstance(value, float)}
            names = _columns(list(self._seen), (COLUMNS - self._epoch - self._step - _SPEED_AND_MARK) // _SCORE)
            self._show_header(names)
            self._show(self._row(record, names))
        self._held = []

    def _show_header(self, names: list[str]) -> None:
        """Two lines, again where there are more scores than before: those of the test set come with a best one."""
        sets, scores = zip(*(_shortened(name) for name in names), strict=True)
        lines = [
            f"{'':{self._epoch + self._step}}{_cells(sets)}",
            f"{'epoch':>{self._epoch}}{'step':>{self._step}}{_cells(scores)}{'examples/s':>12}",
        ]
        if self._header != (header := "\n".join(lines)):
            self._header = header
            for line in lines:
                self._show(line)

    def _row(self, record: Mapping[str, Any], names: list[str]) -> str:
        values = [number(record[name]) if isinstance(record.get(name), float) else "" for name in names]
        speed = record.get("run", {}).get("examples_per_second")
        line = f"{record['epoch']:>{self._epoch}}{record['step']:>{self._step}}{_cells(values)}"
        return (line + (f"{speed:>12,.0f}" if speed else "") + (" *" if record.get("best") else "")).rstrip()


def _columns(seen: list[str], most: int) -> list[str]:
    """Which scores are shown, set after set: at most this many."""
    others = [name for name in seen if name.startswith("validation_") and name != "validation_error"]
    wanted = [name for name in dict.fromkeys((*_FIRST, *others, "test_loss")) if name in seen or name == _FIRST[0]]
    return sorted(wanted[:most], key=lambda name: _SETS.index(name.partition("_")[0]))


def _shortened(name: str) -> tuple[str, str]:
    """A score's set and its metric, which loses its middle where it is long."""
    part, _, metric = name.partition("_")
    words = metric.replace("_", " ")
    return part, shortened(_SHORT.get(words, words), _SCORE - 1)


def _cells(texts: list[str] | tuple[str, ...]) -> str:
    return "".join(" " * (_SCORE - columns(text)) + text for text in texts)


@final
class Bar(Callback):
    """A progress bar with loss, examples/s and remaining time, in one line, which is gone at the end."""

    def __init__(self, width: int | None) -> None:
        from rich.console import Console, RenderableType
        from rich.constrain import Constrain
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console() if width is None else Console(force_terminal=True, width=width)

        class Narrow(Progress):
            def get_renderable(self) -> RenderableType:
                return Constrain(super().get_renderable(), max(1, console.width - _FOR_CTRL_C))

        self._bar = Narrow(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[text]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            transient=True,
            console=console,
            redirect_stdout=not console.is_jupyter,  # else each line that is printed becomes a display of its own there
            redirect_stderr=not console.is_jupyter,
        )
        self._shown, self._examples, self._began = 0.0, 0, 0.0

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
        self._bar.update(self._task, completed=step, text=f"loss {number(loss)}  {speed:,.0f} examples/s")
        self._shown = now

    def show(self, line: str) -> None:
        """Prints a line above the bar; in a notebook, below it."""
        if self._bar.console.is_jupyter:
            say(line)
            return
        try:
            self._bar.console.print(visible(line), markup=False, emoji=False, highlight=False, soft_wrap=True)
        except OSError as error:  # the terminal is gone
            note_failure(error)
            silence(sys.stdout)

    def on_end(self, summary: Mapping[str, Any]) -> None:
        self.close()

    def close(self) -> None:
        self._bar.console.quiet = self._bar.console.is_jupyter  # where rich would display an empty text at the end
        self._bar.stop()  # the terminal is as it was, also after an error


def make_progress(quiet: bool, profile: bool = False) -> list[Callback]:
    """A table, and on a terminal or in a notebook a bar if rich is installed (the extra `progress`); nothing if quiet.
    `profile`: also a table of where the time went, which records then have.

    Under a launcher it is the launcher's terminal that counts: ranks have a pipe, or, under Open MPI, a terminal even
    where its own output goes to a file.
    """
    if quiet:
        return []
    width = None if launcher_size() is None else columns_of_launcher()
    if width is not None or (launcher_size() is None and (sys.stdout.isatty() or _in_notebook())):
        try:
            bar = Bar(width)
        except ImportError:
            pass
        else:
            return [Table(bar.show), *_profile_tables(bar.show, profile), bar]
    return [Table(), *_profile_tables(say, profile)]


def _profile_tables(show: Callable[[str], None], profile: bool) -> list[Callback]:
    if not profile:
        return []
    from distsgd.run.files.profile_table import ProfileTable

    return [ProfileTable(show)]


def _in_notebook() -> bool:
    """Whether rich draws into a notebook's page, for which it needs ipywidgets."""
    return "ipykernel" in sys.modules and find_spec("ipywidgets") is not None
