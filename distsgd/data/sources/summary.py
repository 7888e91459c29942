"""What an array or a column holds, found block by block: how many values, their range, and how often there is each."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from math import nan

import numpy as np

from distsgd.core.device import Array

COUNTED = 1000
"""Different values that are counted."""


@dataclass
class Summary:
    """What an array or a column holds.

    Parameters
    ----------
    name, kind : str
        Its name in the file, and its type in words.
    counts : dict of str to int, optional
        How often there is each text, or each whole number of those with one an example; None for what isn't counted,
        and where there are more than 1,000.
    rows, missing : int
        How many examples it has, and how many of them lack a value.
    low, high : float
        The least and the greatest of the numbers; NaN where there are none.
    """

    name: str
    kind: str
    counts: dict[str, int] | None = None
    rows: int = 0
    missing: int = 0
    low: float = nan
    high: float = nan

    def add(self, values: Array, absent: Collection[int] = ()) -> Array:
        """Adds the numbers of some examples, of which whole ones may stand for a missing value; returns those that are
        there, or NaN."""
        self.rows += len(values)
        there = values
        if values.dtype.kind == "f" or absent:
            lacks = np.isnan(values) if values.dtype.kind == "f" else np.isin(values, list(absent))
            self.missing += int(np.count_nonzero(lacks.reshape(len(values), -1).any(axis=1)))
            there = values if values.dtype.kind == "f" else values[~lacks]
        if there.size:
            self.low = float(np.fmin(self.low, np.fmin.reduce(there, axis=None)))
            self.high = float(np.fmax(self.high, np.fmax.reduce(there, axis=None)))
        return there

    def count(self, values: Iterable[tuple[object, int]]) -> None:
        """Adds how often there is each of some values."""
        if self.counts is None:
            return
        counts = self.counts
        for value, often in values:
            text = str(value)
            counts[text] = counts.get(text, 0) + often
            if len(counts) > COUNTED:
                self.counts = None
                return
