"""Several runs side by side: the options in which they differ, their scores and times, as a table or as CSV."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from distsgd.core.components import wrong_name
from distsgd.core.errors import ConfigurationError, RunFolderError, visible
from distsgd.core.output import columns, number, shortened
from distsgd.plots.runs import Run, differing, names
from distsgd.run.config_file import read_toml
from distsgd.run.files.folder import RunFolder
from distsgd.run.picture_material import check_is_run, read_records, run_of
from distsgd.training.early_stopping import monitor_mode

Cell: TypeAlias = str | int | float | bool | None
_SETS = ("train_", "validation_", "test_")
_PLACES = ("best_epoch", "steps")
_ATTEMPT = {"ranks": "ranks", "wall_seconds": "seconds", "examples_per_second": "examples_per_second"}
"""Columns of what may differ between equal runs, by their names in the summary."""
_WIDEST = 28
"""Columns of a cell of the table at most, and of a run's name."""
_GAP = "  "
_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")
"""With these a spreadsheet takes a text for a formula."""


@dataclass(frozen=True)
class Comparison:
    """A row for each run, a column for each thing that is known of any of them.

    header   the columns' names; the first two are `run` and `status`
    rows     the cells, None where a run has nothing
    notes    a sentence for each thing that is damaged
    options  how many columns after the first two are options
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    options: int = 0

    def sorted_by(self, column: str, order: str = "best") -> Comparison:
        """The rows in the order of a column, those without a value last.

        order   ascending, descending, or best: scores from the best on, all else ascending

        Raises ConfigurationError for a name that is no column, and for a score that has no known best.
        """
        name = column.replace("-", "_")
        if name not in self.header:
            raise wrong_name("sort", column, self.header)
        place = self.header.index(name)
        descending = order == "descending" or (order == "best" and _more_is_better(name))
        there = [row for row in self.rows if not _is_missing(row[place])]
        missing = [row for row in self.rows if _is_missing(row[place])]
        there.sort(key=lambda row: _key(row[place]), reverse=descending)
        return replace(self, rows=[*there, *missing])

    def table(self, width: int) -> list[str]:
        """Lines of at most so many columns. What doesn't fit beside each other stands below, after the runs' names.

        Errors are left out where accuracies say the same.
        """
        shown = [
            place for place, name in enumerate(self.header)
            if name.rpartition("_")[2] != "error" or f"{name[:-5]}accuracy" not in self.header
        ]  # fmt: skip
        texts = [[visible(name) for name in self.header], *map(self._texts, self.rows)]
        widest = min(_WIDEST, (width - len(_GAP)) // 2)
        blocks: list[list[list[str]]] = []
        first, left = _column(texts, 0, self.rows, widest), 0
        for place in shown[1:]:
            column = _column(texts, place, self.rows, widest)
            if not blocks or columns(column[0]) + len(_GAP) > left:
                blocks.append([first])
                left = width - columns(first[0])
            blocks[-1].append(column)
            left -= columns(column[0]) + len(_GAP)
        lines: list[str] = []
        for block in blocks:
            lines += [""] if lines else []
            lines += [_GAP.join(cells).rstrip() for cells in zip(*block, strict=True)]
        return lines

    def _texts(self, row: Sequence[Cell]) -> list[str]:
        """The cells of a row in the table: options as they are set, the rest with four digits."""
        places = range(2, 2 + self.options)
        return [_text(cell, "g" if place in places else "") for place, cell in enumerate(row)]

    def csv(self) -> str:
        """All columns as CSV with a header. A text that a spreadsheet would take for a formula has a ' before it."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([[_safe(cell) for cell in row] for row in (self.header, *self.rows)])
        return file.getvalue()


def compare(paths: Sequence[str]) -> Comparison:
    """The runs in these folders. Raises RunFolderError for a folder that holds no run."""
    read = [_read(check_is_run(Path(path))) for path in paths]
    runs = [run for run, _, _ in read]
    differ = _options([run for run in runs if run.options])
    scores = [_scores(run) for run, _, _ in read]
    shown = _in_order([key for one in scores for key, value in one.items() if not _is_missing(value)])
    shown = [key for key in shown if key not in differ]
    rows = [
        [name, status, *(_cell(run.options.get(option)) for option in differ), *(one.get(key) for key in shown)]
        for name, (run, status, _), one in zip(names(runs), read, scores, strict=True)
    ]
    notes = [note for _, _, found in read for note in found]
    return Comparison(["run", "status", *differ, *shown], rows, notes, len(differ))


