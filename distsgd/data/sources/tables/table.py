"""What all tables share: CSV, Parquet, Feather and frames. From named columns to rows of inputs, targets and weights.

A format gives a `Table`: its columns and its record batches of Arrow. `table_source` says which columns are what, looks
through the table once where texts, means or dropped rows have to be known, and returns the data set.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import DataError
from distsgd.core.files import FileStamp
from distsgd.data.columns import MOST_FEATURES
from distsgd.data.sources.base import ArraySource, DataSource, ReadOptions, Rows, Runs
from distsgd.data.sources.missing import KeptSource
from distsgd.data.sources.tables.arrow_columns import Field, columns_of
from distsgd.data.sources.tables.choice import choose
from distsgd.data.sources.tables.table_plan import Plan, planned
from distsgd.data.sources.tables.table_scan import Scan

Visit: TypeAlias = Callable[[int, Any], None]
"""Takes the first row of a record batch, and the batch."""
_NAME = 1000
"""Characters of a column's name."""


class OpenTable(ABC):
    """A table that is open. One thread at a time uses it."""

    @abstractmethod
    def batches(self, names: Sequence[str], runs: Runs) -> Iterator[tuple[int, Any]]:
        """Record batches of Arrow, or `NumberRows`, with these columns and the rows of these runs, each with the number
        of its first row.

        A batch may have some of the columns alone; each value comes once, and no batch goes beyond its run.
        """


@dataclass(frozen=True, eq=False)
class Table(ABC):
    """A table in a file or in memory, known from its header. Can be pickled.

    Parameters
    ----------
    where : str
        Its name in messages.
    fields : tuple of Field
        Its columns.
    rows : int
        How many rows it has; -1 where only a pass counts them.
    chunk : int
        Rows that are stored together.
    files : tuple of FileStamp
        The files as they were when they were opened.
    hidden : tuple of str
        Columns that are inputs only where they are named.
    notes : tuple of str
        Sentences for the user.
    """

    where: str
    fields: tuple[Field, ...]
    rows: int
    chunk: int
    files: tuple[FileStamp, ...] = ()
    hidden: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @abstractmethod
    def opened(self) -> AbstractContextManager[OpenTable]:
        """The table, to be read. Raises DataError where the file is damaged, or not as it was."""

    def passed(self, names: Sequence[str], visit: Visit | None) -> Table:
        """The table after all rows of these columns were shown to `visit`, with what is known then."""
        if visit is not None:
            with self.opened() as opened:
                for first, batch in opened.batches(names, [(0, self.rows)]):
                    visit(first, batch)
        return self


def check_fields(where: str, names: Sequence[str]) -> None:
    """Raises DataError for names of columns that can't be used."""
    if not names:
        raise DataError(f"{where}: expected a table with columns, it has none; write it again")
    if len(names) > MOST_FEATURES:
        raise DataError(
            f"{where}: expected at most {MOST_FEATURES:,} columns, it has {len(names):,}; more are an array: save them "
            "with numpy.savez"
        )
    if long := next((name for name in names if len(name) > _NAME), None):
        raise DataError(f"{where}: expected names of at most {_NAME:,} characters, got {long[:40]!r}…; shorten it")
    seen = set[str]()
    for name in names:
        if name in seen:
            raise DataError(f"{where}: expected different names of columns, {name!r} is there twice; rename one")
        seen.add(name)


@dataclass(frozen=True, eq=False)
class Reading:
    """A table, and how its rows become arrays."""

    table: Table
    plan: Plan


@dataclass(frozen=True)
class TableArray(ArraySource):
    """The inputs, targets, weights or groups of a table; `kind` is x, y, weights or group."""

    kind: str
    reading: Reading

    @property
    def chunk(self) -> int:
        """The table's."""
        return min(max(1, self.reading.table.chunk), super().chunk)

    @property
    def table(self) -> Hashable:
        """All arrays of one table are read in one pass."""
        return self.reading

    def open_rows(self, arrays: Mapping[str, ArraySource]) -> Rows:
        """The rows of these arrays of the table."""
        kinds = {name: one.kind for name, one in arrays.items() if isinstance(one, TableArray)}
        return _TableRows(self.reading, kinds)


