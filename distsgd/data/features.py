"""What is known of each feature over the training set: its mean and spread, and between which values it lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from distsgd.core.device import Array, constants

if TYPE_CHECKING:
    from distsgd.data.splits import BlockIndices

_BLOCK = 1 << 17
"""Values that are read at once where all rows are looked at."""
_LOOKED_AT, _VALUES = 4096, 1 << 18
"""So many evenly spread rows are looked at, and fewer of long ones: about so many values."""
_MOST_FEATURES = 4096
"""Of more features a checkpoint keeps no range of each."""
_FAR = 10.0
"""How many of their ranges from that of training inputs may lie, before a line says so."""
_ENOUGH = 16
"""From so many rows on, their range says what one row's doesn't: an image may be black, a row of counts all 0."""
_RARE = 0.05
"""The part of the rows that may be far outside: single values are."""
_LARGE, _SMALL, _LOST = 50.0, 0.01, 1e-4
"""Inputs beyond the first are reported, all inputs below the second, and some below the third."""
_BYTES = 32
"""Bytes below this are flags or counts rather than pixels."""
_MANY = 1000
"""From so many inputs on, as of images, the number of one says nothing."""
_STANDARDIZE = "--standardize gives each input the mean 0 and the spread 1"


@dataclass(frozen=True)
class Standardization:
    """Subtracts the mean of each feature, and divides by its spread: (v - mean) / spread, in float64.

    Parameters
    ----------
    mean, spread
        For each feature, in the order of a flattened example; of one that doesn't vary its value, and 1.
    """

    mean: tuple[float, ...]
    spread: tuple[float, ...]

    @classmethod
    def of(cls, array: Array, rows: Array | BlockIndices | None = None) -> Standardization:
        """The mean and the standard deviation (divided by n) of an array's rows (n, …), or of some of them.

        In float64, in the order of the rows, in blocks whose length depends on the number of features alone.
        """
        count = len(array) if rows is None else len(rows)
        together = max(1, _BLOCK // max(1, array.size // len(array)))

        def blocks() -> Iterator[Array]:
            for start in range(0, count, together):
                part = slice(start, start + together)
                block = array[part] if rows is None else array[rows[part]]
                yield block.reshape(len(block), -1).astype(np.float64)

        def mean_of(of: Callable[[Array], Array]) -> Array:
            return np.asarray(np.add.reduce([np.add.reduce(of(block), axis=0) for block in blocks()])) / count

        ends = [(block.min(axis=0), block.max(axis=0)) for block in blocks()]
        low, high = np.min([least for least, _ in ends], axis=0), np.max([greatest for _, greatest in ends], axis=0)
        power = _exponent(np.maximum(np.abs(low), np.abs(high)))
        mean = np.ldexp(mean_of(lambda block: np.ldexp(block, -power)), power)
        near = (high - low < 1e-6 * np.abs(mean)) & (low < high)
        if near.any():  # the mean is rounded to steps that count beside the spread
            first = mean
            mean = first + np.where(near, mean_of(lambda block: block - first), 0.0)
        mean = np.where(low == high, low, mean)
        power = _exponent(np.maximum(high - mean, mean - low))
        spread = np.ldexp(np.sqrt(mean_of(lambda block: np.square(np.ldexp(block - mean, -power)))), power)
        varies = (low < high) & (spread > 0)
        return cls(tuple(mean.tolist()), tuple(np.where(varies, spread, 1.0).tolist()))

    def apply(self, rows: Array, dtype: np.dtype) -> Array:
        """Standardized rows (n, …), of dtype."""
        flat: Array = rows.reshape(len(rows), int(np.prod(rows.shape[1:]))).astype(np.float64)
        flat -= constants(flat, self.mean)
        flat /= constants(flat, self.spread)
        return flat.reshape(rows.shape).astype(dtype)

    def undo(self, columns: Array) -> Array:
        """Values (k, n), or (n,) of a single feature, in the units of before: on the host, float64."""
        values = columns.astype(np.float64)
        spread, mean = (constants(values, one) for one in (self.spread, self.mean))
        found: Array = values * spread + mean if columns.ndim == 1 else values * spread[:, None] + mean[:, None]
        return found


def _exponent(largest: Array) -> Array:
    """Powers of two to divide by where squares would overflow or underflow; 0, which changes no bit, elsewhere."""
    power = np.frexp(largest)[1]
    return np.where(np.abs(power) > 300, power, 0)


@dataclass(frozen=True)
class Ranges:
    """Between which values the features of the training inputs lie, by the rows that were looked at.

    Parameters
    ----------
    low, high
        The ends of each feature. One that nearly always has one value, such as a pixel at the border, has the ends of
        all; so has every feature of a few rows.
    size
        The mean of |v|.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    size: tuple[float, ...]

    @classmethod
    def of(cls, x: Array) -> Ranges | None:
        """Of inputs (n, …); None where there are too many features."""
        rows = _rows(x).astype(np.float64)
        if rows.shape[1] > _MOST_FEATURES:
            return None
        low, high = rows.min(axis=0), rows.max(axis=0)
        common = np.max([(rows == value).mean(axis=0) for value in (low, high, 0.0)], axis=0)
        vague = (common > 0.75) | (len(rows) < _ENOUGH)
        ends = np.where(vague, low.min(), low), np.where(vague, high.max(), high)
        return cls(*(tuple(each.tolist()) for each in (*ends, np.abs(rows).mean(axis=0))))


