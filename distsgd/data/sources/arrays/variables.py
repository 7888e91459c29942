"""Arrays in files of chunks, as HDF5 and Zarr have them: read by rows, each chunk once for the rows that touch it."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from distsgd.core.device import Array, Shape
from distsgd.core.errors import DataError
from distsgd.core.files import FileStamp
from distsgd.data.checks import check_dtype
from distsgd.data.sources.arrays.decoding import Decoding
from distsgd.data.sources.base import ArraySource, Rows, Runs
from distsgd.data.sources.streams import check_promised, reading

_IN_ONE_CALL = 16 << 20
"""Bytes that are read in one call: a library unpacks as many beside what it is given to fill."""
_KEPT = 64 << 20
"""Bytes of decoded chunks that are kept for the next call."""
_LARGEST_CHUNK = 1 << 30
"""Bytes of one decoded chunk."""
_AXES = 16


@dataclass(frozen=True)
class Stored:
    """An array as the file holds it; `whole` chunks can't be read in parts."""

    shape: Shape
    dtype: np.dtype[Any]
    chunks: Shape | None
    whole: bool = True

    def check(self, where: str) -> None:
        """DataError for what no reader can have in memory, or isn't numbers."""
        check_dtype(where, self.dtype)
        if len(self.shape) > _AXES or prod(max(1, length) for length in self.shape) >= 1 << 56:
            raise DataError(
                f"{where}: expected at most {_AXES} axes and 2**56 numbers, got {self.shape}; make it again"
            )
        if self.chunks is not None and prod(self.chunks) * self.dtype.itemsize > _LARGEST_CHUNK:
            raise DataError(
                f"{where}: expected chunks of at most 1 GiB, got {self.chunks} of {self.dtype}; write smaller ones"
            )

    def check_packed(self, where: str, packed: int, *, streamed: bool) -> None:
        """DataError where the file holds too few bytes of the array for it to be true."""
        if not streamed:
            check_promised(where, prod(self.shape) * self.dtype.itemsize, packed, "write all of it")


def axis_of(where: str, asked: str, axes: int, names: Sequence[str] = ()) -> int:
    """The axis of examples of an array: a number, or one of the names of its axes. An array of one axis has no other.

    Raises DataError where there is none.
    """
    if asked in names[:axes]:
        return names.index(asked)
    if asked.lstrip("-").isdecimal():
        number = int(asked)
        if axes <= 1:
            return 0
        if -axes <= number < axes:
            return number % axes
        raise DataError(f"{where}: expected one of {axes} axes, got --axis {asked}; count from 0")
    there = f"are named {', '.join(names)}" if any(names) else "have no names"
    raise DataError(f"{where}: no axis is named '{asked}', its axes {there}; give --axis a number from 0, or a name")


@dataclass(frozen=True)
class VariableSource(ArraySource):
    """The base class: a subclass opens the array.

    Parameters
    ----------
    path, name : str
        The file, and which of its arrays.
    stored : Stored
        As the file holds it.
    axis : int
        The axis of examples.
    stamp : FileStamp
        What the file was when it was opened.
    decoding : Decoding, optional
        How stored numbers become values.
    """

    path: str
    name: str
    stored: Stored
    axis: int
    stamp: FileStamp
    decoding: Decoding | None = None

    @property
    def where(self) -> str:
        """The array's name in messages."""
        return f"{self.path}: {self.name}"

    @property
    def chunk(self) -> int:
        """Rows of a chunk; one, where rows can be read by themselves."""
        if self.stored.chunks is None or not self.stored.whole:
            return 1
        return max(1, min(self.stored.chunks[self.axis], self.shape[0]))

    @property
    def absent(self) -> tuple[int, ...]:
        """The whole numbers that stand for a missing value, where these stay whole."""
        found = self.decoding
        return () if found is None or self.dtype.kind == "f" else tuple(int(value) for value in found.absent)

    @abstractmethod
    def opened(self) -> AbstractContextManager[tuple[Any, Stored]]:
        """The open array, and what the file says of it now."""

    def open_rows(self, arrays: Mapping[str, ArraySource]) -> Rows:
        """Reads rows out of the file."""
        (name,) = arrays
        return _VariableRows(name, self)

    def slab(self, array: Any, start: int, stop: int, out: Array) -> None:
        """Overwrites `out` with stored numbers of these examples, which come first in it."""
        found = array[(slice(None),) * self.axis + (slice(start, stop),)]
        np.copyto(out, np.moveaxis(np.asarray(found), self.axis, 0))

    def check_unchanged(self, found: Stored) -> None:
        """DataError where the file isn't the one that was there when it was opened first."""
        self.stamp.check()
        if found != self.stored:
            raise DataError(f"{self.where}: expected the array that was opened, it has changed since; start again")


def variable_shape(stored: Stored, axis: int) -> Shape:
    """The shape with examples first."""
    return (stored.shape[axis], *stored.shape[:axis], *stored.shape[axis + 1 :]) if stored.shape else ()


class _VariableRows(Rows):
    """Rows of an open array. The chunks of rows that are asked for in part stay decoded for the next call."""

    def __init__(self, name: str, source: VariableSource) -> None:
        self._name, self._source = name, source
        self._kept: tuple[int, Array] | None = None
        self._buffer: Array | None = None
        with ExitStack() as opening:
            self._array, found = opening.enter_context(source.opened())
            source.check_unchanged(found)
            self._open = opening.pop_all()
        self._row = prod(source.shape[1:]) * source.stored.dtype.itemsize

    def read(self, runs: Runs, out: Mapping[str, Array]) -> None:
        memory, at, chunk = out[self._name], 0, self._source.chunk
        whole = max(1, _IN_ONE_CALL // max(1, self._row * chunk)) * chunk
        keeps = chunk > 1 and chunk * self._row <= _KEPT
        with reading(self._source.where):
            for start, stop in runs:
                while start < stop:
                    begin = start - start % chunk
                    end = min(stop, begin + whole)
                    partly = keeps and (begin < start or stop < min(begin + chunk, self._source.shape[0]))
                    if partly:
                        end = min(stop, begin + chunk)
                        rows = self._chunk_at(begin)[start - begin : end - begin]
                        np.copyto(memory[at : at + end - start], rows)
                    else:
                        if keeps and end % chunk and end < self._source.shape[0]:
                            end -= end % chunk  # the rest is a part of a chunk
                        self._read(start, end, memory[at : at + end - start])
                    at += end - start
                    start = end

    def _chunk_at(self, begin: int) -> Array:
        """The rows of the chunk that begins here."""
        if self._kept is None or self._kept[0] != begin:
            source = self._source
            end = min(begin + source.chunk, source.shape[0])
            if self._buffer is None:  # once, for fresh memory costs as much as a chunk that isn't compressed
                self._buffer = np.empty((source.chunk, *source.shape[1:]), source.dtype)
            found, self._kept = self._buffer[: end - begin], None
            self._read(begin, end, found)
            self._kept = begin, found
        return self._kept[1]

    def _read(self, start: int, stop: int, out: Array) -> None:
        """Overwrites `out` with the values of examples from start to before stop."""
        source = self._source
        if source.decoding is None:
            source.slab(self._array, start, stop, out)
            return
        raw = np.empty(out.shape, source.stored.dtype.newbyteorder("="))
        source.slab(self._array, start, stop, raw)
        source.decoding.into(raw, out)

    def close(self) -> None:
        self._kept = self._buffer = None
        self._open.close()


def check_real(path: str) -> None:
    """Raises OSError unless this is a regular file: a library opens it by its name."""
    from distsgd.core.files import check_regular

    check_regular(os.stat(path).st_mode, path)
