"""NumPy's own files: .npy is mapped, a member of .npz is unpacked straight into the buffer. Never a pickle."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zipfile
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from distsgd.core.device import Array, Shape
from distsgd.core.errors import DataError
from distsgd.core.files import open_regular
from distsgd.data.sources.base import ArraySource
from distsgd.data.sources.streams import (
    DEFLATE_LIMIT,
    Stream,
    absolute,
    check_out,
    check_shape,
    expect_end,
    fill,
    fill_fortran,
    read_exactly,
    reading,
)

_HEADER_LIMIT = 10_000


@dataclass(frozen=True)
class NpyHeader:
    """What stands at the start of a .npy file, and where the data begins."""

    shape: Shape
    dtype: np.dtype[Any]
    fortran: bool
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of data that the header promises."""
        return prod(self.shape) * self.dtype.itemsize


def read_header(stream: Stream, where: str) -> NpyHeader:
    """The header of the .npy file that begins here; DataError where there is none, or it promises an object array."""
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
    if dtype.hasobject or dtype.kind not in "biuf" or dtype.itemsize > 8 or dtype.subdtype is not None:
        raise DataError(
            f"{where}: expected integers or floats of at most 64 bits, got dtype {dtype}; convert the array"
        )
    if any(isinstance(n, bool) or n < 0 for n in shape):
        raise DataError(f"{where}: expected lengths of at least 0, the header says {shape}; make it again")
    return NpyHeader(tuple(int(n) for n in shape), dtype, bool(fortran), len(start) + len(size_field) + length)


def _check_size(header: NpyHeader, size: int, where: str) -> None:
    expected = header.offset + header.nbytes
    if size != expected:
        raise DataError(
            f"{where}: expected {expected} bytes for shape {header.shape} of {header.dtype}, "
            f"the file has {size}; make it again"
        )
    check_shape(header.shape, where)


def _fill(stream: Stream, header: NpyHeader, out: Array, where: str) -> None:
    if header.fortran and len(header.shape) > 1:
        fill_fortran(stream, out, where)
    else:
        fill(stream, out, where)
    expect_end(stream, where)


def _unchanged(source: NpySource | NpzSource, header: NpyHeader, where: str) -> None:
    if header != source.header:
        raise DataError(f"{where}: expected the array that was opened, the file has changed since; start again")


@dataclass(frozen=True)
class NpySource(ArraySource):
    """A .npy file."""

    path: str
    header: NpyHeader

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> NpySource:
        """Reads and checks the header; DataError where it isn't a whole .npy file of numbers."""
        where = absolute(path)
        header = cls._read_header(where)
        return cls(header.shape, header.dtype, where, header)

    @staticmethod
    def _read_header(path: str) -> NpyHeader:
        with reading(path), open_regular(path) as stream:
            header = read_header(stream, path)
            _check_size(header, os.fstat(stream.fileno()).st_size, path)
            return header

    def read_into(self, out: Array) -> None:
        """Overwrites `out` from the file."""
        check_out(self, out)
        with reading(self.path), open_regular(self.path) as stream:
            header = read_header(stream, self.path)
            _unchanged(self, header, self.path)
            _fill(stream, header, out, self.path)

    def mapped(self) -> Array | None:
        """A read-only map, where the data is C-ordered, aligned, and in this machine's byte order."""
        header = self.header
        if (header.fortran and len(self.shape) > 1) or not self.dtype.isnative or header.offset % self.dtype.itemsize:
            return None
        _unchanged(self, self._read_header(self.path), self.path)
        with reading(self.path):
            return np.memmap(self.path, self.dtype, "r", header.offset, self.shape)


@dataclass(frozen=True)
class NpzSource(ArraySource):
    """A member of a .npz file, which np.load would unpack as a whole."""

    path: str
    member: str
    header: NpyHeader

    def read_into(self, out: Array) -> None:
        """Overwrites `out`, unpacking a block at a time."""
        check_out(self, out)
        where = f"{self.path}: {self.member}"
        with reading(where), _open_archive(self.path) as archive, archive.open(self.member) as stream:
            header = read_header(stream, where)
            _unchanged(self, header, where)
            _fill(stream, header, out, where)


def npz_keys(path: str | os.PathLike[str]) -> list[str]:
    """Names of the arrays in a .npz file; DataError where it isn't one."""
    where = absolute(path)
    with reading(where), _open_archive(where) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


@contextmanager
def _open_archive(where: str) -> Iterator[zipfile.ZipFile]:
    with open_regular(where) as raw:
        raw.peek(1)  # raises what the next line would take for another format
        if not zipfile.is_zipfile(raw):
            raise DataError(f"{where}: expected a .npz file, got something else; write it with numpy.savez")
        with zipfile.ZipFile(raw) as archive:
            yield archive


def open_npz(path: str | os.PathLike[str], wanted: Container[str]) -> dict[str, NpzSource]:
    """Sources of those arrays of a .npz file whose name is in `wanted`; the others are not looked at."""
    where = absolute(path)
    found = {}
    keys = npz_keys(where)
    with reading(where), _open_archive(where) as archive:
        size = os.path.getsize(where)
        for key in keys:
            if key in wanted:
                found[key] = _open_member(archive, key, where, size)
    return found


def _open_member(archive: zipfile.ZipFile, key: str, path: str, archive_size: int) -> NpzSource:
    member = f"{key}.npy"
    where = f"{path}: {member}"
    with reading(where):
        info = archive.getinfo(member)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{where}: expected stored or deflated data, got another compression; use numpy.savez")
        packed = min(info.compress_size, archive_size)
        if info.file_size > packed * DEFLATE_LIMIT:
            raise DataError(f"{where}: {packed} packed bytes can't hold the promised {info.file_size}; make it again")
        with archive.open(info) as stream:
            header = read_header(stream, where)
        _check_size(header, info.file_size, where)
        return NpzSource(header.shape, header.dtype, path, member, header)
