"""Several arrays as the columns of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import DataError
from distsgd.data.checks import check_dtype
from distsgd.data.columns import MOST_FEATURES
from distsgd.data.sources.base import ArraySource, Rows, Runs
from distsgd.data.sources.streams import check_out

_AT_ONCE = 32 << 20
"""Bytes that are read at once."""
_EXACT = 1 << 53
"""From here on float64 holds only some of the whole numbers."""


@dataclass(frozen=True)
class SideBySideSource(ArraySource):
    """Arrays (n,) and (n, k), one beside the other as (n, all their columns)."""

    parts: tuple[ArraySource, ...]
    names: tuple[str, ...]
    where: str

    @property
    def chunk(self) -> int:
        """The largest of the arrays'."""
        return max(part.chunk for part in self.parts)

    def read_into(self, out: Array) -> None:
        """Overwrites `out`, one array after the other, some rows at a time: each may be a file, or be read whole."""
        check_out(self, out)
        step = max(1, _AT_ONCE * len(out) // max(1, out.nbytes))
        for number in range(len(self.parts)):
            with _SideBySideRows("", self, [number]) as rows:
                for start in range(0, len(out), step):
                    stop = min(start + step, len(out))
                    rows.read([(start, stop)], {"": out[start:stop]})

    def open_rows(self, arrays: Mapping[str, ArraySource]) -> Rows:
        """The rows of all the arrays."""
        (name,) = arrays
        return _SideBySideRows(name, self, range(len(self.parts)))


class _SideBySideRows(Rows):
    """Open arrays, whose rows are put side by side."""

    def __init__(self, name: str, source: SideBySideSource, numbers: Sequence[int]) -> None:
        self._name, self._source = name, source
        ends = list(accumulate((_width(part) for part in source.parts), initial=0))
        self._columns = {number: slice(ends[number], ends[number + 1]) for number in numbers}
        with ExitStack() as opening:
            parts = {number: source.parts[number] for number in numbers}
            self._rows = {number: opening.enter_context(part.open_rows({"": part})) for number, part in parts.items()}
            self._open = opening.pop_all()

    def read(self, runs: Runs, out: Mapping[str, Array]) -> None:
        memory = out[self._name]
        for number, rows in self._rows.items():
            part, name = self._source.parts[number], self._source.names[number]
            found = np.empty((len(memory), *part.shape[1:]), part.dtype)
            rows.read(runs, {"": found})
            if part.dtype.kind in "iu" and part.dtype.itemsize == 8 and found.size:
                self._check_exact(name, found, runs)
            memory[:, self._columns[number]] = found.reshape(len(memory), _width(part))

    def _check_exact(self, name: str, found: Array, runs: Runs) -> None:
        if found.max() > _EXACT or found.min() < -_EXACT:
            wrong = (found > _EXACT) | (found < -_EXACT)
            at = int(wrong.reshape(len(found), -1).any(axis=1).argmax())
            row = np.concatenate([np.arange(start, stop) for start, stop in runs])[at]
            raise DataError(
                f"{self._source.where}: {name}: example {row} holds a whole number beyond 2**53, of which floats hold "
                "only some; make them smaller, or leave it out of --x"
            )

    def close(self) -> None:
        self._open.close()


def side_by_side(where: str, arrays: Mapping[str, ArraySource]) -> ArraySource:
    """One array whose columns are those of several.

    Parameters
    ----------
    where : str
        The file, for messages.
    arrays : mapping of str to ArraySource
        By name: (n,) or (n, k).

    Returns
    -------
    ArraySource
        float32 where that holds all of the types exactly, else float64.

    Raises
    ------
    DataError
        Where one has other axes or another length.
    """
    first, length = next(iter(arrays)), next(iter(arrays.values())).shape[:1]
    for name, source in arrays.items():
        check_dtype(f"{where}: {name}", source.dtype)
        if len(source.shape) not in (1, 2):
            raise DataError(
                f"{where}: {name} has shape {source.shape}, and only (n,) and (n, k) can stand side by side; give it "
                "alone, or reshape it"
            )
        if source.shape[:1] != length:
            raise DataError(
                f"{where}: {name} has {source.shape[0]} examples, {first} has {length[0]}; give arrays of one length"
            )
    width = sum(map(_width, arrays.values()))
    if width > MOST_FEATURES:
        raise DataError(f"{where}: expected at most {MOST_FEATURES:,} columns side by side, got {width:,}; name fewer")
    narrow = all(one.dtype.itemsize <= (4 if one.dtype.kind == "f" else 2) for one in arrays.values())
    dtype = np.dtype(np.float32 if narrow else np.float64)
    return SideBySideSource((*length, width), dtype, tuple(arrays.values()), tuple(arrays), where)


def _width(source: ArraySource) -> int:
    return source.shape[1] if len(source.shape) > 1 else 1
