"""Rows of a CSV file as batches: by Arrow, or in a quicker way where all fields are plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from distsgd.core.device import Array
from distsgd.data.sources.tables.arrow_columns import EXACT, NumberRows, arrow
from distsgd.data.sources.tables.csv_text import MISSING, Block, Layout

Parsed: TypeAlias = tuple[int, list[Any], set[str], dict[str, tuple[int, str]]]
"""How many rows a block has, their batches, the columns of whole numbers that turned out to hold others, and those that
hold whole numbers which a float doesn't: the first row of the block with one, and its text."""
WIDE = 2.0**63
"""From here on 64 bits with a sign don't hold a whole number, and Arrow takes it for a float."""
PIECE = 1 << 20
"""Bytes of text whose fields are looked for together: what is made of them stays in a cache, and threads that parse
seldom wait for the interpreter."""


class WideNumber(Exception):
    """A whole number that no column holds as it is: in a column, a row of the block, and its text."""


def read_csv(
    layout: Layout, text: Any, names: Sequence[str], types: dict[str, Any], quoted_ends: bool, size: int
) -> Any:
    """The table in a text of whole rows, which Arrow parses in blocks of `size` bytes. Raises ArrowInvalid."""
    from pyarrow import csv

    columns = [] if {*names} == {*layout.names} else list(names)  # all is quicker than all by their names
    return csv.read_csv(
        arrow().py_buffer(text),
        csv.ReadOptions(use_threads=False, block_size=size, column_names=list(layout.names)),
        csv.ParseOptions(delimiter=layout.delimiter, newlines_in_values=quoted_ends),
        csv.ConvertOptions(
            column_types=types, include_columns=columns, null_values=list(MISSING), strings_can_be_null=True,
            decimal_point=layout.decimal,
        ),
    )  # fmt: skip


def wide_numbers(layout: Layout, text: Any, table: Any, limits: dict[str, float]) -> dict[str, tuple[int, str]]:
    """The columns that have a whole number from this limit on: the first row with one, and the number's text.

    A float doesn't hold each of them, so that a key among them becomes another one.
    """
    from pyarrow import compute

    pa, found = arrow(), {}
    for name, limit in limits.items():
        column = table.column(name)
        if not (pa.types.is_float64(column.type) or pa.types.is_integer(column.type)):
            continue
        ends = compute.min_max(column).as_py()
        if ends["max"] is None or max(ends["max"], -ends["min"]) < limit:
            continue
        texts = _texts(layout, text, [name]).column(name).to_pylist()
        for row, (one, number) in enumerate(zip(texts, column.to_pylist(), strict=True)):
            if number is not None and abs(number) >= limit and one.lstrip("+-").isdecimal():
                found[name] = row, one
                break
    return found


def _texts(layout: Layout, text: Any, names: list[str]) -> Any:
    """What these columns have in each row, without the spaces around it."""
    from pyarrow import compute

    pa = arrow()
    found = read_csv(layout, text, names, dict.fromkeys(names, pa.string()), True, len(text) + 1)
    return pa.table({name: compute.utf8_trim_whitespace(found.column(name)) for name in names})


def parse(
    layout: Layout, block: Block, names: Sequence[str], types: dict[str, Any], as_floats: dict[str, Any]
) -> Parsed:
    """The rows of a block: as `NumberRows` where that can be. Raises ArrowInvalid and WideNumber.

    names              of the columns
    types, as_floats   what they are, by Arrow, and what they are where whole numbers turn out to be others
    """
    found = _numbers(layout, block.text, names, types)
    if found is None:
        return parse_by_arrow(layout, block, names, types, as_floats)
    return found.num_rows, [found], set(), {}


def parse_by_arrow(
    layout: Layout, block: Block, names: Sequence[str], types: dict[str, Any], as_floats: dict[str, Any]
) -> Parsed:
    """The same of any columns, as record batches."""
    pa = arrow()
    size, whole = len(block.text) + 1, [name for name in types if types[name] != as_floats[name]]
    # A row may be longer than a block of Arrow, or a number no whole one.
    for kinds, length in ((types, min(size, 1 << 20)), (types, size), (as_floats, size)):
        try:
            table = read_csv(layout, block.text, names, kinds, block.quoted_ends, length)
        except pa.ArrowInvalid:
            if kinds is as_floats or (length == size and not whole):
                raise
            continue
        promoted = set[str]()
        if kinds is as_floats:
            table, promoted = _with_whole(table, _texts(layout, block.text, whole), types)
        limits = {name: WIDE if types[name] == as_floats[name] else EXACT for name in names if name in types}
        wide = wide_numbers(layout, block.text, table, limits)
        for name, (row, got) in wide.items():
            if name in promoted or name not in whole:
                raise WideNumber(name, row, got)
        return table.num_rows, table.to_batches(), promoted, wide
    raise AssertionError("the last one returns or raises")


