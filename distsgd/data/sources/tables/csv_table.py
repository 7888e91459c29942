"""CSV and TSV as tables: text is cut into whole rows, and Arrow parses them on all cores that this process may use."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import DataError
from distsgd.core.runtime import affinity, check_memory
from distsgd.data.columns import Columns
from distsgd.data.sources.base import DataSource, ReadOptions, Runs
from distsgd.data.sources.streams import Stream, open_binary, stamps
from distsgd.data.sources.tables.arrow_columns import Field, NumberRows, arrow, field_of, names_of, reading_by_arrow
from distsgd.data.sources.tables.csv_parsing import WIDE, WideNumber, parse, parse_by_arrow, read_csv, wide_numbers
from distsgd.data.sources.tables.csv_text import (
    AS_UTF8,
    BLOCK,
    MOST_HEADER,
    Block,
    Layout,
    blocks,
    explained,
    has_decimal_comma,
    is_number,
    layout_of,
    row_ends,
)
from distsgd.data.sources.tables.table import OpenTable, Table, Visit, check_fields, table_source

SAMPLE = 1 << 20
"""Bytes by which the types of columns are known."""
_LOOKED_AT = 1000
"""Texts of a column that are looked at for numbers among them."""
STEP = 1024
"""Rows from one offset that is kept to the next, where a file is streamed."""
_MOST_CORES = 8
_TRIES = 4
"""Blocks that aren't plain numbers, after which a pass doesn't look for them."""
AT_ONCE = 16 << 20
"""Bytes of text that are parsed together where rows are read by their numbers."""


def open_source(where: str, options: ReadOptions) -> DataSource:
    """The data set in a file; DataError where it can't be one."""
    table = open_table(where, options)
    if options.streamed and table.packed:
        raise DataError(f"{where}: packed as a whole, it can't be read in blocks; unpack it, or give --no-stream")
    return table_source(table, options)


def open_table(where: str, options: ReadOptions) -> CsvTable:
    """The table in a file, by its first megabyte; its rows are counted by a pass. Raises DataError."""
    with reading_by_arrow(where), open_binary(where) as (stream, _):
        files = stamps([where])
        sample = stream.read(max(SAMPLE, 1))
        whole = len(sample) < SAMPLE
        if b"\n" not in sample and not whole:
            sample += stream.read(MOST_HEADER)
        layout = layout_of(where, sample, whole)
        packed = files[0].size < len(sample) or _is_gzip(where)
    check_fields(where, layout.names)
    text = sample[layout.begin :] + (b"\n" if whole else b"")
    cut = row_ends(where, text, layout.delimiter, with_ends=False, last=False)[0]
    layout, types = _typed(where, layout, text[:cut], options.columns)
    fields = tuple(_field(name, kind, layout, text[:cut]) for name, kind in types.items())
    hidden = tuple(name for k, name in enumerate(layout.names) if layout.header and name == f"Unnamed: {k}")
    notes: tuple[str, ...] = ()
    if hidden:
        notes = (f"note: {where}: {hidden[0]} has no name, and is an input only where --x names it",)
    if not layout.header:
        notes = (f"note: {where}: the first row holds numbers alone, so columns are named 0, 1, …",)
    made = CsvTable(where, fields, -1, STEP, files, hidden, notes, layout=layout, types=types, packed=packed)
    return replace(made, keeps=not options.streamed, counted=options.streamed and not options.targets)


def _field(name: str, kind: Any, layout: Layout, text: bytes) -> Field:
    """The column of a type of Arrow; one of bytes is of text in another code."""
    found = field_of(name, kind)
    if arrow().types.is_binary(kind):
        try:
            text.decode("utf-8")
        except UnicodeDecodeError as problem:
            at = layout.begin + problem.start
            return replace(found, what=f"text that isn't UTF-8, as byte {at:,} of the file isn't; {AS_UTF8}")
    return found


def _is_gzip(where: str) -> bool:
    with open(where, "rb") as raw:
        return raw.read(2) == b"\x1f\x8b"


