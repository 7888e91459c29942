"""Arrays that stay in their files: rows are read when they are asked for, in the place of an array in memory."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias, cast, final

import numpy as np

from distsgd.core.device import Array, Shape
from distsgd.data.sources.base import ArraySource, Rows, Runs
from distsgd.data.sources.converted import open_rows

if TYPE_CHECKING:
    from distsgd.core.files import FileStamp

Check: TypeAlias = Callable[[Array, Array], None]
"""Called with rows as they are stored, and their numbers; raises DataError."""

_BLOCK, _LEAST_BLOCK = 32 << 20, 1 << 20
"""Bytes that are read and kept together, where rows can't be read by themselves: at most, and of short chunks."""
_KEPT = 32 << 20
"""Bytes of blocks that are kept at most, for the workers of a rank read in different places."""
LOOKED_AFTER = 1.0
"""Seconds after which it is looked again whether a file is as it was."""


def runs_of(rows: Array) -> Runs:
    """Rising row numbers (n,) as runs.

    >>> runs_of(np.array([2, 3, 4, 9]))
    [(2, 5), (9, 10)]
    """
    if not len(rows):
        return []
    ends = np.flatnonzero(np.diff(rows) != 1)
    starts, stops = rows[np.concatenate([[0], ends + 1])], rows[np.concatenate([ends, [-1]])] + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


class RowArray(ABC):
    """What is used as an array in memory is, by rows alone: the first axis is of examples.

    Parameters
    ----------
    shape : tuple of int
        Examples first.
    dtype : dtype
        That of rows that are read.
    files : sequence of FileStamp
        The files that it is in, as they were.
    """

    def __init__(self, shape: Shape, dtype: np.dtype[Any], files: Sequence[FileStamp] = ()) -> None:
        self.shape, self.dtype, self.files = shape, dtype, tuple(files)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of values."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that it would take in memory."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def take(self, rows: Array, axis: int = 0, out: Array | None = None, mode: str = "clip") -> Array:
        """Copies rows.

        Parameters
        ----------
        rows : array
            Their numbers (n,), valid, in any order.
        axis, mode
            As of NumPy's `take`; rows alone can be taken, and none is clipped.
        out : array, optional
            Where the rows are written to.

        Returns
        -------
        array
            The rows (n, …): `out` where it is given.

        Raises
        ------
        DataError
            Where a file is damaged or has changed, or a row doesn't pass the check.
        """

    def __getitem__(self, key: Any) -> Array:
        """A row, or the rows of a slice or of an array of numbers, as a fresh array."""
        if isinstance(key, slice):
            return self.take(np.arange(*key.indices(len(self))))
        if isinstance(key, np.ndarray) and key.dtype == bool:
            return self.take(np.flatnonzero(key))
        rows = np.atleast_1d(np.asarray(key, dtype=np.int64))
        if len(rows) and not -len(self) <= int(rows.min()) <= int(rows.max()) < len(self):
            raise IndexError(f"expected rows below {len(self)}, got {key}")
        found = self.take(np.where(rows < 0, rows + len(self), rows))
        return found[0] if np.ndim(key) == 0 else found

    def __array__(self, *_: object, **__: object) -> Array:
        raise TypeError("an array in a file is read by its rows; array[start:stop] reads some")