class _TableRows(Rows):
    """An open table, whose rows become those of its arrays."""

    def __init__(self, reading: Reading, kinds: Mapping[str, str]) -> None:
        self._reading, self._kinds = reading, kinds
        self._names = reading.plan.names(kinds.values())
        with ExitStack() as opening:
            self._opened = opening.enter_context(reading.table.opened())
            self._closing = opening.pop_all()

    def read(self, runs: Runs, out: Mapping[str, Array]) -> None:
        wanted = [run for run in runs if run[0] < run[1]]
        memory = {kind: out[name] for name, kind in self._kinds.items()}
        if not wanted:
            return
        starts = np.array([start for start, _ in wanted])
        at = np.concatenate([[0], np.cumsum([stop - start for start, stop in wanted])])
        done = 0
        for first, batch in self._opened.batches(self._names, wanted):
            run = int(np.searchsorted(starts, first, "right")) - 1
            begin = int(at[run] + first - starts[run])
            part = {kind: one[begin : begin + batch.num_rows] for kind, one in memory.items()}
            self._reading.plan.put(first, batch, part)
            done += batch.num_rows * batch.num_columns
        if done != int(at[-1]) * len(self._names):
            raise DataError(f"{self._reading.table.where}: expected the rows that were there; it changed, start again")

    def close(self) -> None:
        self._closing.close()


def table_source(table: Table, options: ReadOptions) -> DataSource:
    """The data set of a table. Raises DataError and ConfigurationError where columns can't be what they are to be."""
    names = [one.name for one in table.fields]
    plan = planned(table.where, table.fields, choose(table.where, names, options, table.hidden), options)
    scan = Scan.of(table.where, plan, options.missing)
    table = table.passed(plan.names(("x", "y", "weights", "group")), None if scan is None else scan.visit)
    plan = plan.with_fields(table.fields)
    dropped = np.empty(0, np.int64)
    if scan is not None:
        plan, dropped = scan.found(plan, table.rows)
    plan = plan.filled()
    reading = Reading(table, plan)
    if options.targets and table.rows == len(dropped):
        raise DataError(f"{table.where}: expected at least one row of values, got none; add data")
    arrays = {
        f"{kind}_train": KeptSource.of(TableArray((table.rows, *shape), dtype, kind, reading), dropped)
        for kind, (shape, dtype) in plan.shapes().items()
    }
    notes = table.notes
    if len(dropped):
        notes += (f"note: {table.where}: {len(dropped):,} of {table.rows:,} rows lack a value and are dropped",)
    columns, used = options.columns or plan.columns, set(plan.names(plan.shapes()))
    return DataSource(
        table.where, arrays, columns=columns, class_names=plan.class_names, files=table.files, notes=notes,
        unused=tuple(name for name in names if name not in used) if options.targets else (),
    )  # fmt: skip


def table_of(source: ArraySource) -> Table | None:
    """The table that an array is made of; None of other arrays."""
    inner = source.inner if isinstance(source, KeptSource) else source
    return inner.reading.table if isinstance(inner, TableArray) else None


def kept_columns(source: DataSource, names: Sequence[str], start: int, stop: int) -> dict[str, list[Any]]:
    """Values of these columns for some rows of a table's inputs, to be written beside predictions.

    Parameters
    ----------
    source : DataSource
        Of a table.
    names : sequence of str
        Of columns, inputs or not.
    start, stop : int
        Rows of the inputs, from `start` to before `stop`.

    Returns
    -------
    dict of str to list
        By name a value for each row: text, a number, or None where it is missing.
    """
    x, rows = source.arrays["x_train"], np.arange(start, stop)
    table, rows = table_of(x), x.inner_rows(rows) if isinstance(x, KeptSource) else rows
    if table is None:
        raise DataError(f"{source.name}: expected a table with the columns {', '.join(names)}, it holds arrays")
    found: dict[str, list[Any]] = {name: [None] * len(rows) for name in names}
    if not len(rows):
        return found
    with table.opened() as opened:
        for first, batch in opened.batches(names, [(int(rows[0]), int(rows[-1]) + 1)]):
            here = np.flatnonzero((rows >= first) & (rows < first + batch.num_rows))
            for name, column in columns_of(batch).items():
                values = column.to_pylist()
                for place in here:
                    found[name][place] = values[rows[place] - first]
    return found
