"""Sources without a file of their own: values that are small enough to keep, and another source, converted; and the
reading of several sources by their rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distsgd.core.device import Array, Shape
from distsgd.data.sources.base import ArraySource, Rows, Runs, check_out, read_rows
from distsgd.data.sources.streams import BLOCK

if TYPE_CHECKING:  # importing it loads NumPy
    from numpy.typing import DTypeLike


@dataclass(frozen=True, eq=False)
class ValuesSource(ArraySource):
    """A small array in memory: for generated data sets."""

    values: Array

    @classmethod
    def of(cls, values: Array) -> ValuesSource:
        """The source of these values."""
        return cls(values.shape, values.dtype, values)

    @property
    def chunk(self) -> int:
        """One row: they are in memory."""
        return 1

    @property
    def in_blocks(self) -> bool:
        """Always: they are in memory."""
        return True

    def read_into(self, out: Array) -> None:
        """Overwrites `out` with the values."""
        check_out(self, out)
        out[...] = self.values


@dataclass(frozen=True)
class SourceOfAnother(ArraySource):
    """What another source holds, changed as it is read: stored as that is, and read together with what that is."""

    inner: ArraySource

    @property
    def chunk(self) -> int:
        """The inner source's."""
        return self.inner.chunk

    @property
    def in_blocks(self) -> bool:
        """The inner source's."""
        return self.inner.in_blocks

    @property
    def table(self) -> Hashable:
        """The inner source's."""
        return self.inner.table


@dataclass(frozen=True)
class ConvertedSource(SourceOfAnother):
    """Another source in a dtype that is at least as wide, and in a shape of the same size."""

    def open_rows(self, arrays: Mapping[str, ArraySource]) -> Rows:
        """The inner source's rows, converted."""
        return _open_group(arrays)

    def read_into(self, out: Array) -> None:
        """Overwrites `out`; the inner array is read into its end, and widened in place."""
        check_out(self, out)
        inner = self.inner
        flat = out.reshape(-1)
        raw = flat.view(np.uint8)[out.nbytes - inner.nbytes :].view(inner.dtype)
        inner.read_into(raw.reshape(inner.shape))
        if inner.dtype == self.dtype:
            return
        rows = BLOCK // self.dtype.itemsize
        for start in range(0, out.size, rows):
            # The wide block ends no later than the narrow one, so that what is overwritten has been read.
            flat[start : start + rows] = raw[start : start + rows].copy()

    def mapped(self) -> Array | None:
        """The inner source's map, where only the shape differs."""
        if self.inner.dtype != self.dtype:
            return None
        found = self.inner.mapped()
        return None if found is None else found.reshape(self.shape)


def converted(inner: ArraySource, dtype: DTypeLike, shape: Shape | None = None) -> ArraySource:
    """`inner` as `dtype` (at least as wide) and `shape`; `inner` itself where it is that already."""
    target = np.dtype(dtype)
    if target.itemsize < inner.dtype.itemsize:
        raise ValueError(f"{inner.dtype} can't be widened in place to {target}")
    wanted = inner.shape if shape is None else shape
    if target == inner.dtype and wanted == inner.shape:
        return inner
    return ConvertedSource(wanted, target, inner)


def open_rows(arrays: Mapping[str, ArraySource]) -> Rows:
    """These arrays, open to be read by their rows; those of one table in one pass.

    Parameters
    ----------
    arrays : mapping of str to ArraySource
        By the names by which `Rows.read` fills them; of one length.

    Returns
    -------
    Rows
        To be closed.

    Raises
    ------
    DataError
        Where a file is missing, damaged, or has changed since it was opened.
    """
    groups = by_table(arrays)
    with ExitStack() as opening:
        opened = [(tuple(group), opening.enter_context(_open_group(group))) for group in groups]
        return _GroupedRows(opened, opening.pop_all())


def read_together(arrays: Mapping[str, ArraySource], out: Mapping[str, Array]) -> None:
    """Reads arrays as a whole, those of one table in one pass.

    Parameters
    ----------
    arrays : mapping of str to ArraySource
        By name.
    out : mapping of str to array
        A C-ordered array of the source's shape and dtype for each of them, to be overwritten.

    Raises
    ------
    DataError
        Where a file is missing, damaged, or has changed since it was opened.
    """
    for group in by_table(arrays):
        first = next(iter(group.values()))
        if len(group) == 1 and first.table is None:
            for name, source in group.items():
                source.read_into(out[name])
            continue
        with _open_group(group) as rows:
            read_rows(rows, group, out)


def blocks_of(arrays: Mapping[str, ArraySource], length: int) -> Iterator[tuple[int, dict[str, Array]]]:
    """All rows of arrays of one length, so many at a time, with the number of the first of them."""
    count = (next(iter(arrays.values())).shape or (0,))[0]
    with open_rows(arrays) as rows:
        for start in range(0, count, length):
            stop = min(start + length, count)
            found = {name: np.empty((stop - start, *one.shape[1:]), one.dtype) for name, one in arrays.items()}
            rows.read([(start, stop)], found)
            yield start, found


def by_table(arrays: Mapping[str, ArraySource]) -> list[dict[str, ArraySource]]:
    """The arrays in groups that are read together."""
    groups: dict[Hashable, dict[str, ArraySource]] = {}
    for name, source in arrays.items():
        key = ("alone", name) if source.table is None else ("table", source.table)
        groups.setdefault(key, {})[name] = source
    return list(groups.values())


def _open_group(arrays: Mapping[str, ArraySource]) -> Rows:
    """The rows of a single source, or of sources of one table, each converted where it is to be."""
    if not any(isinstance(one, ConvertedSource) for one in arrays.values()):
        return next(iter(arrays.values())).open_rows(arrays)
    inner = {name: one.inner if isinstance(one, ConvertedSource) else one for name, one in arrays.items()}
    return _ConvertedRows(_open_group(inner), inner)


class _ConvertedRows(Rows):
    """The rows of other sources, in the dtypes and shapes of the memory that is given."""

    def __init__(self, rows: Rows, inner: Mapping[str, ArraySource]) -> None:
        self._rows, self._inner = rows, inner

    def read(self, runs: Runs, out: Mapping[str, Array]) -> None:
        raw = {}
        for name, memory in out.items():
            shape, dtype = (len(memory), *self._inner[name].shape[1:]), self._inner[name].dtype
            raw[name] = memory.reshape(shape) if dtype == memory.dtype else np.empty(shape, dtype)
        self._rows.read(runs, raw)
        for name, memory in out.items():
            if raw[name].dtype != memory.dtype:
                memory[...] = raw[name].reshape(memory.shape)

    def close(self) -> None:
        self._rows.close()


class _GroupedRows(Rows):
    """Several open groups of arrays as one."""

    def __init__(self, opened: Sequence[tuple[tuple[str, ...], Rows]], closing: ExitStack) -> None:
        self._opened, self._closing = opened, closing

    def read(self, runs: Runs, out: Mapping[str, Array]) -> None:
        for names, rows in self._opened:
            rows.read(runs, {name: out[name] for name in names})

    def close(self) -> None:
        self._closing.close()
