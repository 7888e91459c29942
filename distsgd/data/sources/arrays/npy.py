"""NumPy's own files: .npy is mapped, a member of .npz is unpacked straight into the buffer. Never a pickle."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zipfile
from collections.abc import Container, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import numpy as np

from distsgd.core.errors import DataError
from distsgd.core.files import open_regular
from distsgd.data.checks import check_dtype
from distsgd.data.sources.file_source import FileSource, Header
from distsgd.data.sources.streams import BLOCK, DEFLATE_LIMIT, Stream, absolute, most_unpacked, read_exactly, reading

_HEADER_LIMIT = 10_000
_DIRECTORY_LIMIT = 1 << 17
"""Bytes of a .npz file's table of members, which is read each time the file is opened: some 1,500 arrays. zipfile needs
0.1 s for one member whose description is as long as it may be."""

_RATIO = 100
"""Times its packed length that a .npz file's arrays are at most, where they are not small: 1 MB of packed
zeros would keep the reader busy with 1 GB."""


_NAME_LENGTH = 26
"""The byte of a member's local header where the lengths of its name and of its extra field are."""


class _LimitedReads:
    """The file as zipfile sees it, which reads the table of members at once, however long it is."""

    def __init__(self, raw: Stream, path: str) -> None:
        self.seek, self.tell, self.seekable = raw.seek, raw.tell, raw.seekable
        self._read, self._path, self.most = raw.read, path, _DIRECTORY_LIMIT

    def read(self, count: int = -1) -> bytes:
        """Read so many bytes, or what is left, which is as much as may follow the table."""
        if count > self.most:
            raise DataError(
                f"{self._path}: expected a table of members of at most {self.most} bytes, as for 1,500 arrays, it has "
                f"{count}; save the arrays that are used in a file of their own"
            )
        return self._read(count)


def _read_header(stream: Stream, size: int, where: str) -> Header:
    """The header of the .npy file of `size` bytes that begins here.

    DataError where there is none, it doesn't fit the size, or it promises other things than numbers.
    """
    start = read_exactly(stream, 8, where)
    if start[:6] != b"\x93NUMPY" or start[6:] not in (b"\x01\x00", b"\x02\x00"):
        raise DataError(f"{where}: expected NumPy's .npy format 1 or 2, got something else; write it with numpy.save")
    version = start[6]
    size_field = read_exactly(stream, 2 if version == 1 else 4, where)
    (length,) = struct.unpack("<H" if version == 1 else "<I", size_field)
    if length > _HEADER_LIMIT:
        raise DataError(f"{where}: expected a header of at most {_HEADER_LIMIT} bytes, it says {length}; make it again")
    text = read_exactly(stream, length, where)
    parse = np.lib.format.read_array_header_1_0 if version == 1 else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about files of Python 2 and odd escapes: the result is checked below
        try:
            shape, fortran, dtype = parse(io.BytesIO(size_field + text), max_header_size=_HEADER_LIMIT)
        except Exception as problem:  # text made to harm can raise nearly anything in NumPy's parser
            raise DataError(f"{where}: expected a .npy header, got text that isn't one; make it again") from problem
    check_dtype(where, dtype)
    if any(isinstance(n, bool) or not 0 <= n < 1 << 63 for n in shape):
        raise DataError(
            f"{where}: expected lengths of at least 0 and less than 2**63, the header says {shape}; make it again"
        )
    offset = len(start) + len(size_field) + length
    header = Header(tuple(int(n) for n in shape), dtype, offset, bool(fortran) and len(shape) > 1)
    header.check(size, where)
    return header


@contextmanager
def _opened_npy(path: str) -> Iterator[tuple[Stream, Header]]:
    with reading(path), open_regular(path) as stream:
        yield stream, _read_header(stream, os.fstat(stream.fileno()).st_size, path)


@dataclass(frozen=True)
class NpySource(FileSource):
    """A .npy file."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> NpySource:
        """Reads and checks the header; DataError where it isn't a whole .npy file of numbers."""
        where = absolute(path)
        with _opened_npy(where) as (_, header):
            return cls(header.shape, header.dtype, where, header)

    def opened(self) -> AbstractContextManager[tuple[Stream, Header]]:
        return _opened_npy(self.path)


