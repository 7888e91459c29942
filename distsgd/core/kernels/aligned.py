"""Arrays that begin at a cache line, for kernels of BLAS that load vectors from where the operands lie.

NumPy's arrays begin at multiples of 16 bytes, so that three of four begin inside of a line, and each load of an AVX-512
register reads two. Rows whose distance is a power of two compete for the same few lines of the cache. Neither changes
what is computed: an array's place in memory isn't part of its bits.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from distsgd.core.device import Array, Shape

LINE = 64
"""Bytes of a cache line, and of the widest register."""


def empty(shape: Shape, dtype: np.dtype[Any]) -> Array:
    """As np.empty, but for the place: the first element begins a line."""
    size = prod(shape) * dtype.itemsize
    memory = np.empty(size + LINE, np.uint8)
    first = -memory.ctypes.data % LINE
    return np.ndarray(shape, dtype, memory, first)


def empty_rows(shape: Shape, dtype: np.dtype[Any]) -> Array:
    """An uninitialized array whose rows, along the last axis, all begin a line and lie an odd number of lines apart."""
    lines = -(-shape[-1] * dtype.itemsize // LINE) | 1
    return empty((*shape[:-1], lines * LINE // dtype.itemsize), dtype)[..., : shape[-1]]
