"""What is in a data file: each array or column with its range, and what training would take of them. One pass, in which
no more than a block is in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from math import nan, prod
from typing import Any, TypeAlias

import numpy as np

from distsgd.core.device import Array, Shape
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.data.sources.base import ArraySource, DataSource, ReadOptions
from distsgd.data.sources.converted import blocks_of
from distsgd.data.sources.registry import existing, files_of, format_of, open_path
from distsgd.data.sources.streams import absolute

_BLOCK = 4 << 20
"""Bytes of an array that are looked at together."""
_COUNTED = 1000
"""Different whole numbers that are counted."""
_RANGE = 1 << 16
"""Between whole numbers that lie so close they are counted without sorting them."""


@dataclass(frozen=True)
class Summary:
    """What an array or a column holds.

    Parameters
    ----------
    name, kind : str
        Its name in the file, and its type in words.
    missing : int
        How many examples lack a value.
    low, high : float
        The least and the greatest of the numbers; NaN where there are none.
    counts : dict of str to int, optional
        How often there is each text, or each whole number of an array with one an example; None where there are more
        than 1,000.
    """

    name: str
    kind: str
    missing: int = 0
    low: float = nan
    high: float = nan
    counts: dict[str, int] | None = None


@dataclass(frozen=True)
class Role:
    """What an array of the data set is made of: names in the file, and its shape and type in memory."""

    names: tuple[str, ...]
    shape: Shape
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Look:
    """What is in a data file.

    Parameters
    ----------
    where, format : str
        Its path, and what it is.
    columns : sequence of Summary
        Its arrays or columns, in its order.
    roles : dict of str to Role
        Those that training would take: x_train, y_train and so on; empty where that isn't known.
    problem : str
        Why it isn't known: a sentence.
    chunk : int
        Examples that are stored together.
    notes : tuple of str
        What else there is to say.
    """

    where: str
    format: str
    columns: Sequence[Summary]
    roles: dict[str, Role]
    problem: str
    chunk: int
    notes: tuple[str, ...]


Progressed: TypeAlias = Callable[[], object]


def look_at(path: str, options: ReadOptions, progressed: Progressed = lambda: None) -> Look:
    """Looks through a data file; calls `progressed` after each block.

    Raises DataError where it can't be read, and ConfigurationError for what its format doesn't take.
    """
    several = files_of(path)
    where = absolute(path)
    one = format_of(several[0] if several else existing(where))
    kind = f"{len(several)} files, each {one.name}" if several else one.name
    if hasattr(import_module(one.module), "open_table"):
        one.check(where, options)
        return _tables(where, kind, several or [where], options, progressed)
    listed = open_path(path, replace(options, missing="refuse", listed=True, streamed=True))
    columns = [summarized(name, source, progressed) for name, source in listed.arrays.items()]
    try:
        source = open_path(path, replace(options, missing="refuse", streamed=True))
    except (ConfigurationError, DataError) as error:
        chunk = max((array.chunk for array in listed.arrays.values()), default=1)
        return Look(where, kind, columns, {}, str(error), chunk, listed.notes)
    names = _names_of(where, source, listed, options)
    notes = tuple({**dict.fromkeys(listed.notes), **dict.fromkeys(source.notes)})
    return Look(where, kind, columns, _roles(source, names), "", source.arrays["x_train"].chunk, notes)


def look_at_arrays(source: DataSource, kind: str, progressed: Progressed = lambda: None) -> Look:
    """Looks through the arrays of a data set that has a name."""
    columns = [summarized(name, one, progressed) for name, one in source.arrays.items()]
    return Look(source.name, kind, columns, _roles(source, {}), "", source.arrays["x_train"].chunk, source.notes)


def _roles(source: DataSource, names: dict[str, tuple[str, ...]]) -> dict[str, Role]:
    return {key: Role(names.get(key, (key,)), one.shape, one.dtype) for key, one in source.arrays.items()}


def _names_of(where: str, source: DataSource, listed: DataSource, options: ReadOptions) -> dict[str, tuple[str, ...]]:
    if set(listed.arrays) == set(source.arrays):
        return {}
    from distsgd.data.sources.selection import roles

    every = [*listed.arrays, *(name for name in source.unused if name not in listed.arrays)]
    return roles(where, every, options)


def summarized(name: str, source: ArraySource, progressed: Progressed = lambda: None) -> Summary:
    """What an array holds, read block by block."""
    per_example = " ".join(["", str(source.shape[1:])]) if source.shape[1:] else ""
    kind = f"{source.dtype.name}{per_example}"
    row = max(1, prod(source.shape[1:]) * source.dtype.itemsize)
    counts: dict[int, int] | None = {} if source.dtype.kind in "biu" and prod(source.shape[1:]) == 1 else None
    missing, low, high = 0, nan, nan
    for _, found in blocks_of({"": source}, max(1, _BLOCK // row)):
        block = there = found[""]
        if block.dtype.kind == "f" or source.absent:
            lacks = np.isnan(block) if block.dtype.kind == "f" else np.isin(block, source.absent)
            missing += int(lacks.reshape(len(block), -1).any(axis=1).sum())
            there = block if block.dtype.kind == "f" else block[~lacks]
        if there.size:
            low = float(np.fmin(low, np.fmin.reduce(there, axis=None)))
            high = float(np.fmax(high, np.fmax.reduce(there, axis=None)))
        counts = counts if counts is None else _counted(counts, there.reshape(-1))
        progressed()
    return Summary(name, kind, missing, low, high, None if counts is None else _texts(counts))


def _texts(counts: dict[int, int]) -> dict[str, int]:
    return {str(value): counts[value] for value in sorted(counts)}


def _counted(counts: dict[int, int], values: Array) -> dict[int, int] | None:
    """The counts with those of a block of whole numbers."""
    if not values.size:
        return counts
    low, high = int(values.min()), int(values.max())
    if high - low < _RANGE and values.dtype.kind != "b":
        often = np.bincount((values - values.dtype.type(low)).astype(np.int64))
        found = {low + int(place): int(often[place]) for place in np.flatnonzero(often)}
    else:
        different, often = np.unique(values, return_counts=True)
        found = {int(one): int(number) for one, number in zip(different, often, strict=True)}
    whole = counts | {one: counts.get(one, 0) + number for one, number in found.items()}
    return whole if len(whole) <= _COUNTED else None


def _tables(where: str, kind: str, paths: Sequence[str], options: ReadOptions, progressed: Progressed) -> Look:
    """A look at tables of one kind, whose columns are looked through together."""
    from distsgd.data.sources.tables.choice import choose
    from distsgd.data.sources.tables.sharded_table import ShardedTable
    from distsgd.data.sources.tables.table import open_table
    from distsgd.data.sources.tables.table_plan import planned
    from distsgd.data.sources.tables.table_summary import summarized as columns_of

    tables = [open_table(path) for path in paths]
    table = tables[0] if len(tables) == 1 else ShardedTable.of(where, tables)
    columns = columns_of(table)
    progressed()
    known = [Summary(one.name, _kind(one.field), one.missing, one.low, one.high, one.counts) for one in columns]
    rows, fields = columns[0].rows, [column.field for column in columns]
    try:
        choice = choose(where, [one.name for one in fields], options, table.hidden)
        shapes = planned(where, fields, choice, options).shapes()
        widths = [_width(where, column.field, column.counts) for column in columns if column.name in choice.x]
    except (ConfigurationError, DataError) as error:
        return Look(where, kind, known, {}, str(error), table.chunk, table.notes)
    shapes["x"] = ((sum(widths),), shapes["x"][1])
    used = {"x": choice.x, "y": choice.y, "weights": (choice.weights or "",), "group": (choice.group or "",)}
    roles = {f"{key}_train": Role(used[key], (rows, *shape), dtype) for key, (shape, dtype) in shapes.items()}
    return Look(where, kind, known, roles, "", table.chunk, table.notes)


def _kind(field: Any) -> str:
    if field.kind == "other":
        return str(field.what).partition(";")[0]
    return field.kind if field.dtype is None else f"{field.dtype.name}{f' ({field.width},)' if field.width else ''}"


def _width(where: str, field: Any, counts: dict[str, int] | None) -> int:
    """How many features a column is."""
    if field.kind != "text":
        return max(1, int(field.width))
    if counts is None:
        raise DataError(
            f"{where}: column {field.name} holds more than {_COUNTED:,} different texts, and so many can't be inputs; "
            "leave it out of --x"
        )
    return len(counts)
