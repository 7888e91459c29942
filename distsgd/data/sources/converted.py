"""Sources without a file of their own: values that are small enough to keep, and another source, converted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distsgd.core.device import Array, Shape
from distsgd.data.sources.base import ArraySource
from distsgd.data.sources.streams import BLOCK, check_out

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

    def read_into(self, out: Array) -> None:
        """Overwrites `out` with the values."""
        check_out(self, out)
        out[...] = self.values


@dataclass(frozen=True)
class ConvertedSource(ArraySource):
    """Another source in a dtype that is at least as wide, and in a shape of the same size."""

    inner: ArraySource

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
