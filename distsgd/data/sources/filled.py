"""Missing values of arrays: replaced, or their examples skipped, as the rows are read."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import DataError
from distsgd.data.sources.base import AT_ONCE, SPLITS, ArraySource, ReadOptions, Rows, Runs, cut
from distsgd.data.sources.converted import SourceOfAnother, blocks_of, open_rows

_ROWS = 4096
"""Rows that are looked at together, at most. A mean depends on it by its rounding, so it follows from shapes alone."""
_MOST_DROPPED = 1 << 24


@dataclass(frozen=True)
class FilledSource(SourceOfAnother):
    """Another source with missing values replaced, or without the examples that lack one.

    Parameters
    ----------
    inner : ArraySource
        Where the values come from.
    fill : array, optional
        What stands for a missing value, in the shape of an example.
    dropped : array
        The examples of the inner source that are skipped, sorted.
    """

    fill: Array | None = field(compare=False)
    dropped: Array = field(compare=False)

    @property
    def table(self) -> Hashable:
        """The inner source's: what is read together there is here."""
        found = self.inner.table
        return None if found is None else ("filled", found)

    def open_rows(self, arrays: Mapping[str, ArraySource]) -> Rows:
        """The inner sources' rows, filled."""
        return _FilledRows({name: one for name, one in arrays.items() if isinstance(one, FilledSource)})


