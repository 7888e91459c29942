"""Matrix products of a network's narrow layers, cut into the sizes that OpenBLAS's kernels for small matrices take.

OpenBLAS packs its operands into blocks first, which costs a product with few rows or columns more than the arithmetic.
Its AVX-512 kernels for small matrices don't, but are only used up to a certain size: a product just above it takes two
to four times as long as its parts in turn. The cut depends on shapes and memory order alone, so a
microbatch's product is the same on every rank.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise

import numpy as np

from distsgd.core.device import Array
from distsgd.core.runtime import blas_description

_LARGEST = 1_000_000
"""m n k up to which OpenBLAS uses its kernels for small matrices."""
_LARGEST_TRANSPOSED = 1_200
"""m n up to which it does so where both operands lie along k in memory."""
_FEW = 16
"""Rows or columns up to which a product is bound by packing."""
_PARTS = 5
"""Parts up to which cutting pays where both operands lie along k."""
_FAMILY = ("SkylakeX", "Cooperlake", "SapphireRapids")


def multiply(a: Array, b: Array, out: Array | None = None) -> Array:
    """a b for a (m, k) and b (k, n), in `out` (m, n) where it is given; `np.matmul` in less time.

    b, or both, may be stacks of matrices, (count, …), and `out` then is one, too: NumPy loops over them.
    """
    m, k, n = *a.shape[-2:], b.shape[-1]
    parts = count_parts(m, k, n, _in_order(a) and not _in_order(b)) if a.dtype == b.dtype == np.float32 else 1
    if parts == 1:
        return np.matmul(a, b) if out is None else np.matmul(a, b, out)
    product: Array = np.empty((m, n), a.dtype) if out is None else out
    length = max(m, n)
    edges = [length * index // parts for index in range(parts + 1)]
    for start, stop in pairwise(edges):
        if n >= m:
            np.matmul(a, b[..., start:stop], product[..., start:stop])
        else:
            np.matmul(a[..., start:stop, :], b, product[..., start:stop, :])
    return product


def as_planned(m: int, k: int, n: int, transposed: bool, kind: str) -> Callable[[Array, Array], Array]:
    """What `multiply` does to operands of these shapes, in the memory order of `count_parts`, without looking again."""
    return multiply if kind == "f" and count_parts(m, k, n, transposed) > 1 else np.matmul


def _in_order(matrix: Array) -> bool:
    """Whether the numbers of a row lie in memory one after the other."""
    return matrix.flags.c_contiguous or matrix.strides[-1] == matrix.itemsize


@lru_cache(maxsize=1024)
def count_parts(m: int, k: int, n: int, transposed: bool) -> int:
    """How many parts the product is cut into, 1 where it is left whole."""
    if not has_small_kernels():
        return 1
    parts = max(1, -(-m * n * k // _LARGEST))
    if transposed and k >= 64:
        parts = max(parts, -(-m * n // _LARGEST_TRANSPOSED))
        return parts if parts <= _PARTS else 1
    return parts if min(m, n) <= _FEW else 1


@lru_cache(maxsize=1)
def has_small_kernels() -> bool:
    return any(name in blas_description() for name in _FAMILY)
