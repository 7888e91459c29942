"""Parquet files, and Arrow's own (Feather of version 2), as tables: read by groups of rows and panels of columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from distsgd.core.errors import DataError
from distsgd.core.files import open_regular
from distsgd.data.sources.base import DataSource, ReadOptions, Runs, cut_at
from distsgd.data.sources.streams import check_promised, stamps
from distsgd.data.sources.tables import parquet_footer
from distsgd.data.sources.tables.arrow_columns import Field, arrow, field_of, reading_by_arrow
from distsgd.data.sources.tables.table import OpenTable, Table, check_fields, table_source

_PANEL = 2 << 20
"""Bytes of columns that are decoded together: decoding takes several times as much."""
_MOST_DECODED = 1 << 30
"""Bytes of a group of rows of one column, as they are decoded."""
_OPTIONS: dict[str, Any] = {
    "pre_buffer": False, "arrow_extensions_enabled": False, "page_checksum_verification": True,
}  # fmt: skip
_METADATA = 1 << 20
"""Bytes of pandas' description that are looked at."""


def open_source(where: str, options: ReadOptions) -> DataSource:
    """The data set in a file; DataError where it can't be one."""
    return table_source(open_table(where, options), options)


def open_table(where: str, options: ReadOptions) -> Table:
    """The table in a file, by its header. Raises DataError."""
    with reading_by_arrow(where), open_regular(where) as raw:
        mark = raw.read(8)
        files = stamps([where])
        if mark[:4] in (b"PAR1", b"PARE"):
            return _open_parquet(where, files)
        if mark[:6] == b"ARROW1":
            return _open_arrow(where, files)
    what = "a file of Feather 1; write it again with a newer release" if mark[:4] == b"FEA1" else "something else"
    raise DataError(f"{where}: expected a Parquet file, or a file of Arrow (not a stream), got {what}; make it again")


def _check_decoded(where: str, rows: int, fields: Sequence[Field], packed: int) -> None:
    """Raises DataError for a file that promises far more than it can hold."""
    check_promised(where, rows * sum(one.size for one in fields), packed, "write it again")


@contextmanager
def _file(table: Table) -> Iterator[Any]:
    """The table's file, as it was."""
    where = table.where
    with reading_by_arrow(where):
        with open_regular(where):
            file = arrow().OSFile(where)
        with file:
            for stamp in table.files:
                stamp.check()
            yield file


def _open_parquet(where: str, files: tuple[Any, ...]) -> Table:
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(where, **_OPTIONS) as opened:
        schema, metadata = opened.schema_arrow, opened.metadata
        check_fields(where, schema.names)
        fields = tuple(field_of(one.name, one.type) for one in schema)
        groups = [metadata.row_group(k) for k in range(metadata.num_row_groups)]
        # The size of the file, for the library ends the process where metadata of a column are damaged.
        _check_decoded(where, metadata.num_rows, fields, files[0].size)
        rows = [group.num_rows for group in groups]
        if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
            raise DataError(f"{where}: expected {metadata.num_rows} rows, its groups have {sum(rows)}; make it again")
        hidden = _index_of(schema.metadata)
        del groups, metadata
    cuts = _cuts(where)
    table = ParquetTable(where, fields, sum(rows), max([1, *rows]), files, hidden, group_rows=tuple(rows), cuts=cuts)
    return replace(table, notes=_note(where, hidden))


def _cuts(where: str) -> tuple[int, ...]:
    """Where the parts of a long description of the groups are; none where it is to be read as a whole."""
    with arrow().OSFile(where) as file:
        if parquet_footer.length_of(file) <= parquet_footer.LONG:
            return ()
        try:
            return parquet_footer.cuts_of(file)
        except (ValueError, LookupError, RecursionError):
            return ()  # Arrow has read it, and does so again