def _with_whole(table: Any, texts: Any, types: dict[str, Any]) -> tuple[Any, set[str]]:
    """A table of floats with the columns whose texts all are whole numbers, and the names of the others."""
    others = set()
    for name in texts.column_names:
        try:
            column = texts.column(name).cast(types[name])
        except arrow().ArrowInvalid:
            others.add(name)
            continue
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table, others


def _numbers(layout: Layout, text: bytes | bytearray, names: Sequence[str], types: dict[str, Any]) -> NumberRows | None:
    """The rows where each column is of numbers, each field a plain one, and none is missing; else None.

    NumPy finds the fields, and Arrow makes numbers of them row by row: columns needn't be transposed.
    """
    pa = arrow()
    if layout.decimal != "." or not names or b'"' in text or any(
        types.get(name) not in (pa.int64(), pa.float64()) for name in names
    ):  # fmt: skip
        return None
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n")
        if b"\r" in text:
            return None
    wanted, width = set(names), len(layout.names)
    columns = [k for k, name in enumerate(layout.names) if name in wanted]
    names = tuple(layout.names[k] for k in columns)
    casts = _casts([types[name] == pa.int64() for name in names], columns, width)
    values = np.empty((len(text) // (2 * width), len(names)))  # no row is shorter; what isn't written takes no memory
    start = row = 0
    while start < len(text):
        stop = (text.rfind(b"\n", start, start + PIECE) + 1) or (text.index(b"\n", start) + 1)
        edges = _edges(np.frombuffer(text, np.uint8, stop - start, start), layout.delimiter, width)
        if edges is None:
            return None
        count = len(edges) // (2 * width)
        for is_whole, places, chosen in casts:
            used = edges
            if chosen is not None:
                used = np.append(edges[:-1].reshape(count, width, 2)[:, chosen], edges[-1])
            found = _cast(memoryview(text)[start:stop], used, is_whole)
            if found is None:
                return None
            values[row : row + count, places] = found.reshape(count, -1)
            put, limit = values[row : row + count, places], EXACT if is_whole else WIDE
            if not (put.max() < limit and put.min() > -limit):  # NaN, too, is neither
                return None
        start, row = stop, row + count
    values.resize((row, len(names)), refcheck=False)
    return NumberRows(names, values, frozenset(name for name in names if types[name] == pa.int64()))


def _casts(is_whole: list[bool], columns: list[int], width: int) -> list[tuple[bool, Any, list[int] | None]]:
    """What to cast a row's fields to: whether to whole numbers, where these go to, and which they are (None: all)."""
    whole = [place for place, one in enumerate(is_whole) if one]
    floats = [place for place, one in enumerate(is_whole) if not one]
    if len(columns) == width and len(whole) in (0, width):
        return [(bool(whole), slice(None), None)]
    if len(columns) == width and len(whole) < len(floats):  # to leave some out takes longer than to cast them twice
        return [(False, slice(None), None), (True, whole, [columns[place] for place in whole])]
    return [(one, places, [columns[place] for place in places])
            for one, places in ((False, floats), (True, whole)) if places]  # fmt: skip


def _edges(codes: Array, delimiter: str, width: int) -> Array | None:
    """Where fields begin and end in whole rows of so many plain ones: 0, the first end, the next begin, …, the length.

    None where a field is empty, or a row has another number of them.
    """
    newlines = codes == 10
    ends = codes == ord(delimiter)
    ends |= newlines
    at = np.flatnonzero(ends)
    if len(at) != np.count_nonzero(newlines) * width or not newlines[at[width - 1 :: width]].all():
        return None
    if ends[0] or (ends[1:] & ends[:-1]).any():
        return None
    found = np.empty(2 * len(at) + 1, np.int64)
    found[0], found[1::2] = 0, at
    np.add(at, 1, out=found[2::2])
    return found


def _cast(text: Any, edges: Array, is_whole: bool) -> Array | None:
    """The numbers at these places of a text; None where one is none of this kind."""
    pa = arrow()
    kind, dtype = (pa.int64(), np.int64) if is_whole else (pa.float64(), np.float64)
    count = len(edges) - 1  # every second text is a field; what lies between two of them counts as missing
    fields = np.full(-(-count // 8), 0b01010101, np.uint8)
    texts = pa.LargeStringArray.from_buffers(count, *map(pa.py_buffer, (edges, text, fields)), count // 2)
    try:
        found: Array = np.frombuffer(texts.cast(kind).buffers()[1], dtype)[:count:2]
    except pa.ArrowInvalid:  # as with spaces around it
        return None
    return found
