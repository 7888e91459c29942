"""An array in a file, after a header that says its shape: read a block at a time, or mapped."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from distsgd.core.device import Array, Shape
from distsgd.core.errors import DataError
from distsgd.data.sources.base import ArraySource
from distsgd.data.sources.streams import Stream, check_out, expect_end, fill, fill_fortran


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

    @abstractmethod
    def opened(self) -> AbstractContextManager[tuple[Stream, Header]]:
        """The data's bytes, unpacked, and the header before them."""

    def read_into(self, out: Array) -> None:
        """Overwrites `out`, a block at a time, and reads no more than the header promises and one byte."""
        check_out(self, out)
        with self.opened() as (stream, header):
            self._check_unchanged(header)
            (fill_fortran if header.fortran else fill)(stream, out, self.where)
            expect_end(stream, self.where)

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
            self._check_unchanged(found)
            array = np.memmap(stream, self.dtype, "r", header.offset, self.shape)  # of the file that was checked
        array.filename = self.path  # which a stream that was opened by its number doesn't know
        return array

    def _check_unchanged(self, header: Header) -> None:
        if header != self.header:
            raise DataError(f"{self.where}: expected the array that was opened, it has changed since; start again")