@contextmanager
def _archive(path: str) -> Iterator[zipfile.ZipFile]:
    with reading(path), open_regular(path) as raw:
        raw.peek(1)  # raises what the next line would take for another format
        if not zipfile.is_zipfile(raw):
            raise DataError(f"{path}: expected a .npz file, got something else; write it with numpy.savez")
        limited = _LimitedReads(raw, path)
        with zipfile.ZipFile(limited) as archive:
            limited.most = BLOCK
            yield archive


@contextmanager
def _opened_member(path: str, member: str) -> Iterator[tuple[Stream, Header]]:
    with _archive(path) as archive, _member(archive, path, member) as found:
        yield found


@contextmanager
def _member(archive: zipfile.ZipFile, path: str, member: str) -> Iterator[tuple[Stream, Header]]:
    where = f"{path}: {member}"
    with reading(where):
        info = archive.getinfo(member)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{where}: expected stored or deflated data, got another compression; use numpy.savez")
        packed = min(info.compress_size, os.path.getsize(path))
        if info.file_size > packed * DEFLATE_LIMIT:
            raise DataError(f"{where}: {packed} packed bytes can't hold the promised {info.file_size}; make it again")
        with archive.open(info) as stream:
            header = _read_header(stream, info.file_size, where)
            yield stream, replace(header, packed=True)


@dataclass(frozen=True)
class NpzSource(FileSource):
    """A member of a .npz file, which np.load would unpack as a whole.

    It is read as a whole by zipfile, which compares its checksum, and so it is never mapped. Its rows are read out of
    the file by themselves where it isn't compressed.
    """

    member: str
    start: int | None = None
    """At which byte of the file the member begins; None where it is compressed."""

    @property
    def where(self) -> str:
        return f"{self.path}: {self.member}"

    def opened(self) -> AbstractContextManager[tuple[Stream, Header]]:
        return _opened_member(self.path, self.member)

    @property
    def lies_in_rows(self) -> bool:
        return self.start is not None and not self.header.fortran

    @contextmanager
    def opened_data(self) -> Iterator[tuple[Stream, int]]:
        with _archive(self.path) as archive, _member(archive, self.path, self.member) as (_, header):
            self.check_unchanged(header)
            start = _start_of(archive, self.member, self.where)
        with reading(self.where), open_regular(self.path) as raw:
            if start is None or start != self.start:
                raise DataError(f"{self.where}: expected the array that was opened, it has changed since; start again")
            yield raw, start + header.offset


def _start_of(archive: zipfile.ZipFile, member: str, where: str) -> int | None:
    """At which byte of the file a member begins; None where it is compressed. Its local header has been checked."""
    info = archive.getinfo(member)
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or archive.fp is None:
        return None
    archive.fp.seek(info.header_offset + _NAME_LENGTH)
    name, extra = struct.unpack("<HH", read_exactly(archive.fp, 4, where))
    start: int = info.header_offset + _NAME_LENGTH + 4 + name + extra
    return start


def npz_keys(path: str | os.PathLike[str]) -> list[str]:
    """Names of the arrays in a .npz file; DataError where it isn't one."""
    where = absolute(path)
    with _archive(where) as archive:
        return _keys(archive, where)


def _keys(archive: zipfile.ZipFile, path: str) -> list[str]:
    """The names of the arrays. Raises DataError for one that is there twice: which of them is meant?"""
    found: dict[str, None] = {}
    for name in archive.namelist():
        key = name.removesuffix(".npy")
        if key in found:
            raise DataError(f"{path}: expected each array once, {key} is there twice; write it again with numpy.savez")
        found[key] = None
    return list(found)


def open_npz(path: str | os.PathLike[str], wanted: Container[str]) -> dict[str, NpzSource]:
    """Sources of those arrays of a .npz file whose name is in `wanted`; the others are not looked at."""
    where, found, promised = absolute(path), {}, 0
    with _archive(where) as archive:
        for key in _keys(archive, where):
            if key in wanted:
                member = f"{key}.npy"
                with _member(archive, where, member) as (_, header):
                    start = _start_of(archive, member, where)
                    found[key] = NpzSource(header.shape, header.dtype, where, header, member, start)
                promised += archive.getinfo(member).file_size
    packed = os.path.getsize(where)
    if promised > most_unpacked(packed, _RATIO):
        raise DataError(
            f"{where}: expected arrays of at most {_RATIO} times the packed length of {packed:,} bytes, it promises "
            f"{promised:,}; save them with numpy.savez, which doesn't compress"
        )
    return found
