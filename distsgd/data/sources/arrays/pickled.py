"""mnist.pkl.gz of the deeplearning.net tutorials: a pickled ((x, y), (x, y), (x, y)) to train, validate and test.

A pickle has no headers to read first, so opening unpacks it once; each array is released when it has been read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import DataError
from distsgd.data.sources.arrays.unpickle import unpickle
from distsgd.data.sources.assemble import assemble
from distsgd.data.sources.base import SPLITS, ArraySource, DataSource, ReadOptions, check_out
from distsgd.data.sources.converted import converted
from distsgd.data.sources.streams import absolute, expect_end, most_unpacked, open_binary, stamps

SIZE_LIMIT = 1 << 30
"""Bytes of a pickle, all of which is in memory at once; the tutorials' largest, of 250,000 images, has 850 million."""
_RATIO = 100
"""Times its packed length that a pickle is at most. Packed images are a tenth as long; zeros are a thousandth, and 1 MB
of gzip would keep the reader busy with 1 GB."""
_MNIST = (28, 28)


class _Contents:
    """The file's arrays until each is taken; read again where one is taken twice, or in another process."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._arrays: dict[str, Array] = {}

    def __getstate__(self) -> str:
        return self.path

    def __setstate__(self, path: str) -> None:
        self.path, self._arrays = path, {}

    def load(self) -> dict[str, Array]:
        """All arrays, by name."""
        with open_binary(self.path) as (stream, limit):
            most = most_unpacked(os.path.getsize(self.path), _RATIO)
            pairs = unpickle(stream, min(limit, most, SIZE_LIMIT), self.path)
            expect_end(stream, self.path)
        self._arrays = _named(self.path, pairs)
        return self._arrays

    def take(self, key: str) -> Array:
        """One array, which is kept no longer."""
        if key not in self._arrays:
            self.load()
        return self._arrays.pop(key)


def _named(path: str, pairs: object) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    if isinstance(pairs, tuple) and len(pairs) == len(SPLITS):
        for split, pair in zip(SPLITS, pairs, strict=True):
            if isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(a, np.ndarray) for a in pair):
                arrays[f"x_{split}"], arrays[f"y_{split}"] = pair
    if len(arrays) != 2 * len(SPLITS):
        raise DataError(
            f"{path}: expected ((x, y), (x, y), (x, y)) to train, validate and test, got another structure; use .npz"
        )
    return arrays


@dataclass(frozen=True)
class PickledSource(ArraySource):
    """One array of the file."""

    key: str
    contents: _Contents = field(compare=False)

    def read_into(self, out: Array) -> None:
        """Overwrites `out`, and releases the unpickled array."""
        check_out(self, out)
        found = self.contents.take(self.key)
        if found.shape != self.shape or found.dtype != self.dtype:
            raise DataError(
                f"{self.contents.path}: expected the arrays that were opened, the file changed; start again"
            )
        out[...] = found


def open_source(where: str, options: ReadOptions) -> DataSource:
    """The data set in a pickle; it has no inputs without targets."""
    if not options.targets:
        raise DataError(f"{where}: expected a .npz file with x, or a .npy file; save it with numpy.savez")
    return open_pickle(where)


def open_pickle(path: str | os.PathLike[str]) -> DataSource:
    """The data set in a pickle, gzipped or not, of three pairs of arrays; DataError for anything else in it.

    mnist.pkl.gz holds its images as rows of 784 numbers; they are given their shape (28, 28) back, for models and
    augmentation that take images. What takes examples flat gets the same rows.
    """
    where = absolute(path)
    contents = _Contents(where)
    sources: dict[str, ArraySource] = {}
    for key, array in contents.load().items():
        source = PickledSource(array.shape, array.dtype, key, contents)
        flat = key.startswith("x") and array.shape[1:] == (prod(_MNIST),)
        sources[key] = converted(source, array.dtype, (len(array), *_MNIST)) if flat else source
    return replace(assemble(where, sources), files=stamps([where]))
