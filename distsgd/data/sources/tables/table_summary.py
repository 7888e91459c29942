"""What is in each column of a table, found in one pass: for a look at a file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from dataclasses import field as value
from typing import Any

import numpy as np

from distsgd.core.errors import DataError
from distsgd.data.sources.tables.arrow_columns import Field, decoded, numbers_of
from distsgd.data.sources.tables.table import Table

_COUNTED = 1000
"""Different values that are counted; a column with more has no counts."""


@dataclass
class ColumnSummary:
    """What a column holds.

    Parameters
    ----------
    field : Field
        Its name and type.
    rows : int
        How many rows it has.
    missing : int
        How many of them lack a value.
    low, high : float
        The least and the greatest of the numbers that are there; NaN of text.
    counts : dict of str to int, optional
        How often there is each text or whole number; None where there are more than 1,000 different ones, and of
        floats.
    """

    field: Field
    rows: int = 0
    missing: int = 0
    low: float = float("nan")
    high: float = float("nan")
    counts: dict[str, int] | None = value(default_factory=dict)

    @property
    def name(self) -> str:
        """The column's name."""
        return self.field.name

    def add(self, column: Any, where: str) -> None:
        """Adds the values of an array of Arrow."""
        self.rows += len(column)
        column = decoded(column)
        if self.field.kind in ("text", "other"):
            self.missing += column.null_count
        else:
            values = numbers_of(column, self.field, where)
            if values.dtype.kind == "f":
                lacks = np.isnan(values)
                self.missing += int(np.count_nonzero(lacks.reshape(len(values), -1).any(axis=1)))
            if values.size:
                self.low = float(np.fmin(self.low, np.fmin.reduce(values, axis=None)))
                self.high = float(np.fmax(self.high, np.fmax.reduce(values, axis=None)))
        if self.counts is not None and (self.field.kind == "text" or self.field.is_integer):
            found = Counter(self.counts)
            for one in column.value_counts():
                if one["values"].is_valid:
                    found[str(one["values"].as_py())] += one["counts"].as_py()
                if len(found) > _COUNTED:
                    break
            self.counts = dict(found) if len(found) <= _COUNTED else None
        elif self.counts is not None:
            self.counts = None


def summarized(table: Table) -> list[ColumnSummary]:
    """What is in each column of a table, in one pass that keeps no rows.

    Parameters
    ----------
    table : Table
        As `open_table` returns it.

    Returns
    -------
    list of ColumnSummary
        In the order of the columns; those of kind "other" say only how many values are missing.

    Raises
    ------
    DataError
        Where the file is damaged.
    """
    found = {one.name: ColumnSummary(one) for one in table.fields}

    def visit(first: int, batch: Any) -> None:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            found[name].add(column, table.where)

    known = table.passed([*found], visit)
    for one in known.fields:
        found[one.name].field = one
    if known.rows and not all(one.rows == known.rows for one in found.values()):
        raise DataError(f"{table.where}: expected {known.rows:,} values in each column, got others; make it again")
    return list(found.values())