class _FilledRows(Rows):
    """Rows of other sources, of which all skip the same examples."""

    def __init__(self, sources: Mapping[str, FilledSource]) -> None:
        self._sources = sources
        dropped = next(iter(sources.values())).dropped
        self._dropped, self._before = dropped, dropped - np.arange(len(dropped))
        self._rows = open_rows({name: one.inner for name, one in sources.items()})

    def read(self, runs: Runs, out: Mapping[str, Array]) -> None:
        if not len(self._dropped):
            self._rows.read(runs, out)
        else:
            row = max(1, sum(prod(one.shape[1:]) * one.dtype.itemsize for one in self._sources.values()))
            for first, _, place in cut(runs, max(1, AT_ONCE // row)):
                self._read_kept(first, {name: memory[place] for name, memory in out.items()})
        for name, memory in out.items():
            fill = self._sources[name].fill
            if fill is not None:
                np.copyto(memory, fill.astype(memory.dtype), where=np.isnan(memory))

    def _read_kept(self, first: int, out: Mapping[str, Array]) -> None:
        """Overwrites `out` with examples that aren't skipped, from the `first` of these on."""
        count = len(next(iter(out.values())))
        start, stop = self._row(first), self._row(first + count - 1) + 1
        most, done = _rows_at_once(self._sources), 0
        for begin in range(start, stop, most):
            end = min(begin + most, stop)
            between = self._dropped[np.searchsorted(self._dropped, begin) : np.searchsorted(self._dropped, end)]
            kept = np.ones(end - begin, bool)
            kept[between - begin] = False
            found = {
                name: np.empty((end - begin, *memory.shape[1:]), self._sources[name].inner.dtype)
                for name, memory in out.items()
            }
            self._rows.read([(begin, end)], found)
            here = end - begin - len(between)
            for name, memory in out.items():
                memory[done : done + here] = found[name][kept]
            done += here

    def _row(self, kept: int) -> int:
        """The row of the inner source that is the example of this number among those that aren't skipped."""
        return kept + int(np.searchsorted(self._before, kept, side="right"))

    def close(self) -> None:
        self._rows.close()


def filled(
    where: str, arrays: Mapping[str, ArraySource], options: ReadOptions
) -> tuple[dict[str, ArraySource], tuple[float, ...]]:
    """Arrays of any split with `missing` taken care of, and what stands for a missing value of each feature.

    Parameters
    ----------
    where : str
        The file, for messages.
    arrays : mapping of str to ArraySource
        By the names of a data set's arrays, `x_train` and so on; they fit each other.
    options : ReadOptions
        What is done with missing values. Those of a trained model fill with what it has kept.

    Raises
    ------
    DataError
        Where targets or weights miss values that aren't dropped, a feature has none at all, or no example is left.
    """
    found = dict(arrays)
    fill: tuple[float, ...] = ()
    columns = options.columns
    missing = columns.missing if columns is not None else options.missing
    if missing == "drop":
        return _without_missing(where, arrays), ()
    if missing in ("mean", "zero"):
        features = prod(arrays["x_train"].shape[1:])
        if columns is not None:
            fill = columns.fill
        else:
            fill = (0.0,) * features if missing == "zero" else means_of(where, arrays["x_train"])
        for split in SPLITS:
            x = arrays.get(f"x_{split}")
            if x is not None and x.dtype.kind == "f" and len(fill) == prod(x.shape[1:]):
                values = np.array(fill).reshape(x.shape[1:])
                found[f"x_{split}"] = FilledSource(x.shape, x.dtype, x, values, np.empty(0, np.int64))
    for key, source in arrays.items():
        if source.absent:
            _refuse_absent(f"{where}: {key}", source)
    return found, tuple(fill)


def means_of(where: str, x: ArraySource) -> tuple[float, ...]:
    """The mean of each feature over the values that aren't missing, in float64.

    Raises
    ------
    DataError
        Where a feature has no value at all, or one that isn't finite.
    """
    features = prod(x.shape[1:])
    total, count = np.zeros(features), np.zeros(features, np.int64)
    for _, found in _blocks({"x": x}):
        block = found["x"].reshape(-1, features).astype(np.float64)
        there = ~np.isnan(block)
        total += np.add.reduce(block, 0, where=there)
        count += np.add.reduce(there, 0, dtype=np.int64)
    if not count.all():
        raise DataError(
            f"{where}: feature {int(count.argmin())} has no value in any example, so there is no mean; leave it out, "
            "or give --missing zero"
        )
    means = total / count
    if not np.isfinite(means).all():
        raise DataError(
            f"{where}: expected finite numbers, feature {int(np.isfinite(means).argmin())} holds infinity; correct it"
        )
    return tuple(means.tolist())


def _without_missing(where: str, arrays: Mapping[str, ArraySource]) -> dict[str, ArraySource]:
    """The arrays without the examples of which one of them lacks a value."""
    result = dict(arrays)
    for split in SPLITS:
        group = {key: source for key, source in arrays.items() if key.endswith(f"_{split}")}
        may_miss = {key: one for key, one in group.items() if one.dtype.kind == "f" or one.absent}
        if not may_miss:
            continue
        found = [start + np.flatnonzero(_lacking(arrays, block)) for start, block in _blocks(may_miss)]
        dropped = np.concatenate(found) if found else np.empty(0, np.int64)
        length = next(iter(group.values())).shape[0]
        if len(dropped) > _MOST_DROPPED:
            raise DataError(
                f"{where}: {len(dropped):,} examples lack a value, at most {_MOST_DROPPED:,} can be dropped; write a "
                "file without them"
            )
        if len(dropped) == length:
            raise DataError(f"{where}: every example lacks a value, so none is left; fill them in")
        for key, source in group.items() if len(dropped) else ():
            shape = (length - len(dropped), *source.shape[1:])
            result[key] = FilledSource(shape, source.dtype, source, None, dropped)
    return result


def _lacking(arrays: Mapping[str, ArraySource], block: Mapping[str, Array]) -> Array:
    """Which examples of a block lack a value."""
    result = np.zeros(len(next(iter(block.values()))), bool)
    for key, array in block.items():
        lacks = np.isnan(array) if array.dtype.kind == "f" else np.isin(array, arrays[key].absent)
        result |= lacks.reshape(len(array), -1).any(axis=1)
    return result


def _refuse_absent(where: str, source: ArraySource) -> None:
    """DataError where one of these whole numbers stands for a missing value."""
    for start, block in _blocks({where: source}):
        lacks = np.isin(block[where], source.absent).reshape(len(block[where]), -1).any(axis=1)
        if lacks.any():
            raise DataError(
                f"{where}: example {start + int(lacks.argmax())} is missing; fill it in, or give --missing drop"
            )


def _rows_at_once(arrays: Mapping[str, ArraySource]) -> int:
    """How many rows of these arrays are looked at together."""
    return max(1, min(_ROWS, AT_ONCE // max(1, 8 * sum(prod(one.shape[1:]) for one in arrays.values()))))


def _blocks(arrays: Mapping[str, ArraySource]) -> Iterator[tuple[int, dict[str, Array]]]:
    """All rows of the arrays, some at a time."""
    return blocks_of(arrays, _rows_at_once(arrays))
