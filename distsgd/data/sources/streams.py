"""Filling an array from a file, a block at a time, and one sentence for whatever can be wrong with a file."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, TypeAlias

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import DataError
from distsgd.core.files import FileStamp, open_regular

Stream: TypeAlias = IO[bytes]

BLOCK = 1 << 20
"""Bytes that are read, converted or checked at once."""

DEFLATE_LIMIT = 1040
"""Times its packed length that data is at most: deflate reaches 1,032."""
_RATIO, _SMALL = 1100, 64 << 20
"""Times its packed length that data is at most, for no compression of zeros reaches more, and bytes that it may always
have."""
_MEMBERS = 10_000
"""Members of a gzip file, which may all be empty; programs that pack in blocks need 800 for MNIST."""
_PADDING = 1 << 16
"""Zeros after the last member: tapes have less."""
_INPUT = 1 << 14
"""Packed bytes that zlib gets at once: it copies the rest of them at the end of each member."""

# RuntimeError: zipfile's for what it doesn't support, NotImplementedError among them.
_DAMAGE = (
    OSError, EOFError, ValueError, LookupError, OverflowError, RuntimeError, struct.error, zlib.error,
    zipfile.BadZipFile,
)  # fmt: skip


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turns what a missing, unreadable or damaged file raises into a DataError that names `where`."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{where}: expected a file, found none; check the path") from None
    except PermissionError:
        raise DataError(f"{where}: expected a readable file, access is denied; check its permissions") from None
    except IsADirectoryError:
        raise DataError(f"{where}: expected a file, got a folder; name the file in it") from None
    except _DAMAGE as problem:
        reason = str(problem) or type(problem).__name__
        raise DataError(f"{where}: expected an intact file, reading it failed ({reason}); make it again") from problem


def most_unpacked(packed: int, ratio: int = _RATIO) -> int:
    """Bytes that so many packed ones may become at most."""
    return max(packed * ratio, _SMALL)


def check_promised(where: str, promised: int, packed: int, remedy: str) -> None:
    """DataError where a file promises more bytes of values than what it holds can become; `remedy` says what to do."""
    if promised > most_unpacked(packed):
        raise DataError(
            f"{where}: expected values of at most {_RATIO:,} times its {packed:,} bytes in the file, it promises "
            f"{promised:,}; {remedy}"
        )


def absolute(path: str | os.PathLike[str]) -> str:
    """The absolute path: other ranks of the host may have another working directory."""
    return os.path.abspath(os.path.expanduser(path))


def stamps(paths: Iterable[str]) -> tuple[FileStamp, ...]:
    """What these files are now; DataError where one is missing or can't be looked at."""
    found = []
    for path in paths:
        with reading(path):
            found.append(FileStamp.of(path))
    return tuple(found)


class _Unpacked(io.RawIOBase):
    """The content of a gzip file. zlib reads headers and compares checksums, for Python's gzip does both slowly."""

    def __init__(self, packed: Stream, path: str) -> None:
        self._packed, self._path, self._input = packed, path, b""
        self._members, self._zeros = 0, 0
        self._member = zlib.decompressobj(wbits=31)
        self._begun = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill as much of the buffer as one call of zlib gives; 0 at the end."""
        view = memoryview(buffer).cast("B")
        while self._begun or self._next_member():
            self._input = self._input or self._packed.read(_INPUT)
            if not self._input:
                raise EOFError("it ends before its end mark")
            found = self._unpack(len(view))
            if found:
                view[: len(found)] = found
                return len(found)
        return 0

    def _unpack(self, most: int) -> bytes:
        try:
            found = self._member.decompress(self._input, most)
        except zlib.error as problem:
            text = str(problem)
            raise OSError("CRC check failed" if "incorrect data" in text or "length check" in text else text) from None
        self._input = self._member.unconsumed_tail
        if self._member.eof:
            self._input, self._begun = self._member.unused_data, False
        return found

    def _next_member(self) -> bool:
        """Begin the next member, which zeros may precede; False where there is none."""
        while not (rest := self._input.lstrip(b"\0") if self._members else self._input):
            self._zeros += len(self._input)
            self._input = self._packed.read(_INPUT)
            if not self._input:
                return False
            self._limit()
        self._members += 1
        self._limit()
        self._input, self._member, self._begun = rest, zlib.decompressobj(wbits=31), True
        return True

    def _limit(self) -> None:
        if self._members > _MEMBERS or self._zeros > _PADDING:
            raise DataError(
                f"{self._path}: expected gzip of at most {_MEMBERS} members and {_PADDING} zeros after them, it has "
                "more; pack it again"
            )


@contextmanager
def open_binary(path: str) -> Iterator[tuple[Stream, int]]:
    """A file, unpacked on the fly where its content (not its name) is gzip, and an upper limit of its length."""
    with reading(path), open_regular(path) as raw:
        size = os.fstat(raw.fileno()).st_size
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if packed:
            with io.BufferedReader(_Unpacked(raw, path), BLOCK // 8) as unpacked:
                yield unpacked, size * DEFLATE_LIMIT
        else:
            yield raw, size


def read_exactly(stream: Stream, count: int, where: str) -> bytes:
    """`count` bytes (a header: few), or DataError."""
    found = stream.read(count)
    if len(found) != count:
        raise DataError(f"{where}: expected a header of {count} bytes, the file ends after {len(found)}; make it again")
    return found


def fill(stream: Stream, out: Array, where: str) -> None:
    """Overwrites C-ordered `out` with the next bytes of `stream`; DataError where it ends early."""
    view = out.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        got = stream.readinto(view[done : done + BLOCK])  # type: ignore[attr-defined]
        if not got:
            raise DataError(f"{where}: expected {len(view)} bytes of data, the file ends after {done}; make it again")
        done += got


def fill_fortran(stream: Stream, out: Array, where: str) -> None:
    """Overwrites `out` with Fortran-ordered data (first index fastest)."""
    flat = out.T.flat
    rows = max(1, BLOCK // out.itemsize)
    block = np.empty(min(rows, out.size), out.dtype)
    for start in range(0, out.size, rows):
        part = block[: min(rows, out.size - start)]
        fill(stream, part, where)
        flat[start : start + len(part)] = part


def expect_end(stream: Stream, where: str) -> None:
    """DataError where `stream` continues; at its end gzip and zip compare their checksums."""
    if stream.read(1):
        raise DataError(f"{where}: expected the data to end where its header says, the file continues; make it again")
