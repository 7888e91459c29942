"""What one pass over the blocks of an array finds: what standardizes it; and keeping that for the next start."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import DataError
from distsgd.core.fast_digest import digest_of
from distsgd.core.files import cache_folder, read_regular
from distsgd.data.features import Standardization, between
from distsgd.data.sources.base import Runs

TOGETHER = 1 << 20
"""Values that are added up at once: of a longer block, parts of it."""
_SAMPLE = 512
"""So many rows of a block are compared with those of an earlier start."""
_VERSION = 1
MOST_FILES, _MOST_BYTES = 200, 256 << 20
"""What is kept at most."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Means, sums of squared deviations and ends of each feature, float64.

    Parameters
    ----------
    count
        The number of examples.
    mean, m2
        The mean of each feature, and the sum of the squares of what is left when it is subtracted.
    low, high
        The least and the greatest.

    References
    ----------
    T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
    Stanford University, STAN-CS-79-773, 1979.
    """

    count: int
    mean: Array
    m2: Array
    low: Array
    high: Array

    @classmethod
    def of(cls, array: Array, runs: Runs, progressed: Callable[[], object] = lambda: None) -> Moments:
        """Of some rows of an array (n, …), run after run: bits depend on the runs and on the values alone."""
        count, mean, m2, low, high = 0, *np.zeros((2, 1)), np.array([np.inf]), np.array([-np.inf])
        for block in _blocks(array, runs):
            k = len(block)
            with np.errstate(over="ignore", invalid="ignore"):  # `standardization` refuses it
                m = np.add.reduce(block, axis=0) / k
                s = np.add.reduce(np.square(block - m), axis=0)
                difference, total = m - mean, count + k
                mean = mean + difference * (k / total)
                m2 = m2 + (s + np.square(difference) * (count * k / total))
            low, high = np.minimum(low, block.min(axis=0)), np.maximum(high, block.max(axis=0))
            count = total
            progressed()
        return cls(count, mean, m2, low, high)

    def standardization(self, where: str) -> Standardization:
        """Means and standard deviations (divided by n); of a feature that doesn't vary its value, and 1. Raises
        DataError where squares of a feature are too large or too small for float64."""
        with np.errstate(invalid="ignore"):
            spread = np.sqrt(self.m2 / self.count)
        varies = self.low < self.high
        bad = varies & ~((spread > 0) & np.isfinite(spread) & np.isfinite(self.mean))
        if bad.any():
            worst = int(np.argmax(bad))
            raise DataError(
                f"{where}: feature {worst} lies {between(self.low[worst], self.high[worst])}, and float64 can't hold "
                "the squares of its deviations; multiply it by a power of ten, or leave standardize out"
            )
        mean = np.where(varies, self.mean, self.low)
        return Standardization(tuple(mean.tolist()), tuple(np.where(varies, spread, 1.0).tolist()))


def _blocks(array: Array, runs: Runs) -> Iterator[Array]:
    """The rows (k, features) float64, in runs and no more at once than `TOGETHER` values."""
    rows = max(1, TOGETHER // max(1, array.size // max(1, len(array))))
    for start, stop in runs:
        for first in range(start, stop, rows):
            block = array[first : min(first + rows, stop)]
            yield block.reshape(len(block), -1).astype(np.float64)


def kept_moments(
    array: Array, runs: Runs, about: Sequence[object], progressed: Callable[[], object]
) -> tuple[Moments, str | None]:
    """(`Moments.of`, a line where they can't be kept): those that an earlier start has kept, where the files are as
    they were then, and rows at the beginning, in the middle and at the end, which are read again, too.

    about   what the array depends on: the files, and how they are read
    """
    look = np.frombuffer(b"".join(_digest(array, *runs[k]) for k in (0, len(runs) // 2, -1)), np.uint8)
    key = _key(about, runs)
    found = _load(key)
    fields = ("mean", "m2", "low", "high")
    if found is not None and {*fields, "count", "look"} == set(found) and np.array_equal(found["look"], look):
        return Moments(int(found["count"]), *(found[name] for name in fields)), None
    moments = Moments.of(array, runs, progressed)
    arrays = {name: getattr(moments, name) for name in fields}
    return moments, _keep(key, {**arrays, "count": np.array(moments.count), "look": look})


def _digest(array: Array, start: int, stop: int) -> bytes:
    return digest_of(array[start : min(stop, start + _SAMPLE)])


def _key(about: Sequence[object], runs: Runs) -> str:
    found = hashlib.sha256(repr((_VERSION, *about)).encode("utf-8", "surrogatepass"))
    found.update(np.asarray(runs, "<i8").tobytes())
    return found.hexdigest()


def _folder() -> Path:
    return cache_folder() / "scans"


def _load(key: str) -> dict[str, Any] | None:
    """What is kept under this key; None where nothing is, or it is damaged."""
    with suppress(OSError, ValueError, KeyError, EOFError, DataError):
        contents = read_regular(_folder() / f"{key}.npz", _MOST_BYTES)
        digest, payload = contents[:32], contents[32:]
        if hashlib.sha256(payload).digest() == digest:
            with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
    return None


def _keep(key: str, arrays: Mapping[str, Array]) -> str | None:
    """Keeps arrays under a key; a line where that fails."""
    payload = io.BytesIO()
    np.savez(payload, allow_pickle=False, **arrays)
    try:
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
        try:
            with open(descriptor, "wb") as file:
                file.write(hashlib.sha256(payload.getbuffer()).digest())
                file.write(payload.getbuffer())
            os.replace(temporary, folder / f"{key}.npz")
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        _remove_oldest(folder)
    except (OSError, DataError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        return f"note: means and spreads can't be kept for the next start ({reason}); they are computed again then"
    return None


def _remove_oldest(folder: Path) -> None:
    """Removes the oldest files beyond what may be kept."""
    found = []
    for path in folder.iterdir():
        with suppress(OSError):
            about = path.stat()
            found.append((about.st_mtime_ns, about.st_size, path))
    found.sort(reverse=True)
    total = 0
    for number, (_, size, path) in enumerate(found):
        total += size
        if number >= MOST_FILES or total > _MOST_BYTES:
            with suppress(OSError):
                path.unlink()
