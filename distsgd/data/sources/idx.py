"""IDX, the format of MNIST's files (LeCun, Cortes, Burges): a big-endian header, then bytes; as it is or gzipped."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from math import prod

import numpy as np

from distsgd.core.device import Array, Shape
from distsgd.core.errors import DataError
from distsgd.data.sources.base import ArraySource
from distsgd.data.sources.streams import (
    Stream,
    absolute,
    check_out,
    check_shape,
    expect_end,
    fill,
    open_binary,
    read_exactly,
    reading,
)

_UNSIGNED_BYTE = 8


def read_header(stream: Stream, dimensions: int, where: str) -> Shape:
    """The shape in an IDX header: 0, 0, the element type, the number of dimensions, and a uint32 length of each."""
    magic = read_exactly(stream, 4, where)
    expected = bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    if magic != expected:
        raise DataError(
            f"{where}: expected an IDX file of unsigned bytes in {dimensions} dimensions (it begins with "
            f"{expected.hex()}), got {magic.hex()}; check that it is the right file"
        )
    return struct.unpack(f">{dimensions}I", read_exactly(stream, 4 * dimensions, where))


@dataclass(frozen=True)
class IdxSource(ArraySource):
    """An IDX file of unsigned bytes."""

    path: str
    packed: bool

    @classmethod
    def open(cls, path: str | os.PathLike[str], dimensions: int) -> IdxSource:
        """Reads the header and compares it with the file's size; DataError where they don't agree."""
        where = absolute(path)
        with reading(where):
            stream, limit = open_binary(where)
            with stream:
                shape = read_header(stream, dimensions, where)
            size = os.path.getsize(where)
        expected = 4 + 4 * dimensions + prod(shape)
        packed = limit > size
        if expected > limit or (not packed and expected != size):
            raise DataError(
                f"{where}: expected {expected} bytes for shape {shape}, the file has {size}"
                f"{' packed' if packed else ''}; make or download it again"
            )
        check_shape(shape, where)
        return cls(shape, np.dtype(np.uint8), where, packed)

    def read_into(self, out: Array) -> None:
        """Overwrites `out`, unpacking a block at a time, and never more than the header promises and one byte."""
        check_out(self, out)
        with reading(self.path):
            stream, _ = open_binary(self.path)
            with stream:
                shape = read_header(stream, len(self.shape), self.path)
                if shape != self.shape:
                    raise DataError(f"{self.path}: expected shape {self.shape}, the file now has {shape}; start again")
                fill(stream, out, self.path)
                expect_end(stream, self.path)

    def mapped(self) -> Array | None:
        """A read-only map of a file that isn't packed."""
        if self.packed:
            return None
        with reading(self.path):
            return np.memmap(self.path, np.uint8, "r", 4 + 4 * len(self.shape), self.shape)