def _index_of(metadata: dict[bytes, bytes] | None) -> tuple[str, ...]:
    """The columns that pandas wrote as the names of rows."""
    text = (metadata or {}).get(b"pandas", b"")
    if not text or len(text) > _METADATA:
        return ()
    try:
        found = json.loads(text)["index_columns"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ()
    return tuple(name for name in found if isinstance(name, str)) if isinstance(found, list) else ()


def _note(where: str, hidden: tuple[str, ...]) -> tuple[str, ...]:
    named = [name for name in hidden if not name.startswith("__index_level_")]
    if not named:
        return ()
    return (
        f"note: {where}: {', '.join(named)} names the rows of a pandas frame, and is an input only where --x names it",
    )


@dataclass(frozen=True, eq=False)
class ParquetTable(Table):
    """A Parquet file, with the rows of each of its groups, and the parts of a long description of them."""

    group_rows: tuple[int, ...] = ()
    cuts: tuple[int, ...] = ()

    @contextmanager
    def opened(self) -> Iterator[OpenTable]:
        with _file(self) as file:
            yield _OpenParquet(self, file)


class _OpenParquet(OpenTable):
    """`_part` is a file of Arrow that knows some of the groups, `_first` the first of them."""

    def __init__(self, table: ParquetTable, file: Any) -> None:
        self._table, self._file = table, file
        self._sizes = {one.name: one.size for one in table.fields}
        self._spans = list(parquet_footer.spans_of(table.cuts)) or [(0, len(table.group_rows))]
        self._part: Any = None
        self._first = self._stop = 0
        if not table.cuts:
            self._open_part(*self._spans[0])

    def _open_part(self, first: int, stop: int) -> None:
        import pyarrow.parquet as parquet

        table, self._part = self._table, None
        metadata = parquet_footer.part_of(self._file, table.cuts, first, stop) if table.cuts else None
        part = parquet.ParquetFile(self._file, metadata=metadata, **_OPTIONS)
        found = [part.metadata.row_group(k).num_rows for k in range(part.metadata.num_row_groups)]
        if tuple(found) != table.group_rows[first:stop]:
            raise DataError(f"{table.where}: expected the rows that were there, it has changed; start again")
        self._part, self._first, self._stop = part, first, stop

    def _group(self, group: int, panel: list[str]) -> Any:
        """These columns of a group of rows."""
        if not self._first <= group < self._stop:
            self._open_part(*next(span for span in self._spans if span[0] <= group < span[1]))
        return self._part.read_row_group(group - self._first, columns=panel, use_threads=False)

    def batches(self, names: Sequence[str], runs: Runs) -> Iterator[tuple[int, Any]]:
        with reading_by_arrow(self._table.where, releases=False):
            starts = [0, *accumulate(self._table.group_rows)]
            for group, inside in cut_at(starts, runs):
                for panel in self._panels(names, group):
                    found = self._group(group, panel)
                    if found.num_rows != self._table.group_rows[group] or sorted(found.column_names) != sorted(panel):
                        raise DataError(f"{self._table.where}: expected the columns {', '.join(panel[:8])} of group "
                                        f"{group} of its rows, got others; make it again")  # fmt: skip
                    for start, stop in inside:
                        yield from _batches(found.slice(start, stop - start), starts[group] + start)
            for stamp in self._table.files:
                stamp.check()

    def _panels(self, names: Sequence[str], group: int) -> Iterator[list[str]]:
        """Columns that are decoded together: as the schema and the group's rows say, never as they turn out."""
        panel, total, rows = list[str](), 0, self._table.group_rows[group]
        for name in names:
            size = rows * self._sizes[name]
            if size > _MOST_DECODED:
                raise DataError(
                    f"{self._table.where}: column {name}: expected groups of rows of at most {_MOST_DECODED:,} bytes, "
                    f"one takes {size:,}; write it with smaller groups (row_group_size)"
                )
            if panel and total + size > _PANEL:
                yield panel
                panel, total = [], 0
            panel.append(name)
            total += size
        if panel:
            yield panel


def _batches(rows: Any, first: int) -> Iterator[tuple[int, Any]]:
    """The record batches of some rows."""
    for batch in rows.to_batches():
        if batch.num_rows:
            yield first, batch
            first += batch.num_rows


def _open_arrow(where: str, files: tuple[Any, ...]) -> Table:
    ipc = arrow().ipc
    with arrow().OSFile(where) as file, ipc.open_file(file) as opened:
        check_fields(where, opened.schema.names)
        fields = tuple(field_of(one.name, one.type) for one in opened.schema)
        hidden, count = _index_of(opened.schema.metadata), opened.num_record_batches
    narrow = min(range(len(fields)), key=lambda k: fields[k].size)
    one = ipc.IpcReadOptions(included_fields=[narrow])
    with arrow().OSFile(where) as file, ipc.open_file(file, options=one) as opened:
        rows = [opened.get_batch(k).num_rows for k in range(count)]
    _check_decoded(where, sum(rows), fields, files[0].size)
    table = ArrowTable(where, fields, sum(rows), max([1, *rows]), files, hidden, group_rows=tuple(rows))
    return replace(table, notes=_note(where, hidden))


@dataclass(frozen=True, eq=False)
class ArrowTable(Table):
    """A file of Arrow, with the rows of each of its record batches."""

    group_rows: tuple[int, ...] = ()

    @contextmanager
    def opened(self) -> Iterator[OpenTable]:
        with _file(self) as file:
            yield _OpenArrow(self, file)


class _OpenArrow(OpenTable):
    def __init__(self, table: ArrowTable, file: Any) -> None:
        self._table, self._file = table, file
        self._readers: dict[tuple[str, ...], Any] = {}

    def batches(self, names: Sequence[str], runs: Runs) -> Iterator[tuple[int, Any]]:
        table, ipc = self._table, arrow().ipc
        with reading_by_arrow(table.where, releases=False):
            places = [k for k, one in enumerate(table.fields) if one.name in names]
            reader = self._readers.get(tuple(names))
            if reader is None:
                reader = ipc.open_file(self._file, options=ipc.IpcReadOptions(included_fields=places))
                self._readers[tuple(names)] = reader
            starts = [0, *accumulate(table.group_rows)]
            for group, inside in cut_at(starts, runs):
                batch = reader.get_batch(group)
                batch.validate(full=True)
                if batch.num_rows != table.group_rows[group] or sorted(batch.schema.names) != sorted(names):
                    raise DataError(f"{table.where}: expected the rows that were there, it has changed; start again")
                for start, stop in inside:
                    yield starts[group] + start, batch.slice(start, stop - start)
            for stamp in table.files:
                stamp.check()
