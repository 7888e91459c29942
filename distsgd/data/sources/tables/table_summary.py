"""What is in each column of a table, found in one pass: for a look at a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from distsgd.core.errors import DataError
from distsgd.data.sources.summary import Summary
from distsgd.data.sources.tables.arrow_columns import Field, decoded, numbers_of
from distsgd.data.sources.tables.table import Table


@dataclass
class ColumnSummary(Summary):
    """What a column holds; `field` is its name and type."""

    field: Field = field(kw_only=True)

    def add_column(self, column: Any, where: str) -> None:
        """Adds the values of an array of Arrow."""
        column = decoded(column)
        if self.field.kind in ("text", "other"):
            self.rows += len(column)
            self.missing += column.null_count
        else:
            self.add(numbers_of(column, self.field, where))
        if not (self.field.kind == "text" or self.field.is_integer):
            self.counts = None
        elif self.counts is not None:
            there = (one for one in column.value_counts() if one["values"].is_valid)
            self.count((one["values"].as_py(), one["counts"].as_py()) for one in there)


def _kind(one: Field) -> str:
    if one.kind == "other":
        return one.what.partition(";")[0]
    return one.kind if one.dtype is None else f"{one.dtype.name}{f' ({one.width},)' if one.width else ''}"


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
    found = {one.name: ColumnSummary(one.name, "", {}, field=one) for one in table.fields}

    def visit(first: int, batch: Any) -> None:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            found[name].add_column(column, table.where)

    known = table.passed([*found], visit)
    for one in known.fields:
        found[one.name].field, found[one.name].kind = one, _kind(one)
    if known.rows and not all(one.rows == known.rows for one in found.values()):
        raise DataError(f"{table.where}: expected {known.rows:,} values in each column, got others; make it again")
    return list(found.values())
