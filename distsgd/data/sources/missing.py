"""What arrays and tables do alike about missing values: examples that lack one are skipped, or means stand for them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import DataError
from distsgd.data.sources.base import AT_ONCE, ArraySource, Rows, Runs, cut_at, rows_in
from distsgd.data.sources.converted import SourceOfAnother, open_rows

_MOST_DROPPED = 1 << 24


class Lacking:
    """The examples that lack a value, as they are found; one may be found several times."""

    def __init__(self, where: str) -> None:
        self._where, self._found, self._count = where, [np.empty(0, np.int64)], 0

    def add(self, first: int, lacks: Array) -> None:
        """Adds a block of examples, with the number of the first and whether each of them lacks a value."""
        rows = first + np.flatnonzero(lacks)
        if len(rows):
            self._found.append(rows)
            self._count += len(rows)
        if self._count > _MOST_DROPPED:
            self._found = [np.unique(np.concatenate(self._found))]
            self._count = len(self._found[0])
        if self._count > _MOST_DROPPED:
            raise DataError(
                f"{self._where}: expected at most {_MOST_DROPPED:,} examples that lack a value, there are more; "
                "choose with --x the columns that lack fewer, or write a file without them"
            )

    def dropped(self, examples: int) -> Array:
        """Those of so many, sorted. Raises DataError where it is each of them."""
        found = np.unique(np.concatenate(self._found))
        if examples and len(found) == examples:
            raise DataError(
                f"{self._where}: every example lacks a value, so none is left; choose with --x the columns that "
                "lack fewer, or fill them in"
            )
        return found


class Sums:
    """Sums of the values of each feature that are there, in float64: of one example after the other, so that they
    don't depend on blocks."""

    def __init__(self, features: int) -> None:
        self._count = np.zeros(features, np.int64)
        # At least two columns, for the sum of a single one would be of pairs.
        self._total = np.zeros(max(2, features))

    def add(self, values: Array) -> None:
        """Adds the values (n, features) of the next examples."""
        here = ~np.isnan(values)
        rows = np.zeros((len(values) + 1, len(self._total)))
        rows[0] = self._total
        rows[1:, : len(self._count)] = np.where(here, values, 0)
        with np.errstate(over="ignore", invalid="ignore"):
            self._total = np.add.reduce(rows, axis=0)
        self._count += here.sum(axis=0)

    def means(self, where: str, column: str = "") -> list[float]:
        """The mean of each feature. Raises DataError, which names the column or the feature, where there is none."""
        if not self._count.all():
            name = f"column {column}" if column else f"feature {int(self._count.argmin())}"
            raise DataError(
                f"{where}: {name} has no value in any example, so there is no mean; leave it out, or give "
                "--missing zero"
            )
        means: Array = self._total[: len(self._count)] / self._count
        if not np.isfinite(means).all():
            name = f"column {column}" if column else f"feature {int(np.isfinite(means).argmin())}"
            raise DataError(f"{where}: {name}: the mean of its values isn't finite; correct them")
        found: list[float] = means.tolist()
        return found


@dataclass(frozen=True)
class KeptSource(SourceOfAnother):
    """Another source without some of its examples.

    Parameters
    ----------
    inner : ArraySource
        Where the values come from.
    dropped : array
        The examples of the inner source that are skipped, sorted.
    """

    dropped: Array = field(compare=False)

    @classmethod
    def of(cls, inner: ArraySource, dropped: Array) -> ArraySource:
        """The source without these examples; itself where there are none."""
        if not len(dropped):
            return inner
        return cls((inner.shape[0] - len(dropped), *inner.shape[1:]), inner.dtype, inner, dropped)

    @property
    def table(self) -> Hashable:
        """The inner source's: what is read together there is here."""
        found = self.inner.table
        return None if found is None else ("kept", found)

    def open_rows(self, arrays: Mapping[str, ArraySource]) -> Rows:
        """The inner sources' rows that are kept."""
        return _KeptRows({name: one for name, one in arrays.items() if isinstance(one, KeptSource)})

    def inner_rows(self, rows: Array) -> Array:
        """The numbers that examples of these numbers have in the inner source."""
        return rows + np.searchsorted(self.dropped - np.arange(len(self.dropped)), rows, "right")


class _KeptRows(Rows):
    """Rows of other sources, of which all skip the same examples."""

    def __init__(self, sources: Mapping[str, KeptSource]) -> None:
        self._source = next(iter(sources.values()))
        inner = {name: one.inner for name, one in sources.items()}
        together = rows_in(AT_ONCE, inner)
        if self._source.in_blocks:  # to read a part of a chunk costs as much as to read it
            together += -together % self._source.chunk
        self._starts = range(0, self._source.inner.shape[0] + together, together)
        self._rows = open_rows(inner)

    def read(self, runs: Runs, out: Mapping[str, Array]) -> None:
        ends = self._source.inner_rows(np.array([(start, stop - 1) for start, stop in runs if start < stop], np.int64))
        dropped, done = self._source.dropped, 0
        for part, inside in cut_at(self._starts, [(first, last + 1) for first, last in ends.reshape(-1, 2).tolist()]):
            begin = self._starts[part]
            covering = [(begin + start, begin + stop) for start, stop in inside]
            rows = np.concatenate([np.arange(*run) for run in covering])
            kept = dropped[np.searchsorted(dropped[:-1], rows)] != rows
            found = {name: np.empty((len(rows), *one.shape[1:]), one.dtype) for name, one in out.items()}
            self._rows.read(covering, found)
            here = int(np.count_nonzero(kept))
            for name, memory in out.items():
                np.compress(kept, found[name], axis=0, out=memory[done : done + here])
            done += here

    def close(self) -> None:
        self._rows.close()
