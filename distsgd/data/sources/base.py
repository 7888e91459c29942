"""A data set before it is in memory: names of arrays, and sources that can fill a caller's buffer.

Nothing here holds a big array, so that one copy per host, in shared memory, is enough.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from distsgd.core.device import Array, Shape

SPLITS = ("train", "validation", "test")
ARRAY_NAMES = tuple(f"{kind}_{split}" for split in SPLITS for kind in ("x", "y", "weights"))


@dataclass(frozen=True)
class ArraySource(ABC):
    """One array of a data set: shape and dtype, known from a header, and how to read it. Can be pickled."""

    shape: Shape
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes that the array takes in memory."""
        return prod(self.shape) * self.dtype.itemsize

    @abstractmethod
    def read_into(self, out: Array) -> None:
        """Overwrites `out`, a C-ordered array of this shape and dtype, without a second whole copy.

        Raises DataError where the file is missing, damaged, or has changed since it was opened.
        """

    def mapped(self) -> Array | None:
        """A read-only memory map of the array, or None where the file can't be mapped."""
        return None


@dataclass(frozen=True)
class DataSource:
    """A data set that is described, not loaded. Can be pickled.

    Parameters
    ----------
    name
        For messages.
    arrays
        By name: x_train, y_train, and where there are any weights_train, x_validation, … and x_test, …; examples are
        the first axis, labels are (n,) int64.
    scale
        Inputs are divided by it when a minibatch is gathered.
    num_classes
        The number of classes of integer labels, where it is known; `check_arrays` finds it otherwise.
    unused
        The names of the file's other arrays.
    """

    name: str
    arrays: Mapping[str, ArraySource]
    scale: float = 1.0
    num_classes: int | None = None
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class OpenOptions:
    """What a registered data set may depend on.

    Parameters
    ----------
    data_dir
        The folder of its files; None for the user's cache folder.
    seed
        The seed of generated points.
    download
        Whether missing files are downloaded.
    """

    data_dir: str | None = None
    seed: int = 0
    download: bool = True


def read_array(source: ArraySource) -> Array:
    """The array itself: the file's read-only map where there is one, else a fresh array."""
    found = source.mapped()
    if found is None:
        found = np.empty(source.shape, source.dtype)
        source.read_into(found)
    return found
