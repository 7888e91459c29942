"""An array in a file, after a header that says its shape: read a block at a time, or mapped."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from distsgd.core.device import Array, Shape
from distsgd.core.errors import DataError
from distsgd.data.sources.base import ArraySource, Rows, Runs, check_out, cut
from distsgd.data.sources.streams import BLOCK, Stream, expect_end, fill, fill_fortran, reading


@dataclass(frozen=True)
class Header:
    """What a header says, and where the data begins. `packed` data doesn't lie in the file as it is."""

    shape: Shape
    dtype: np.dtype[Any]
    offset: int
    fortran: bool = False
    packed: bool = False

    def check(self, size: int, where: str) -> None:
        """DataError unless `size` bytes hold this array and nothing else; packed, `size` is the most they may become.

        An array without elements has few bytes whatever its shape, which may be one that no array can have.
        """
        expected = self.offset + prod(self.shape) * self.dtype.itemsize
        if expected > size or (not self.packed and expected != size):
            raise DataError(
                f"{where}: expected {expected} bytes for shape {self.shape} of {self.dtype}, "
                f"the file has {'at most ' if self.packed else ''}{size}; make or download it again"
            )
        if prod(max(1, length) for length in self.shape) >= 1 << 56 or len(self.shape) > 16:
            raise DataError(f"{where}: expected the shape of an array, the header says {self.shape}; make it again")


@dataclass(frozen=True)
class FileSource(ArraySource):
    """The base class: a subclass opens its file, and reads and checks the header."""

    path: str
    header: Header

    @property
    def where(self) -> str:
        """The array's name in messages."""
        return self.path

    @property
    def chunk(self) -> int:
        """One row, where the data lies in the file as it is."""
        return 1 if self.lies_in_rows else super().chunk

    @property
    def lies_in_rows(self) -> bool:
        """Whether the rows lie in the file as they are, one after the other."""
        return not (self.header.packed or self.header.fortran)

    @property
    def in_blocks(self) -> bool:
        """Whether the rows lie in the file as they are."""
        return self.lies_in_rows

    @abstractmethod
    def opened(self) -> AbstractContextManager[tuple[Stream, Header]]:
        """The data's bytes, unpacked, and the header before them."""

    @contextmanager
    def opened_data(self) -> Iterator[tuple[Stream, int]]:
        """The file with the data in it as it is, where it is so, and at which byte that begins."""
        with self.opened() as (stream, header):
            self.check_unchanged(header)
            yield stream, header.offset

    def read_into(self, out: Array) -> None:
        """Overwrites `out`, a block at a time, and reads no more than the header promises and one byte."""
        check_out(self, out)
        with self.opened() as (stream, header):
            self.check_unchanged(header)
            (fill_fortran if header.fortran else fill)(stream, out, self.where)
            expect_end(stream, self.where)

    def open_rows(self, arrays: Mapping[str, ArraySource]) -> Rows:
        """Reads rows out of the file, without a map, where the data lies in it as it is; packed data from its
        beginning on, without the array as a whole."""
        if self.header.fortran:
            return super().open_rows(arrays)
        (name,) = arrays
        return _PackedRows(name, self) if self.header.packed else _FileRows(name, self)

    def mapped(self) -> Array | None:
        """A read-only map, where the data is C-ordered, aligned, not packed, and in this machine's byte order."""
        header = self.header
        if (
            0 in header.shape
            or header.packed
            or header.fortran
            or not self.dtype.isnative
            or header.offset % self.dtype.itemsize
        ):
            return None
        with self.opened() as (stream, found):
            self.check_unchanged(found)
            array = np.memmap(stream, self.dtype, "r", header.offset, self.shape)  # of the file that was checked
        array.filename = self.path  # which a stream that was opened by its number doesn't know
        return array

    def check_unchanged(self, header: Header) -> None:
        """DataError where this header isn't the one that was there when the file was opened first."""
        if header != self.header:
            raise DataError(f"{self.where}: expected the array that was opened, it has changed since; start again")


class _FileRows(Rows):
    """Rows of C-ordered data in an open file."""

    def __init__(self, name: str, source: FileSource) -> None:
        self._name, self._source = name, source
        with ExitStack() as opening:
            self._stream, self._offset = opening.enter_context(source.opened_data())
            self._open = opening.pop_all()

    def read(self, runs: Runs, out: Mapping[str, Array]) -> None:
        source = self._source
        row = prod(source.shape[1:]) * source.dtype.itemsize
        with reading(source.where):
            for start, _, place in cut(runs):
                self._stream.seek(self._offset + start * row)
                fill(self._stream, out[self._name][place], source.where)

    def close(self) -> None:
        self._open.close()


class _PackedRows(Rows):
    """Rows of packed data, which is unpacked up to those that are read; for earlier ones it begins again."""

    def __init__(self, name: str, source: FileSource) -> None:
        self._name, self._source, self._at = name, source, 0
        self._row = prod(source.shape[1:]) * source.dtype.itemsize
        self._open = ExitStack()
        self._stream = self._begin()

    def _begin(self) -> Stream:
        self._open.close()
        with ExitStack() as opening:
            stream, header = opening.enter_context(self._source.opened())
            self._source.check_unchanged(header)
            self._open = opening.pop_all()
        self._at = 0
        return stream

    def read(self, runs: Runs, out: Mapping[str, Array]) -> None:
        if runs and runs[0][0] < self._at:
            self._stream = self._begin()
        with reading(self._source.where):
            for start, stop, place in cut(runs):
                self._skip((start - self._at) * self._row)
                fill(self._stream, out[self._name][place], self._source.where)
                self._at = stop
            if self._at == self._source.shape[0]:  # checksums are compared there
                expect_end(self._stream, self._source.where)

    def _skip(self, count: int) -> None:
        while count > 0:
            block = np.empty(min(count, BLOCK), np.uint8)
            fill(self._stream, block, self._source.where)
            count -= len(block)

    def close(self) -> None:
        self._open.close()