def _typed(where: str, layout: Layout, text: bytes, trained: Columns | None) -> tuple[Layout, dict[str, Any]]:
    """The layout, and of each column the type of Arrow, by the first rows; of a trained model's what it takes."""
    pa = arrow()
    found = dict.fromkeys(layout.names, pa.null())
    if text:
        with reading_by_arrow(where):
            try:
                sample = read_csv(layout, text, layout.names, {}, True, len(text) + 1)
            except pa.ArrowInvalid as problem:
                raise explained(where, layout, {}, text, 0, 2 if layout.header else 1, str(problem)) from None
        if layout.delimiter == ";" and layout.decimal == ".":
            commas = [name for name in layout.names if _are_text(sample.column(name)) and has_decimal_comma(
                sample.column(name).drop_null().slice(0, 100).to_pylist())]  # fmt: skip
            if commas:
                return _typed(where, replace(layout, decimal=","), text, trained)
        found = {name: _type_of(sample.column(name), layout.decimal) for name in layout.names}
        found |= dict.fromkeys(wide_numbers(layout, text, sample, dict.fromkeys(layout.names, WIDE)), pa.uint64())
    if trained is not None:
        for name in found.keys() & set(trained.inputs):
            is_text = name in trained.categories
            if is_text or field_of(name, found[name]).kind != "number":
                found[name] = pa.string() if is_text else pa.float64()
    return layout, found


def _type_of(column: Any, decimal: str) -> Any:
    """The type of a column: numbers, too, where most of its first texts are numbers, so that the others are found."""
    if _are_text(column):
        texts = column.drop_null().slice(0, _LOOKED_AT).to_pylist()
        if 2 * sum(is_number(text, decimal) for text in texts) > len(texts):
            return arrow().float64()
    return column.type


def _are_text(column: Any) -> bool:
    return bool(arrow().types.is_string(column.type))


