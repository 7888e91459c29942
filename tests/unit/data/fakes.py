"""A source of values in memory that tests of reading can look into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from distsgd.core.device import Array
from distsgd.data.sources.base import ArraySource, Rows, Runs


@dataclass(frozen=True, eq=False)
class Source(ArraySource):
    """Values that are stored in chunks of so many rows; `before` is called with the runs of each read."""

    values: Array
    before: Callable[[Runs], object]
    rows: int

    @property
    def chunk(self) -> int:
        return self.rows

    def open_rows(self, arrays: Mapping[str, ArraySource]) -> Rows:
        return _Rows(self, *arrays)


class _Rows(Rows):
    def __init__(self, source: Source, name: str) -> None:
        self.source, self.name = source, name

    def read(self, runs: Runs, out: Mapping[str, Array]) -> None:
        self.source.before(runs)
        out[self.name][...] = np.concatenate([self.source.values[start:stop] for start, stop in runs])

    def close(self) -> None:
        pass


def source_of(values: Array, before: Callable[[Runs], object] = lambda runs: None, rows: int = 1) -> Source:
    return Source(values.shape, values.dtype, values, before, rows)