@final
class StoredArray(RowArray):
    """An array whose rows are read from its file. Several threads may use it.

    Where rows are stored by themselves, those are read that are asked for. Where they are stored in chunks, blocks of
    rows are read, and the last few are kept.

    Parameters
    ----------
    source : ArraySource
        The array. It is opened when the first rows are asked for.
    files : sequence of FileStamp
        Its files as they were, which is compared as they are read.
    check : callable, optional
        Called with rows that have been read, and their numbers; raises DataError.

    Examples
    --------
    >>> from distsgd.data.sources.converted import ValuesSource
    >>> stored = StoredArray(ValuesSource.of(np.arange(10)))
    >>> stored[3:5].tolist(), stored.take(np.array([7, 2])).tolist(), stored.part(5, 10)[0].item()
    ([3, 4], [7, 2], 5)
    """

    def __init__(self, source: ArraySource, files: Sequence[FileStamp] = (), check: Check | None = None) -> None:
        super().__init__(source.shape, source.dtype, files)
        self.source = source
        self._start, self._reader = 0, _Reader(source, files, check)

    def part(self, start: int, stop: int) -> StoredArray:
        """The rows from `start` to before `stop`, as an array that reads through this one."""
        found = object.__new__(StoredArray)
        RowArray.__init__(found, (stop - start, *self.shape[1:]), self.dtype, self.files)
        found.source, found._start, found._reader = self.source, self._start + start, self._reader
        return found

    def take(self, rows: Array, axis: int = 0, out: Array | None = None, mode: str = "clip") -> Array:
        if out is None:
            out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        self._reader.read(rows + self._start if self._start else rows, out)
        return out

    def close(self) -> None:
        """Closes the file and frees what is kept; the next use opens it again."""
        self._reader.close()


def stored(source: ArraySource, files: Sequence[FileStamp] = (), check: Check | None = None) -> Array:
    """A `StoredArray` as what takes arrays in memory is given it."""
    return cast("Array", StoredArray(source, files, check))


class _Reader:
    """Reads a source's rows, with the blocks that were read last."""

    def __init__(self, source: ArraySource, files: Sequence[FileStamp], check: Check | None) -> None:
        self._source, self._files, self._check = source, files, check
        self._lock = threading.Lock()
        self._rows: Rows | None = None
        self._kept: OrderedDict[int, Array] = OrderedDict()
        self._looked = time.monotonic()
        row = max(1, prod(source.shape[1:]) * source.dtype.itemsize)
        chunk = source.chunk
        self._block = 1 if chunk == 1 else max(1, min(chunk, _BLOCK // row))
        if 1 < self._block * row < _LEAST_BLOCK and chunk > 1:
            self._block *= -(-_LEAST_BLOCK // (self._block * row))

    def read(self, rows: Array, out: Array) -> None:
        """Fills `out` with these rows, in any order."""
        if len(rows) > 1 and not (np.diff(rows) > 0).all():
            sorted_rows, place = np.unique(rows, return_inverse=True)
            found = np.empty((len(sorted_rows), *out.shape[1:]), out.dtype)
            self.read(sorted_rows, found)
            np.take(found, place, axis=0, out=out, mode="clip")
            return
        with self._lock:
            if self._block == 1:
                self._read_runs(rows, out)
                return
            blocks = rows // self._block
            first = 0
            for last in (*(np.flatnonzero(np.diff(blocks)) + 1).tolist(), len(rows)):
                if last > first:
                    block = int(blocks[first])
                    out[first:last] = self._kept_block(block)[rows[first:last] - block * self._block]
                first = last

    def _kept_block(self, block: int) -> Array:
        found = self._kept.get(block)
        if found is None:
            rows = np.arange(block * self._block, min((block + 1) * self._block, self._source.shape[0]))
            found = np.empty((len(rows), *self._source.shape[1:]), self._source.dtype)
            self._read_runs(rows, found)
            self._kept[block] = found
            most = max(1, _KEPT // max(1, found.nbytes))
            while len(self._kept) > most:
                self._kept.popitem(last=False)
        self._kept.move_to_end(block)
        return found

    def _read_runs(self, rows: Array, out: Array) -> None:
        if not len(rows):
            return
        if time.monotonic() - self._looked > LOOKED_AFTER:
            for file in self._files:
                file.check()
            self._looked = time.monotonic()
        if self._rows is None:
            self._rows = open_rows({"": self._source})
        if out.flags.c_contiguous:
            self._rows.read(runs_of(rows), {"": out})
        else:
            found = np.empty(out.shape, out.dtype)
            self._rows.read(runs_of(rows), {"": found})
            out[...] = found
        if self._check is not None:
            self._check(out, rows)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file, and keeps nothing."""
        with self._lock:
            if self._rows is not None:
                self._rows.close()
            self._rows = None
            self._kept.clear()
