"""A .tar or .tar.gz read once, front to back: nothing is written to disk, and only expected files are looked at."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Collection
from typing import Any

from distsgd.core.errors import DataError
from distsgd.data.sources.streams import BLOCK, Stream, open_binary

_ENTRIES = 10_000
"""Files of any kind that are passed over; the published archives have nine, and each header takes time."""

_OTHER = b"?"
"""A type that tarfile doesn't know, so that it passes over what such a header describes."""

Visit = Callable[[str, Stream, int], object]
"""Called with a file's name in the archive, its content, and its size in bytes."""


class _Header(tarfile.TarInfo):
    """One header, read alone: tarfile would read long names and maps of sparse files into memory, of any length,
    and take a damaged header for the archive's end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Header:
        """The next header. Newer versions of tarfile no longer call frombuf, so that this does."""
        stream: Any = archive.fileobj
        header = cls.frombuf(stream.read(tarfile.BLOCKSIZE), archive.encoding or "", archive.errors or "")
        header.offset_data = stream.tell()
        header.offset = header.offset_data - tarfile.BLOCKSIZE
        blocks = -(-header.size // tarfile.BLOCKSIZE)
        archive.offset = header.offset_data + blocks * tarfile.BLOCKSIZE  # where the next one begins
        return header

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as problem:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the end
            raise tarfile.ReadError(f"a damaged header ({problem})") from None
        if header.size < 0:
            raise tarfile.ReadError("a damaged header (a size below 0)")
        if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            header.type = _OTHER
        return header


class _Limited:
    """A stream of which no more than `limit` bytes are read."""

    def __init__(self, stream: Stream, limit: int, path: str) -> None:
        self._stream, self._limit, self._path, self._count = stream, limit, path, 0

    def read(self, count: int) -> bytes:
        found = self._stream.read(count)
        self._count += len(found)
        self.check(self._count)
        return found

    def check(self, size: int) -> None:
        """Raises DataError where so many bytes are more than the limit."""
        if size > self._limit:
            raise DataError(
                f"{self._path}: expected at most {self._limit} bytes unpacked, the archive holds more; get the right "
                "one"
            )


def read_members(path: str, wanted: Collection[str], visit: Visit, limit: int) -> None:
    """Calls `visit` for each wanted regular file of the archive, in the archive's order, and reads on to its end.

    limit   bytes that it may unpack to; more are refused as they come, whatever sizes it names

    Raises DataError where the archive is missing or damaged, lacks a wanted file, or has one twice.
    """
    missing = set(wanted)
    with open_binary(path) as (stream, _):
        source = _Limited(stream, limit, path)
        try:
            options = {"bufsize": BLOCK, "encoding": "latin-1", "tarinfo": _Header}
            with tarfile.open(fileobj=source, mode="r|", **options) as archive:  # type: ignore[call-overload]
                for number, header in enumerate(archive):
                    if number == _ENTRIES:
                        raise DataError(f"{path}: expected at most {_ENTRIES} files in the archive; get the right one")
                    source.check(header.size)
                    name = header.name.removeprefix("./")
                    if header.type == _OTHER or name not in wanted:
                        continue
                    if name not in missing:
                        raise DataError(f"{path}: expected {name} once in the archive, it is there twice; get it again")
                    missing.remove(name)
                    visit(name, archive.extractfile(header), header.size)
        except tarfile.TarError as problem:
            raise DataError(f"{path}: expected a tar archive, got {problem}; download the archive again") from None
        while source.read(BLOCK):  # gzip compares its checksum at the end
            pass
    if missing:
        raise DataError(
            f"{path}: expected {', '.join(sorted(missing))} in the archive, not found; download the archive again"
        )
