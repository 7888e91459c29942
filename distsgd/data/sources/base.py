"""A data set before it is in memory: names of arrays, and sources that can fill a caller's buffer.

Nothing here holds a big array, so that one copy per host, in shared memory, is enough.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from sys import maxsize
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from distsgd.core.device import Array, Shape

if TYPE_CHECKING:
    from distsgd.core.files import FileStamp
    from distsgd.data.columns import Columns, Missing

SPLITS = ("train", "validation", "test")
ARRAY_NAMES = tuple(f"{kind}_{split}" for split in SPLITS for kind in ("x", "y", "weights"))

Runs: TypeAlias = Sequence[tuple[int, int]]
"""Rows from each start to before its stop; sorted, and no row twice."""
AT_ONCE = 32 << 20
"""Bytes that are read in one call."""


def cut(runs: Runs, most: int = maxsize) -> Iterator[tuple[int, int, slice]]:
    """Runs in parts of at most so many rows, each with its place among all rows that are read.

    >>> list(cut([(2, 5), (9, 10)], 2))
    [(2, 4, slice(0, 2, None)), (4, 5, slice(2, 3, None)), (9, 10, slice(3, 4, None))]
    """
    at = 0
    for start, stop in runs:
        for first in range(start, stop, most):
            count = min(most, stop - first)
            yield first, first + count, slice(at, at + count)
            at += count


def cut_at(starts: Sequence[int], runs: Runs) -> list[tuple[int, list[tuple[int, int]]]]:
    """Runs by part, as the rows of each, in order. Part k has the rows from starts[k] to before starts[k + 1]."""
    found: list[tuple[int, list[tuple[int, int]]]] = []
    for start, stop in runs:
        while start < stop:
            number = bisect_right(starts, start) - 1
            first, end = starts[number], min(stop, starts[number + 1])
            if not found or found[-1][0] != number:
                found.append((number, []))
            found[-1][1].append((start - first, end - first))
            start = end
    return found


class Rows(ABC):
    """Arrays that are open, to be read by their rows. A context manager; one thread at a time uses it."""

    @abstractmethod
    def read(self, runs: Runs, out: Mapping[str, Array]) -> None:
        """Reads rows of all the arrays.

        Parameters
        ----------
        runs : sequence of (int, int)
            Which rows: sorted, and no row twice.
        out : mapping of str to array
            For each of the arrays, by its name, C-ordered memory for as many rows; the runs come one after the other.

        Raises
        ------
        DataError
            Where the file is damaged, or has changed since it was opened.
        """

    @abstractmethod
    def close(self) -> None:
        """Closes what is open; once more changes nothing."""

    def __enter__(self) -> Rows:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class ArraySource(ABC):
    """One array of a data set: shape and dtype, known from a header, and how to read it. Can be pickled.

    A subclass reads the array as a whole, in `read_into`; or rows of it, in `open_rows`, and says with `chunk` what
    that costs. It may have both.

    Parameters
    ----------
    shape : tuple of int
        The array's shape, examples first.
    dtype : dtype
        Its type.
    """

    shape: Shape
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes that the array takes in memory."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def chunk(self) -> int:
        """Rows that are stored together, so that to read one costs as much as to read them; by default all of them."""
        return max(1, *self.shape[:1])

    @property
    def in_blocks(self) -> bool:
        """Whether some rows can be read without all that come before them."""
        return type(self).open_rows is not ArraySource.open_rows

    @property
    def table(self) -> Hashable:
        """What sources have alike that are read together, in one pass; None, by default, for those that aren't."""
        return None

    @property
    def absent(self) -> tuple[int, ...]:
        """The whole numbers that stand for a missing value; by default none do. Of floats it is NaN."""
        return ()

    def read_into(self, out: Array) -> None:
        """Reads the array, without a second whole copy; by default in runs of rows.

        Parameters
        ----------
        out : array
            A C-ordered array of this shape and dtype, to be overwritten.

        Raises
        ------
        DataError
            Where the file is missing, damaged, or has changed since it was opened.
        """
        check_out(self, out)
        with self.open_rows({"": self}) as rows:
            read_rows(rows, {"": self}, {"": out})

    def open_rows(self, arrays: Mapping[str, ArraySource]) -> Rows:
        """Opens this array and those that are read together with it.

        Parameters
        ----------
        arrays : mapping of str to ArraySource
            This source, and others of its `table`, by the names by which `Rows.read` fills them.

        Returns
        -------
        Rows
            By default the whole array, which is read when its first rows are.
        """
        (name,) = arrays
        return _WholeRows(name, self)

    def mapped(self) -> Array | None:
        """A memory map of the array.

        Returns
        -------
        array or None
            Read-only; None where the file can't be mapped, as by default.
        """
        return None