def range_of(x: Array) -> tuple[float, float]:
    """The least and the greatest of up to 4,096 evenly spread rows."""
    chosen = x[_spread(x, _LOOKED_AT)]
    return float(chosen.min()), float(chosen.max())


def other_units(x: Array, before: tuple[float, float], known: Ranges | None) -> str | None:
    """A sentence about inputs that lie elsewhere than those of training, None where there is nothing to say.

    x       inputs (n, …)
    before  the least and the greatest of the training inputs
    known   the ranges of each feature, where they are known
    """
    rows = _rows(x).astype(np.float64)
    now = (float(rows.min()), float(rows.max()))
    if known is not None and len(known.low) == rows.shape[1]:
        low, high = np.array(known.low), np.array(known.high)
        far = _far(rows, low, high)
        found = np.flatnonzero((far > 1).mean(axis=0) > _RARE)
        alike = _largest(now) <= _FAR * _largest(before) and _largest(before) <= _FAR * _largest(now)
        if len(found) and alike and len(low) < _MANY:
            worst = found[np.argmax(far[:, found].max(axis=0))]
            here = between(rows[:, worst].min(), rows[:, worst].max())
            there = between(low[worst], high[worst])
            return f"input {worst} lies {here}, in training it lay {there}; give it in the same units"
        doubtful = len(found) > 0 or (len(rows) >= _ENOUGH and _elsewhere(rows, low, high, np.array(known.size)))
    else:
        doubtful = len(rows) >= _ENOUGH and 0 < _FAR * _largest(now) < _largest(before)
    everywhere = _far(rows, *(np.array([end]) for end in before))
    if doubtful or (everywhere > 1).any(axis=1).mean() > _RARE:
        there = between(*before)
        return f"the inputs lie {between(*now)}, those of training lay {there}; give them in the same units"
    return None


def _largest(ends: tuple[float, float]) -> float:
    return max(abs(end) for end in ends)


def _far(rows: Array, low: Array, high: Array) -> Array:
    """How far values lie outside the ranges, as multiples of what may be."""
    width = np.where(low < high, high - low, np.maximum(np.abs(low), np.abs(high)))
    outside: Array = np.maximum(np.maximum(low - rows, rows - high), 0)
    return outside / np.where(width > 0, _FAR * width, np.inf)


def _elsewhere(rows: Array, low: Array, high: Array, size: Array) -> bool:
    """Whether enough rows are all together elsewhere: much smaller, or with another sign. Rows of zeros are not."""
    if not rows.any():
        return False
    least, greatest, known = rows.min(axis=0), rows.max(axis=0), size > 0
    ratios = np.abs(rows).mean(axis=0)[known] / size[known]
    if len(ratios) and 0 < ratios.mean() < 1 / _FAR:
        return True
    most = np.abs(rows).max(axis=0)
    if np.any((most > 0) & (most < np.maximum(low, -high) / _FAR)):  # all training inputs are far from 0
        return True
    if ((most > 0) & (most < size / (2 * _FAR))).mean() > _RARE:
        return True
    moved = ((greatest <= low) & (least < low)) | ((least >= high) & (greatest > high))
    return bool(moved.any() and (moved | (least == greatest)).all())