def _options(runs: Sequence[Run]) -> list[str]:
    """The options that differ, without those that only follow from which optimizer each run has."""
    differ = differing(runs)
    if "optimizer" not in differ:
        return differ
    return [
        name for name in differ
        if any(run.options[name] not in (None, run.defaults.get(name, not run.options[name])) for run in runs)
    ]  # fmt: skip


def _read(folder: Path) -> tuple[Run, str, Sequence[str]]:
    """(the run as far as it can be read, its status, a sentence for each thing that is damaged)."""
    notes: list[str] = []
    summary = RunFolder(folder).read_summary()
    status = "unfinished" if summary is None else summary.get("status")
    if (summary is None and os.path.lexists(folder / "summary.json")) or not isinstance(status, str):
        notes.append(f"{folder / 'summary.json'} is no summary; it was changed or cut short")
    records: Sequence[Mapping[str, Any]] = ()
    try:
        records, damage = read_records(folder / "metrics.jsonl", ended=status in ("completed", "early_stopped"))
        notes += [damage] if damage else []
    except RunFolderError as error:
        notes.append(str(error))
    try:
        run = run_of(folder, read_toml(folder / "config.toml"), records, summary)
    except ConfigurationError as error:
        notes.append(str(error))
        run = Run(folder, records, summary, {}, {})
    return run, "damaged" if notes else str(status), notes


def _scores(run: Run) -> dict[str, Cell]:
    """The scores of the parameters that the run keeps: of its summary, or else of its best or last record so far."""
    last = run.records[-1] if run.records else {}
    found: dict[str, Cell] = {"train_loss": last.get("train_loss"), "steps": last.get("step")}
    best = run.best or next((one for one in reversed(run.records) if "validation_loss" in one), {})
    if run.best is not None:
        found["best_epoch"] = run.best.get("epoch")
    for document in (best, run.summary or {}):
        found |= {key: value for key, value in document.items() if key.startswith(_SETS) or key in _PLACES}
    attempt = (run.summary or {}).get("run") or last.get("run") or {}
    if isinstance(attempt, Mapping):
        found |= {"seconds": attempt.get("seconds")}
        found |= {name: attempt[key] for key, name in _ATTEMPT.items() if key in attempt}
    return {
        key: value for key, value in found.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _in_order(found: Sequence[str]) -> list[str]:
    """The names, each once: scores by their sets, then where they were reached, then times."""
    rest = [*_PLACES, *_ATTEMPT.values()]
    named = dict.fromkeys(found)
    return [name for start in _SETS for name in named if name.startswith(start)] + [one for one in rest if one in named]


def _cell(value: Any) -> Cell:
    """An option's value."""
    if isinstance(value, tuple | list):
        return " ".join(map(str, value))
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _is_missing(cell: Cell) -> bool:
    return cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell))


def _key(cell: Cell) -> tuple[bool, float, str]:
    """Numbers before texts; a whole number of hundreds of digits is infinite."""
    if isinstance(cell, str) or cell is None:
        return True, 0.0, cell or ""
    try:
        return False, float(cell), ""
    except OverflowError:
        return False, math.inf if cell > 0 else -math.inf, ""


def _more_is_better(name: str) -> bool:
    if not name.startswith(_SETS) or name in ("train_metrics", "test_at_best", "validation_fraction"):
        return False
    try:
        return monitor_mode(name) == "max"
    except ConfigurationError:
        raise ConfigurationError(
            f"sort: whether less or more of {name} is better isn't known; add --order ascending or descending"
        ) from None


def _text(cell: Cell, digits: str) -> str:
    """A cell of the table."""
    if _is_missing(cell):
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    try:
        return visible(str(cell) if not isinstance(cell, float) else f"{cell:g}" if digits else number(cell))
    except ValueError:  # more digits than Python writes
        return "a very long number"


def _column(texts: Sequence[Sequence[str]], place: int, rows: Sequence[Sequence[Cell]], widest: int) -> list[str]:
    """The cells of a column, all equally wide: numbers to the right, texts to the left."""
    cells = [shortened(row[place], widest) for row in texts]
    width = max(map(columns, cells))
    right = place and all(isinstance(row[place], int | float) or _is_missing(row[place]) for row in rows)
    spaces = [" " * (width - columns(cell)) for cell in cells]
    return [space + cell if right else cell + space for cell, space in zip(cells, spaces, strict=True)]


def _safe(cell: Cell) -> str:
    """A cell of CSV: numbers with all their digits."""
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, str):
        cell = visible(cell)
        return f"'{cell}" if cell.startswith(_FORMULAS) else cell
    try:
        return "" if _is_missing(cell) else repr(cell)
    except ValueError:
        return "a very long number"
