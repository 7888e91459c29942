"""Tables in several files as one: rows one after the other, texts, means and classes those of all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np

from distsgd.core.errors import DataError
from distsgd.data.sources.base import Runs, cut_at
from distsgd.data.sources.shards import OpenFiles
from distsgd.data.sources.tables.arrow_columns import Field
from distsgd.data.sources.tables.table import OpenTable, Table, Visit


@dataclass(frozen=True, eq=False)
class ShardedTable(Table):
    """Several tables with the same columns."""

    parts: tuple[Table, ...] = field(kw_only=True)

    @classmethod
    def of(cls, where: str, parts: Sequence[Table]) -> ShardedTable:
        """The table of these. Raises DataError where they have other columns than the first."""
        fields = _fields_of(parts)
        rows = -1 if any(one.rows < 0 for one in parts) else sum(one.rows for one in parts)
        notes = tuple(dict.fromkeys(note for one in parts for note in one.notes))
        files = tuple(stamp for one in parts for stamp in one.files)
        chunk = max(one.chunk for one in parts)
        return cls(where, fields, rows, chunk, files, parts[0].hidden, notes, parts=tuple(parts))

    @contextmanager
    def opened(self) -> Iterator[OpenTable]:
        """The tables, each opened when it is read."""
        with closing(OpenFiles(lambda number: self.parts[number].opened())) as files:
            yield _OpenShards(files, [0, *accumulate(one.rows for one in self.parts)])

    def passed(self, names: Sequence[str], visit: Visit | None) -> Table:
        """The tables after their passes."""
        found: list[Table] = []
        for part in self.parts:
            before = sum(one.rows for one in found)
            found.append(part.passed(names, None if visit is None else partial(_shifted, visit, before)))
        return ShardedTable.of(self.where, found)


def _shifted(visit: Visit, before: int, first: int, batch: Any) -> None:
    visit(before + first, batch)


def _fields_of(parts: Sequence[Table]) -> tuple[Field, ...]:
    """The columns of all tables. Whole numbers of several types are whole, and other numbers float64."""
    found = list(parts[0].fields)
    for part in parts[1:]:
        if [one.name for one in part.fields] != [one.name for one in found]:
            raise DataError(
                f"{part.where}: expected the columns of {parts[0].where} in their order; write all files alike"
            )
        for number, one in enumerate(part.fields):
            first = found[number]
            if one.kind != first.kind or one.width != first.width:
                raise DataError(
                    f"{part.where}: column {one.name} holds {one.kind}, in {parts[0].where} {first.kind}; write all "
                    "files alike"
                )
            if one.dtype != first.dtype:
                found[number] = replace(first, dtype=_common(first.dtype, one.dtype))
    return tuple(found)


def _common(*found: np.dtype[Any] | None) -> np.dtype[Any]:
    """The type that holds numbers of these: whole numbers are labels, and so they stay whole."""
    kinds = [one for one in found if one is not None]
    if not all(one.kind in "biu" for one in kinds):
        return np.dtype(np.float64)
    whole = np.result_type(*kinds)
    return whole if whole.kind in "biu" else np.dtype(np.int64)


class _OpenShards(OpenTable):
    def __init__(self, files: OpenFiles[OpenTable], starts: Sequence[int]) -> None:
        self._files, self._starts = files, starts

    def batches(self, names: Sequence[str], runs: Runs) -> Iterator[tuple[int, Any]]:
        for number, inside in cut_at(self._starts, runs):
            for first, batch in self._files.at(number).batches(names, inside):
                yield self._starts[number] + first, batch
