"""The description at the end of a Parquet file, in parts: of some groups of rows, and not of all.

Arrow keeps about 1.2 kB for each column of each group of rows in memory: 150 MB for a table of 800 columns and 160
groups, which are 4 GB. A reader that needs a few groups at a time reads the description of those.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from distsgd.data.sources.tables.arrow_columns import arrow

LONG = 1 << 20
"""Bytes of a description that is read in parts; a shorter one is read as a whole."""
_PART = 256 << 10
"""Bytes of the description of groups that are read together, where one group has fewer."""
_END = 8
"""Bytes at the end of a file: the length of the description, and a mark."""
_GROUPS = 4
"""The number of the field that holds the groups."""
_FALSE, _BYTE, _VARINTS, _DOUBLE, _BINARY, _LISTS, _MAP, _STRUCT = 2, 3, (4, 5, 6), 7, 8, (9, 10), 11, 12
"""Types of values in Thrift's compact form, in which the description is written."""


def length_of(file: Any) -> int:
    """Bytes of the description of an open file of Arrow."""
    end = file.read_at(_END, file.size() - _END)
    return int.from_bytes(end[:4], "little") if end[4:] == b"PAR1" else 0


def cuts_of(file: Any) -> tuple[int, ...]:
    """Where the list of groups begins in a description that Arrow has read before, where each group does, and where the
    last one ends."""
    length = length_of(file)
    data = file.read_at(length, file.size() - _END - length)
    at = number = 0
    while head := data[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            zigzag, at = _varint(data, at)
            number = zigzag >> 1 ^ -(zigzag & 1)
        if number == _GROUPS:
            found = [at]
            count, _, at = _list_head(data, at)
            for _ in range(count):
                found.append(at)
                at = _after_struct(data, at)
            return (*found, at)
        at = _after(data, at, head & 15)
    raise ValueError("no groups of rows in the description")


def spans_of(cuts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Groups that are described together, from the first to before the last."""
    first, last = 0, len(cuts) - 2
    for group in range(1, last + 1):
        if group == last or cuts[group + 2] - cuts[first + 1] > _PART:
            yield first, group
            first = group


def part_of(file: Any, cuts: Sequence[int], first: int, stop: int) -> Any:
    """What Arrow makes of the description of these groups alone: `metadata` of a ParquetFile."""
    import pyarrow.parquet as parquet

    length = length_of(file)
    begin = file.size() - _END - length
    count = stop - first
    head = bytes([count << 4 | _STRUCT]) if count < 15 else bytes([15 << 4 | _STRUCT, *_as_varint(count)])
    parts = (
        file.read_at(cuts[0], begin), head,
        file.read_at(cuts[stop + 1] - cuts[first + 1], begin + cuts[first + 1]),
        file.read_at(length - cuts[-1], begin + cuts[-1]),
    )  # fmt: skip
    text = b"".join(parts)
    whole = b"".join((b"PAR1", text, len(text).to_bytes(4, "little"), b"PAR1"))
    return parquet.read_metadata(arrow().BufferReader(whole))


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(a number, where the next value begins)."""
    value = 0
    for shift in itertools.count(0, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
    return value, at


def _as_varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _list_head(data: bytes, at: int) -> tuple[int, int, int]:
    """(how many values a list has, their type, where the first begins)."""
    head = data[at]
    if head >> 4 < 15:
        return head >> 4, head & 15, at + 1
    count, at = _varint(data, at + 1)
    return count, head & 15, at


def _after_struct(data: bytes, at: int) -> int:
    """Where the value after a struct begins. It is called for each column of each group, and is written to be fast."""
    while head := data[at]:
        at += 1
        if not head >> 4:
            _, at = _varint(data, at)
        kind = head & 15
        if kind in _VARINTS:
            while data[at] > 127:
                at += 1
            at += 1
        elif kind == _BINARY:
            length = data[at]
            if length > 127:
                length, at = _varint(data, at)
                at += length
            else:
                at += length + 1
        elif kind == _STRUCT:
            at = _after_struct(data, at)
        elif kind > _FALSE:
            at = _after(data, at, kind)
    return at + 1


def _after(data: bytes, at: int, kind: int) -> int:
    """Where the value after one of this type begins."""
    if kind <= _FALSE:
        return at
    if kind == _STRUCT:
        return _after_struct(data, at)
    if kind in _VARINTS:
        return _varint(data, at)[1]
    if kind == _BINARY:
        length, at = _varint(data, at)
        return at + length
    if kind in _LISTS:
        count, inner, at = _list_head(data, at)
        for _ in range(count):
            at = at + 1 if inner <= _FALSE else _after(data, at, inner)
        return at
    if kind == _MAP:
        count, at = _varint(data, at)
        kinds, at = (data[at], at + 1) if count else (0, at)
        for _ in range(count):
            for inner in (kinds >> 4, kinds & 15):
                at = at + 1 if inner <= _FALSE else _after(data, at, inner)
        return at
    if kind == _DOUBLE:
        return at + 8
    if kind == _BYTE:
        return at + 1
    raise ValueError(f"a value of the type {kind} in the description")
