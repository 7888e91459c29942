"""A data set before it is in memory: names of arrays, and sources that can fill a caller's buffer.

Nothing here holds a big array, so that one copy per host, in shared memory, is enough.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, TypeAlias

import numpy as np

from distsgd.core.device import Array, Shape

SPLITS = ("train", "validation", "test")
Missing: TypeAlias = Literal["refuse", "mean", "zero", "drop"]
"""What is done with examples that lack a value."""
ARRAY_NAMES = tuple(f"{kind}_{split}" for split in SPLITS for kind in ("x", "y", "weights"))


@dataclass(frozen=True)
class ArraySource(ABC):
    """One array of a data set: shape and dtype, known from a header, and how to read it. Can be pickled.

    Parameters
    ----------
    shape : tuple of int
        The array's shape, examples first.
    dtype : dtype
        Its type.
    """

    shape: Shape
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes that the array takes in memory."""
        return prod(self.shape) * self.dtype.itemsize

    @abstractmethod
    def read_into(self, out: Array) -> None:
        """Reads the array, without a second whole copy.

        Parameters
        ----------
        out : array
            A C-ordered array of this shape and dtype, to be overwritten.

        Raises
        ------
        DataError
            Where the file is missing, damaged, or has changed since it was opened.
        """

    def mapped(self) -> Array | None:
        """A memory map of the array.

        Returns
        -------
        array or None
            Read-only; None where the file can't be mapped, as by default.
        """
        return None


@dataclass(frozen=True)
class DataSource:
    """A data set that is described, not loaded. Can be pickled.

    Parameters
    ----------
    name : str
        For messages.
    arrays : mapping of str to ArraySource
        By name: x_train, y_train, and where there are any weights_train, x_validation, … and x_test, …; examples are
        the first axis, labels are (n,) int64.
    scale : float, default 1.0
        Inputs are divided by it when a minibatch is gathered.
    num_classes : int, optional
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
    data_dir : str, optional
        The folder of its files; None for the user's cache folder.
    seed : int, default 0
        The seed of generated points.
    download : bool, default True
        Whether missing files are downloaded.
    """

    data_dir: str | None = None
    seed: int = 0
    download: bool = True


def read_array(source: ArraySource) -> Array:
    """The array that a source describes.

    Parameters
    ----------
    source : ArraySource
        One of the arrays of a `DataSource`.

    Returns
    -------
    array
        The file's read-only map where there is one, else a fresh array.

    Raises
    ------
    DataError
        Where the file is missing, damaged, or has changed since it was opened.
    """
    found = source.mapped()
    if found is None:
        found = np.empty(source.shape, source.dtype)
        source.read_into(found)
    return found
