"""A .tar or .tar.gz read once, front to back: nothing is written to disk, and only expected files are looked at.

Not Python's tarfile, which follows links and long names to wherever and however long an archive says.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection
from typing import Any

from distsgd.datasets.streams import BLOCK, Stream, open_binary, read_exactly, reading
from distsgd.errors import DataError

_UNIT = 512
"""Bytes of a header; contents are filled up to a multiple of it."""

_ENTRIES = 10_000
"""Files of any kind that are passed over; the published archives have nine, and each header takes time."""

_REGULAR = b"0\0"

Visit = Callable[[str, Stream, int], object]
"""Called with a file's name in the archive, its content, and its size in bytes."""


class _Content(io.RawIOBase):
    """The next `size` bytes of a stream, which stays open."""

    def __init__(self, stream: Stream, size: int) -> None:
        self._stream, self.left = stream, size

    def readable(self) -> bool:
        return True

    def readinto(self, out: Any) -> int:
        view = memoryview(out).cast("B")[: self.left]
        count = self._stream.readinto(view) if len(view) else 0  # type: ignore[attr-defined]
        if len(view) and not count:
            raise EOFError("the archive ends inside a file")
        self.left -= count
        return int(count)


def read_members(path: str, wanted: Collection[str], visit: Visit, limit: int) -> None:
    """Calls `visit` for each wanted regular file of the archive, in the archive's order, and reads on to its end.

    limit   bytes that it may unpack to; more are refused as they come, whatever sizes it names

    Raises DataError where the archive is missing or damaged, lacks a wanted file, or has one twice.
    """
    missing = set(wanted)
    with reading(path):
        stream, _ = open_binary(path)
        with stream:
            left, entries = limit, 0
            while any(header := read_exactly(stream, _UNIT, path)):
                entries += 1
                if entries > _ENTRIES:
                    raise DataError(f"{path}: expected at most {_ENTRIES} files in the archive; get the right one")
                name, size = _parse(header, path)
                padded = -(-size // _UNIT) * _UNIT
                left = _within(left - _UNIT - padded, limit, path)
                if header[156] in _REGULAR and name in wanted:
                    if name not in missing:
                        raise DataError(f"{path}: expected {name} once in the archive, it is there twice; get it again")
                    missing.remove(name)
                    content = _Content(stream, size)
                    visit(name, io.BufferedReader(content, BLOCK), size)
                    padded -= size - content.left
                _skip(stream, padded)
            while found := stream.read(BLOCK):  # gzip compares its checksum at the end
                left = _within(left - len(found), limit, path)
    if missing:
        raise DataError(
            f"{path}: expected {', '.join(sorted(missing))} in the archive, not found; download the archive again"
        )


def _parse(header: bytes, path: str) -> tuple[str, int]:
    """(name, size) of a header in the format that all kinds of tar share: ustar, GNU's, pax and the oldest."""
    numbers = [header[start:stop].strip(b" \0") for start, stop in ((124, 136), (148, 156))]
    total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if not all(number.isdigit() for number in numbers) or int(numbers[1], 8) != total:
        raise DataError(f"{path}: expected a tar archive, a header in it is damaged; download the archive again")
    name = header[:100].split(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].split(b"\0")[0] + b"/" + name
    return name.decode("latin-1").removeprefix("./"), int(numbers[0], 8)


def _within(left: int, limit: int, path: str) -> int:
    if left < 0:
        raise DataError(f"{path}: expected at most {limit} bytes unpacked, the archive holds more; get the right one")
    return left


def _skip(stream: Stream, count: int) -> None:
    while count:
        found = len(stream.read(min(count, BLOCK)))
        if not found:
            raise EOFError("the archive ends inside a file")
        count -= found