def unusual(x: Array, scale: float, dtype: np.dtype[Any], *, standardize: bool, scaled: bool = False) -> str | None:
    """A sentence about training inputs that a network can hardly learn from as they are.

    x            inputs (n, …), which are divided by `scale`
    dtype        the model's
    standardize  whether they are standardized instead
    scaled       whether the user has set the scale
    """
    rows = _rows(x)
    low, high = rows.min(axis=0), rows.max(axis=0)
    largest = np.maximum(np.abs(low.astype(np.float64)), np.abs(high.astype(np.float64)))
    if (rounded := _rounded(rows, low, dtype, standardize=standardize)) is not None:
        worst, why, remedy = rounded
        return f"warning: {_which(low, high, worst)}, and {why}; {remedy or _STANDARDIZE}"
    top = float(largest.max()) / scale
    if standardize or top == 0:
        return None
    if top > _LARGE:
        some = len(low) >= _MANY
        is_not = "are not scaled" if some else "is not scaled"
        return f"warning: {_which(low, high, int(np.argmax(largest)))}, and {is_not}; {_STANDARDIZE}"
    if x.dtype == np.uint8 and scale == 255.0 and not scaled and high.max() < _BYTES:
        return (
            f"warning: the inputs are bytes of at most {high.max()}, and are divided by 255; --scale 1 leaves them as "
            f"they are, {_STANDARDIZE}"
        )
    lost = (low < high) & (largest / scale < _LOST)
    if top < _SMALL or 10 * np.count_nonzero(lost) >= len(low):
        worst = int(np.argmax(np.where(lost, largest, -1.0) if lost.any() else largest))
        return f"warning: {_which(low / scale, high / scale, worst)}, which is little; {_STANDARDIZE}"
    return None


def unusual_targets(y: Array, dtype: np.dtype[Any]) -> str | None:
    """A sentence about values to regress to of which the dtype leaves little."""
    rows = _rows(y)
    low = rows.min(axis=0)
    rounded = _rounded(rows, low, dtype, standardize=False)
    if rounded is None:
        return None
    worst, why, remedy = rounded
    ends = between(low[worst], rows[:, worst].max())
    more = _STANDARDIZE.replace("standardize gives each input", "standardize-targets gives each target")
    return f"warning: targets lie {ends}, and {why}; {remedy.replace(_STANDARDIZE, more) or more}"


def _rounded(rows: Array, low: Array, dtype: np.dtype[Any], *, standardize: bool) -> tuple[int, str, str] | None:
    """(a feature whose values the dtype rounds away, how, what to do); None where there is none.

    What is standardized is rounded to float64 alone, which holds all but large integers.
    """
    if rows.dtype.kind in "iu" and rows.dtype.itemsize <= 2:
        return None
    whole = rows.dtype.kind in "iu" and rows.dtype.itemsize == 8
    types = [np.dtype(np.float64)] if whole else []
    types += [] if standardize else [dtype]
    from_low = rows.astype(np.uint64) - low.astype(np.uint64) if whole else rows.astype(np.float64) - low
    largest = np.abs(rows.astype(np.float64)).max(axis=0)
    for kind in types:
        steps = largest * np.finfo(kind).eps
        near = np.flatnonzero(steps > 1e-4 * from_low.max(axis=0).astype(np.float64))
        spread = from_low[:, near].astype(np.float64).std(axis=0)
        found = near[(spread > 0) & (steps[near] > 0.01 * spread)]
        if len(found):
            worst = int(found[np.argmax(largest[found])])
            remedy = "" if dtype == np.float64 else f"--dtype float64, or {_STANDARDIZE}"
            if whole and kind == np.float64:
                remedy = "subtract the least value first"
            return worst, f"{kind} rounds to steps of {steps[worst]:.1g}", remedy
    return None


def _which(low: Array, high: Array, one: int) -> str:
    """A clause that names a feature and its ends."""
    if len(low) >= _MANY:
        return f"some inputs lie {between(low[one], high[one])}"
    return (
        f"input {one} {'lies ' + between(low[one], high[one]) if low[one] < high[one] else f'is always {low[one]:g}'}"
    )


def between(low: Any, high: Any) -> str:
    """Two numbers, with as many digits as they differ by."""
    for digits in (6, 9, 12, 17):
        ends = [
            str(end) if isinstance(end, np.integer) and digits == 17 else f"{end:.{digits}g}" for end in (low, high)
        ]
        if low == high or ends[0] != ends[1]:
            break
    return f"between {ends[0]} and {ends[1]}"


def looked_at(x: Array) -> Array:
    """The numbers of all rows that are looked at here where not all are, in rising order."""
    return np.union1d(_spread(x, _LOOKED_AT), _spread(x, _most(x)))


def _spread(x: Array, most: int) -> Array:
    return np.linspace(0, len(x) - 1, min(len(x), most)).astype(np.int64)


def _most(x: Array) -> int:
    return min(_LOOKED_AT, max(_ENOUGH, _VALUES // max(1, x.size // len(x))))


def _rows(x: Array) -> Array:
    """Evenly spread rows, flattened."""
    chosen = x[_spread(x, _most(x))]
    rows = chosen.reshape(len(chosen), -1)
    return rows.astype(np.int8) if rows.dtype.kind == "b" else rows