class _Held:
    """Batches that a pass has parsed, until each column is taken; none in another process."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, Any, set[str]]] = []
        self.size = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Held, ())

    def add(self, first: int, batch: Any) -> None:
        """Keeps a batch, until all of its columns are taken."""
        self.parts.append((first, batch, set(names_of(batch))))
        self.size += batch.nbytes

    def take(self, names: Sequence[str], runs: Runs) -> list[tuple[int, Any]] | None:
        """The batches of these columns and rows, where all are here; what lies in a run as a whole is kept no more."""
        found, ended, count = [], [], 0
        for start, stop in runs:
            for first, batch, left in self.parts:
                at, end = max(first, start), min(first + batch.num_rows, stop)
                if at < end and left.issuperset(names):
                    found.append((at, batch.select(names).slice(at - first, end - at)))
                    count += end - at
                    if end == first + batch.num_rows:
                        ended.append(left)
        if count != sum(stop - start for start, stop in runs):
            return None
        for left in ended:
            left.difference_update(names)
        self.parts = [part for part in self.parts if part[2]]
        return found


@dataclass(frozen=True, eq=False)
class CsvTable(Table):
    """A CSV file: its types by column, and after a pass the numbers of some rows and where in the file they begin.

    keeps     whether the pass keeps what it parses
    counted   whether a pass that shows nothing only counts rows: they are parsed as they are read
    """

    layout: Layout = field(kw_only=True)
    types: dict[str, Any] = field(kw_only=True)
    packed: bool = False
    keeps: bool = False
    counted: bool = False
    marks: Array | None = None
    held: _Held = field(default_factory=_Held)

    def kinds(self, names: Sequence[str], *, whole: bool = False) -> dict[str, Any]:
        """The types that these columns are parsed as; where `whole`, whole numbers stay so."""
        pa = arrow()
        known = {one.name: one for one in self.fields}
        found = {}
        for name in names:
            one = known[name]
            if one.kind == "text":
                found[name] = pa.dictionary(pa.int32(), pa.string())
            elif one.kind == "number":
                keeps = one.dtype == np.bool_ or (whole and one.dtype in (np.int64, np.uint64))
                found[name] = self.types[name] if keeps else pa.float64()
        return found

    def passed(self, names: Sequence[str], visit: Visit | None) -> Table:
        """The table after a pass over the whole text: with its rows, and where they begin."""
        if visit is not None and self.counted:
            return replace(self, counted=False).passed(names, visit)
        held, marks, rows, checked = _Held(), [], 0, 0
        floats: set[str] = set()
        wide: dict[str, tuple[int, str]] = {}
        for block, found in self._parsed(names, quick=visit is None):
            if isinstance(found, Exception):
                raise self.explained(names, block.text, rows, block.offset, found) from None
            count, batches, promoted, large = found
            floats |= promoted
            wide = {name: (rows + row, got) for name, (row, got) in large.items()} | wide
            if block.ends is None:
                marks.append(np.array([[rows, block.offset]]))
            else:
                starts = block.starts()
                if not self.counted and len(starts) != count:
                    raise DataError(
                        f"{self.where}: expected {len(starts):,} rows after row {rows:,}, parsing them gave {count:,}; "
                        "write it again"
                    )
                count, places = len(starts), np.arange(-rows % STEP, len(starts), STEP)
                marks.append(np.stack([rows + places, block.offset + starts[places]], axis=1))
            first = rows
            for batch in batches:
                if visit is not None:
                    visit(first, batch)
                if self.keeps:
                    held.add(first, batch)
                first += batch.num_rows
            if self.keeps and held.size > checked:  # a packed one may become much larger than the file
                size = held.size if self.packed else int(self.files[0].size / len(block.text) * held.size)
                check_memory(size, f"{self.where} in memory")
                checked = 2 * size
            rows += count
        for stamp in self.files:
            stamp.check()
        for name in floats & wide.keys():
            raise self.explained(names, b"", 0, 0, WideNumber(name, *wide[name]))
        fields = tuple(replace(one, dtype=np.dtype(np.float64)) if one.name in floats else one for one in self.fields)
        table = np.concatenate([*marks, np.empty((0, 2), np.int64)]).astype(np.int64)
        chunk = STEP if not self.keeps else max([1, *np.diff(np.append(table[:, 0], rows)).tolist()])
        return replace(self, fields=fields, rows=rows, chunk=chunk, marks=table, held=held)

    def explained(
        self, names: Sequence[str], text: bytes | bytearray, row: int, offset: int, problem: Exception
    ) -> DataError:
        """The error for rows from this one on, which begin here in the file, where parsing them raised another."""
        if isinstance(problem, WideNumber):
            name, place, got = problem.args
            return DataError(
                f"{self.where}: column {name}, row {row + place:,}: expected whole numbers below 2**53, which a float "
                f"holds, got {got}; if it is a key, leave it out of --x"
            )
        shown, used = {"number": "number", "text": "text"}, set(names)
        kinds = {one.name: "truth" if one.dtype == np.bool_ else shown.get(one.kind, "text")
                 for one in self.fields if one.name in used}  # fmt: skip
        return explained(self.where, self.layout, kinds, text, row, self._line(offset), str(problem))

    def _line(self, offset: int) -> int:
        """The number of the line, from 1, that begins here in the file."""
        line = 1
        with open_binary(self.where) as (stream, _):
            while offset and (text := stream.read(min(offset, BLOCK))):
                line, offset = line + text.count(b"\n"), offset - len(text)
        return line

    def _parsed(self, names: Sequence[str], quick: bool) -> Iterator[tuple[Block, Any]]:
        """The blocks of the file, each with what `parse` finds, or an exception; `quick`, numbers as `NumberRows`."""
        cores = min(len(affinity()), _MOST_CORES)
        threads = cores + (cores > 1)  # one more than cores, for at times each waits for the interpreter
        types, as_floats = self.kinds(names, whole=True), self.kinds(names)
        with ExitStack() as opening:
            opening.enter_context(reading_by_arrow(self.where))
            stream, _ = opening.enter_context(open_binary(self.where))
            _skip(stream, self.layout.begin)
            pool = opening.enter_context(ThreadPoolExecutor(threads, "distsgd-csv"))
            waiting: deque[tuple[Block, Future[Any]]] = deque()
            slow = 0
            found = blocks(
                self.where,
                stream,
                self.layout.begin,
                self.layout.delimiter,
                with_ends=not self.keeps and not self.packed,
            )
            for block in found:
                if self.counted:
                    yield block, (0, [], set(), {})
                    continue
                way = parse if quick and slow < _TRIES else parse_by_arrow
                waiting.append((block, pool.submit(way, self.layout, block, names, types, as_floats)))
                if len(waiting) > threads:
                    result = _result(*waiting.popleft())
                    slow += not _is_quick(result[1])
                    yield result
            while waiting:
                yield _result(*waiting.popleft())

    @contextmanager
    def opened(self) -> Iterator[OpenTable]:
        with ExitStack() as opening:
            opening.enter_context(reading_by_arrow(self.where))
            yield _OpenCsv(self, opening)


def _result(block: Block, future: Future[Any]) -> tuple[Block, Any]:
    try:
        return block, future.result()
    except (arrow().ArrowInvalid, WideNumber) as problem:
        return block, problem


def _is_quick(found: Any) -> bool:
    return isinstance(found, tuple) and isinstance(found[1][0], NumberRows)


def _skip(stream: Stream, count: int) -> None:
    """Reads over so many bytes."""
    while count:
        got = len(stream.read(min(count, BLOCK)))
        if not got:
            return
        count -= got


class _OpenCsv(OpenTable):
    """Rows by their numbers: those that a pass has left, or parsed from the nearest place in the file before them."""

    def __init__(self, table: CsvTable, opening: ExitStack) -> None:
        self._table, self._opening = table, opening
        self._stream: Stream | None = None
        self._at = 0

    def batches(self, names: Sequence[str], runs: Runs) -> Iterator[tuple[int, Any]]:
        table = self._table
        held = table.held.take(names, runs)
        if held is not None:
            held.reverse()
            while held:
                yield held.pop()  # which frees it, once it is taken
            return
        assert table.marks is not None, "a pass was made"
        with reading_by_arrow(table.where):
            for stamp in table.files:
                stamp.check()
            for start, stop in runs:
                yield from self._parsed(names, start, stop)

    def _parsed(self, names: Sequence[str], start: int, stop: int) -> Iterator[tuple[int, Any]]:
        table = self._table
        assert table.marks is not None
        rows, offsets = table.marks[:, 0], table.marks[:, 1]
        types, as_floats = table.kinds(names, whole=True), table.kinds(names)
        at = int(np.searchsorted(rows, start, "right")) - 1
        while start < stop:
            end = int(np.searchsorted(rows, stop, "left"))
            end = max(at + 1, min(end, int(np.searchsorted(offsets, offsets[at] + AT_ONCE, "right")) - 1))
            text = self._text(int(offsets[at]), int(offsets[end]) if end < len(offsets) else None)
            first, last = int(rows[at]), int(rows[end]) if end < len(rows) else table.rows
            try:
                count, batches, *_ = parse(table.layout, Block(0, text, True), names, types, as_floats)
            except (arrow().ArrowInvalid, WideNumber) as problem:
                raise table.explained(names, text, first, int(offsets[at]), problem) from None
            if count != last - first:
                raise DataError(f"{table.where}: expected the rows that were there, it has changed; start again")
            for batch in batches:
                upto = min(stop, first + batch.num_rows)
                if start < upto:
                    yield start, batch.slice(start - first, upto - start)
                    start = upto
                first += batch.num_rows
            start, at = min(stop, last), end

    def _text(self, start: int, stop: int | None) -> bytes:
        """The bytes of the file from `start` to before `stop`, or to its end."""
        if self._stream is None or (self._table.packed and self._at > start):
            for stamp in self._table.files:
                stamp.check()
            self._stream, self._at = self._opening.enter_context(open_binary(self._table.where))[0], 0
        if self._table.packed:
            _skip(self._stream, start - self._at)
        else:
            self._stream.seek(start)
        text: bytes = self._stream.read(-1 if stop is None else stop - start)
        self._at = start + len(text)
        return text if text.endswith(b"\n") else text + b"\n"