@dataclass(frozen=True)
class DataSource:
    """A data set that is described, not loaded. Can be pickled.

    Parameters
    ----------
    name : str
        For messages.
    arrays : mapping of str to ArraySource
        By name: x_train, y_train, and where there are any weights_train, x_validation, … and x_test, …; examples are
        the first axis, labels are (n,) int64.
    scale : float, default 1.0
        Inputs are divided by it when a minibatch is gathered.
    num_classes : int, optional
        The number of classes of integer labels, where it is known; `check_arrays` finds it otherwise.
    unused
        The names of the file's other arrays.
    columns : Columns, optional
        Which columns of a table the arrays are.
    class_names : tuple of str
        The names of the classes in the order of the labels, where the data have them; `num_classes` is their number.
    files : tuple of FileStamp
        The files as they were when they were opened.
    notes : tuple of str
        Sentences for the user.
    opened : Opened, optional
        How `open_dataset` has opened files, so that they can be opened again with something else asked of them.
    """

    name: str
    arrays: Mapping[str, ArraySource]
    scale: float = 1.0
    num_classes: int | None = None
    unused: tuple[str, ...] = ()
    columns: Columns | None = None
    class_names: tuple[str, ...] = ()
    files: tuple[FileStamp, ...] = ()
    notes: tuple[str, ...] = ()
    opened: Opened | None = field(default=None, compare=False)


@dataclass(frozen=True)
class ReadOptions:
    """What is asked of a file. A format says which of these it takes, and the others are refused.

    Parameters
    ----------
    x, y : tuple of str
        The columns or arrays that are inputs and targets: names, or patterns of names.
    weights, group : str, optional
        The column or array of sample weights, "" for none; and the one of groups that a split keeps together.
    axis : str, default "0"
        The number or the name of the axis of examples.
    missing : str, default "refuse"
        What is done with examples that lack a value: refuse, mean, zero or drop.
    classes : tuple of str
        The names of classes in the order of their labels.
    keep : tuple of str
        Columns that are written beside predictions.
    columns : Columns, optional
        What a trained model takes, in place of x and y.
    targets : bool, default True
        Whether targets are read; without, there may be no examples.
    streamed : bool, default False
        Whether the file is to be read in blocks.
    listed : bool, default False
        Whether each array of a file is described by its own name, whatever it is for; `DataSource.notes` says why one
        can't be.
    """

    x: tuple[str, ...] = ()
    y: tuple[str, ...] = ()
    weights: str | None = None
    group: str | None = None
    axis: str = "0"
    missing: Missing = "refuse"
    classes: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    columns: Columns | None = None
    targets: bool = True
    streamed: bool = False
    listed: bool = False


@dataclass(frozen=True)
class Opened:
    """The absolute paths of a data set that a program has opened, and what it has asked of them."""

    paths: tuple[str, ...]
    options: ReadOptions


@dataclass(frozen=True)
class OpenOptions:
    """What a registered data set may depend on.

    Parameters
    ----------
    data_dir : str, optional
        The folder of its files; None for the user's cache folder.
    seed : int, default 0
        The seed of generated points.
    download : bool, default True
        Whether missing files are downloaded.
    """

    data_dir: str | None = None
    seed: int = 0
    download: bool = True


def check_out(source: ArraySource, out: Array) -> None:
    """ValueError unless `out` is what `source.read_into` needs."""
    if out.shape != source.shape or out.dtype != source.dtype or not out.flags.c_contiguous:
        raise ValueError(
            f"expected a C-ordered buffer of shape {source.shape} and dtype {source.dtype}, "
            f"got shape {out.shape} and dtype {out.dtype}"
        )


def rows_in(count: int, arrays: Mapping[str, ArraySource]) -> int:
    """How many rows of these arrays take so many bytes together; at least one."""
    return max(1, count // max(1, sum(prod(one.shape[1:]) * one.dtype.itemsize for one in arrays.values())))


def read_rows(rows: Rows, arrays: Mapping[str, ArraySource], out: Mapping[str, Array]) -> None:
    """Reads all rows of arrays that are open, in runs that end where chunks do: each is unpacked once."""
    first = next(iter(arrays.values()))
    count = first.shape[0]
    step = rows_in(AT_ONCE, arrays)
    step += -step % first.chunk
    for start in range(0, count, step):
        stop = min(start + step, count)
        rows.read([(start, stop)], {name: out[name][start:stop] for name in arrays})


def read_array(source: ArraySource) -> Array:
    """The array that a source describes.

    Parameters
    ----------
    source : ArraySource
        One of the arrays of a `DataSource`.

    Returns
    -------
    array
        The file's read-only map where there is one, else a fresh array.

    Raises
    ------
    DataError
        Where the file is missing, damaged, or has changed since it was opened.
    """
    found = source.mapped()
    if found is None:
        found = np.empty(source.shape, source.dtype)
        source.read_into(found)
    return found


class _WholeRows(Rows):
    """An array that can only be read as a whole, or is mapped."""

    def __init__(self, name: str, source: ArraySource) -> None:
        self._name, self._source = name, source
        self._array: Array | None = None

    def read(self, runs: Runs, out: Mapping[str, Array]) -> None:
        if self._array is None:
            self._array = read_array(self._source)
        for start, stop, place in cut(runs):
            out[self._name][place] = self._array[start:stop]

    def close(self) -> None:
        self._array = None
