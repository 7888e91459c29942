"""IDX, the format of MNIST's files (LeCun, Cortes, Burges): a big-endian header, then bytes; as it is or gzipped."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np

from distsgd.core.errors import DataError
from distsgd.data.sources.file_source import FileSource, Header
from distsgd.data.sources.streams import Stream, absolute, open_binary, read_exactly

_UNSIGNED_BYTE = 8


@contextmanager
def _opened(path: str, dimensions: int) -> Iterator[tuple[Stream, Header]]:
    """The header is 0, 0, the element type, the number of dimensions, and a uint32 length of each."""
    with open_binary(path) as (stream, limit):
        magic, expected = read_exactly(stream, 4, path), bytes([0, 0, _UNSIGNED_BYTE, dimensions])
        if magic != expected:
            raise DataError(
                f"{path}: expected an IDX file of unsigned bytes in {dimensions} dimensions (it begins with "
                f"{expected.hex()}), got {magic.hex()}; check that it is the right file"
            )
        shape = struct.unpack(f">{dimensions}I", read_exactly(stream, 4 * dimensions, path))
        packed = limit > os.path.getsize(path)
        header = Header(shape, np.dtype(np.uint8), 4 + 4 * dimensions, packed=packed)
        header.check(limit, path)
        yield stream, header


@dataclass(frozen=True)
class IdxSource(FileSource):
    """An IDX file of unsigned bytes."""

    @classmethod
    def open(cls, path: str | os.PathLike[str], dimensions: int) -> IdxSource:
        """Reads the header and compares it with the file's size; DataError where they don't agree."""
        where = absolute(path)
        with _opened(where, dimensions) as (_, header):
            return cls(header.shape, header.dtype, where, header)

    def opened(self) -> AbstractContextManager[tuple[Stream, Header]]:
        return _opened(self.path, len(self.shape))
