"""Missing values of arrays: replaced, or their examples skipped, as the rows are read."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import DataError
from distsgd.data.sources.base import SPLITS, ArraySource, ReadOptions, Rows, Runs, rows_in
from distsgd.data.sources.converted import SourceOfAnother, blocks_of, open_rows
from distsgd.data.sources.missing import KeptSource, Lacking, Sums

_BLOCK = 8 << 20
"""Bytes of arrays that are looked at together."""


@dataclass(frozen=True)
class FilledSource(SourceOfAnother):
    """Another source, with values in place of those that are missing.

    Parameters
    ----------
    inner : ArraySource
        Where the values come from.
    fill : array
        What stands for a missing value, in the shape of an example.
    """

    fill: Array = field(compare=False)

    @property
    def table(self) -> Hashable:
        """The inner source's: what is read together there is here."""
        found = self.inner.table
        return None if found is None else ("filled", found)

    def open_rows(self, arrays: Mapping[str, ArraySource]) -> Rows:
        """The inner sources' rows, filled."""
        return _FilledRows({name: one for name, one in arrays.items() if isinstance(one, FilledSource)})


class _FilledRows(Rows):
    """Rows of other sources, filled."""

    def __init__(self, sources: Mapping[str, FilledSource]) -> None:
        self._sources = sources
        self._rows = open_rows({name: one.inner for name, one in sources.items()})

    def read(self, runs: Runs, out: Mapping[str, Array]) -> None:
        self._rows.read(runs, out)
        for name, memory in out.items():
            np.copyto(memory, self._sources[name].fill.astype(memory.dtype), where=np.isnan(memory))

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
                found[f"x_{split}"] = FilledSource(x.shape, x.dtype, x, values)
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
    sums = Sums(features)
    for _, found in _blocks({"x": x}):
        sums.add(found["x"].reshape(-1, features))
    return tuple(sums.means(where))


def _without_missing(where: str, arrays: Mapping[str, ArraySource]) -> dict[str, ArraySource]:
    """The arrays without the examples of which one of them lacks a value."""
    result = dict(arrays)
    for split in SPLITS:
        group = {key: source for key, source in arrays.items() if key.endswith(f"_{split}")}
        may_miss = {key: one for key, one in group.items() if one.dtype.kind == "f" or one.absent}
        if not may_miss:
            continue
        lacking = Lacking(where)
        for start, block in _blocks(may_miss):
            for key, array in block.items():
                lacking.add(start, lacks(array, arrays[key]))
        dropped = lacking.dropped(next(iter(group.values())).shape[0])
        result |= {key: KeptSource.of(source, dropped) for key, source in group.items()}
    return result


def lacks(array: Array, source: ArraySource) -> Array:
    """Which examples of a block of a source lack a value."""
    missing = np.isnan(array) if array.dtype.kind == "f" else np.isin(array, source.absent)
    found: Array = np.logical_or.reduce(missing.reshape(len(array), -1), axis=1)
    return found


def _refuse_absent(where: str, source: ArraySource) -> None:
    """DataError where one of these whole numbers stands for a missing value."""
    for start, block in _blocks({where: source}):
        found = lacks(block[where], source)
        if found.any():
            raise DataError(
                f"{where}: example {start + int(found.argmax())} is missing; fill it in, or give --missing drop"
            )


def _blocks(arrays: Mapping[str, ArraySource]) -> Iterator[tuple[int, dict[str, Array]]]:
    """All rows of the arrays, some at a time."""
    return blocks_of(arrays, rows_in(_BLOCK, arrays))
