"""Several arrays of one length side by side, as one array of floats."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import DataError
from distsgd.data.checks import check_dtype
from distsgd.data.sources.base import AT_ONCE, ArraySource, Rows, Runs, check_out, cut, rows_in
from distsgd.data.sources.converted import by_table, open_rows

_EXACT = 1 << 53
"""Whole numbers up to it are the same as float64."""


@dataclass(frozen=True)
class BesideSource(ArraySource):
    """Arrays (n,) or (n, k), each a column or several of the result (n, columns)."""

    where: str
    parts: tuple[tuple[str, ArraySource], ...]

    @property
    def chunk(self) -> int:
        """The largest of theirs."""
        return max(part.chunk for _, part in self.parts)

    @property
    def in_blocks(self) -> bool:
        """Whether all can."""
        return all(part.in_blocks for _, part in self.parts)

    def open_rows(self, arrays: Mapping[str, ArraySource]) -> Rows:
        """Reads rows of all parts."""
        (name,) = arrays
        return _BesideRows(name, self, dict(self.parts))

    def read_into(self, out: Array) -> None:
        """Overwrites `out`, those of one table in one pass, with one part at a time in memory that can only be read
        whole."""
        check_out(self, out)
        count, step = self.shape[0], rows_in(AT_ONCE, {"": self})
        for group in by_table(dict(self.parts)):
            with _BesideRows("", self, group) as rows:
                for start in range(0, count, step):
                    stop = min(start + step, count)
                    rows.read([(start, stop)], {"": out[start:stop]})


def beside(where: str, arrays: Mapping[str, ArraySource]) -> ArraySource:
    """The arrays side by side: float32 where that holds all their values, else float64.

    Raises DataError where they have other lengths, more than two axes, or no numbers.
    """
    first, *_ = arrays
    for name, one in arrays.items():
        check_dtype(f"{where}: {name}", one.dtype)
        if len(one.shape) not in (1, 2):
            raise DataError(
                f"{where}: {name}: expected one or several numbers an example, as arrays that stand side by side have "
                f"them, got shape {one.shape}; give it alone, or leave it out"
            )
        if one.shape[0] != arrays[first].shape[0]:
            raise DataError(
                f"{where}: expected arrays of one length to stand side by side, {first} has {arrays[first].shape[0]} "
                f"examples, {name} has {one.shape[0]}; leave one out"
            )
    wide = any(one.dtype.itemsize > (4 if one.dtype.kind == "f" else 2) for one in arrays.values())
    width = sum(_width(one) for one in arrays.values())
    dtype = np.dtype(np.float64 if wide else np.float32)
    return BesideSource((arrays[first].shape[0], width), dtype, where, tuple(arrays.items()))


def _width(source: ArraySource) -> int:
    return source.shape[1] if len(source.shape) == 2 else 1


class _BesideRows(Rows):
    """Rows of some of the parts, read into their columns; the memory for them is kept."""

    def __init__(self, name: str, source: BesideSource, parts: Mapping[str, ArraySource]) -> None:
        self._name, self._source, self._parts = name, source, parts
        self._columns: dict[str, slice] = {}
        at = 0
        for one, part in source.parts:
            self._columns[one] = slice(at, at := at + _width(part))
        with ExitStack() as opening:
            self._rows = opening.enter_context(open_rows(parts))
            self._open = opening.pop_all()

    def read(self, runs: Runs, out: Mapping[str, Array]) -> None:
        for start, stop, place in cut(runs, rows_in(AT_ONCE, self._parts)):
            self._read(start, stop, out[self._name][place])

    def _read(self, start: int, stop: int, memory: Array) -> None:
        parts = {name: np.empty((stop - start, *part.shape[1:]), part.dtype) for name, part in self._parts.items()}
        self._rows.read([(start, stop)], parts)
        for name, found in parts.items():
            if found.dtype.kind in "iu" and found.itemsize == 8 and found.size:
                self._check_exact(name, found, start)
            memory[:, self._columns[name]] = found.reshape(stop - start, -1)

    def _check_exact(self, name: str, found: Array, start: int) -> None:
        """Raises DataError for a whole number that float64 doesn't hold."""
        wrong = (found > _EXACT) | (found < -_EXACT) if found.dtype.kind == "i" else found > _EXACT
        if wrong.any():
            row = int(np.argmax(wrong.reshape(len(found), -1).any(axis=1)))
            raise DataError(
                f"{self._source.where}: {name}, example {start + row}: expected whole numbers of at most 2**53, as "
                f"floats hold them, got {found[row]}; leave it out, or number its values from 0"
            )

    def close(self) -> None:
        self._open.close()
