"""What is in a data file: each array or column with its range, and what training would take of them. One pass, in which
no more than a block is in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from distsgd.core.device import Array, Shape
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.data.sources.base import ArraySource, DataSource, ReadOptions, rows_in
from distsgd.data.sources.converted import blocks_of
from distsgd.data.sources.registry import existing, files_of, format_of, open_path, open_table
from distsgd.data.sources.streams import absolute
from distsgd.data.sources.summary import COUNTED, Summary

if TYPE_CHECKING:
    from distsgd.data.sources.tables.arrow_columns import Field
    from distsgd.data.sources.tables.table import Table

_BLOCK = 4 << 20
"""Bytes of an array that are looked at together."""
_RANGE = 1 << 16
"""Between whole numbers that lie so close they are counted without sorting them."""


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
    if one.is_table:
        one.check(where, options)
        return _tables(where, kind, [open_table(path) for path in several or [where]], options, progressed)
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
    single = source.dtype.kind in "biu" and prod(source.shape[1:]) == 1
    one = Summary(name, kind, {} if single else None)
    for _, found in blocks_of({"": source}, rows_in(_BLOCK, {"": source})):
        there = one.add(found[""], source.absent)
        if one.counts is not None:
            one.count(_counted(there.reshape(-1)))
        progressed()
    return one


def _counted(values: Array) -> list[tuple[int, int]]:
    """How often there is each of some whole numbers."""
    if not values.size:
        return []
    low, high = int(values.min()), int(values.max())
    if high - low < _RANGE and values.dtype.kind != "b":
        often = np.bincount((values - values.dtype.type(low)).astype(np.int64))
        return [(low + place, int(often[place])) for place in np.flatnonzero(often).tolist()]
    different, often = np.unique(values, return_counts=True)
    return [(int(one), int(number)) for one, number in zip(different, often, strict=True)]


def _tables(where: str, kind: str, tables: Sequence[Table], options: ReadOptions, progressed: Progressed) -> Look:
    """A look at tables of one kind, whose columns are looked through together."""
    from distsgd.data.sources.tables.choice import choose
    from distsgd.data.sources.tables.sharded_table import ShardedTable
    from distsgd.data.sources.tables.table_plan import planned
    from distsgd.data.sources.tables.table_summary import summarized as columns_of

    table = tables[0] if len(tables) == 1 else ShardedTable.of(where, tables)
    columns = columns_of(table)
    progressed()
    rows, fields = columns[0].rows, [column.field for column in columns]
    try:
        choice = choose(where, [one.name for one in fields], options, table.hidden)
        shapes = planned(where, fields, choice, options).shapes()
        widths = [_width(where, column.field, column.counts) for column in columns if column.name in choice.x]
    except (ConfigurationError, DataError) as error:
        return Look(where, kind, columns, {}, str(error), table.chunk, table.notes)
    shapes["x"] = ((sum(widths),), shapes["x"][1])
    used = {"x": choice.x, "y": choice.y, "weights": (choice.weights or "",), "group": (choice.group or "",)}
    roles = {f"{key}_train": Role(used[key], (rows, *shape), dtype) for key, (shape, dtype) in shapes.items()}
    return Look(where, kind, columns, roles, "", table.chunk, table.notes)


def _width(where: str, field: Field, counts: dict[str, int] | None) -> int:
    """How many features a column is."""
    if field.kind != "text":
        return max(1, field.width)
    if counts is None:
        raise DataError(
            f"{where}: column {field.name} holds more than {COUNTED:,} different texts, and so many can't be inputs; "
            "leave it out of --x"
        )
    from distsgd.data.sources.tables.table_scan import refuse_numbers

    refuse_numbers(where, field.name, tuple(counts), "leave the column out with --x")
    return len(counts)
