"""NumPy's own BLAS, called for what NumPy has no function for: a matrix product that is added to what is there.

OpenBLAS as NumPy's wheels bring it, whose functions have names of their own. Elsewhere there is none.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from ctypes import c_double, c_float, c_int, c_int64, c_void_p
from functools import lru_cache
from typing import Any

import numpy as np

from distsgd.core.device import Array
from distsgd.core.kernels.vectors import address

_NAMES = {"f": ("scipy_cblas_sgemm64_", c_float), "d": ("scipy_cblas_dgemm64_", c_double)}
"""cblas_sgemm and cblas_dgemm with 64-bit integers, and what they take as numbers."""
_ROW_MAJOR, _AS_IT_IS, _TRANSPOSED = 101, 111, 112


LARGEST = 1 << 27
"""Multiply-adds up to which another way to compute a product is tried: larger products gain little."""


@lru_cache(maxsize=2)
def gemm(kind: str) -> Callable[..., None] | None:
    """BLAS's function for a dtype's character, or None."""
    from threadpoolctl import ThreadpoolController

    if kind in _NAMES:
        for library in ThreadpoolController().select(internal_api="openblas").lib_controllers:
            with suppress(OSError, AttributeError):
                found = getattr(ctypes.CDLL(library.filepath), _NAMES[kind][0])
                found.restype = None
                return found  # type: ignore[no-any-return]
    return None


class AddedProduct:
    """out := a b, or out += a b, for matrices of fixed shapes and memory orders.

    Parameters
    ----------
    out
        (m, n), contiguous.
    k
        Columns of a.
    a_step, b_step
        Elements from one row of a to the next, and from one row of b to the next; negative where it is the columns
        that lie so far apart.
    adds
        Whether the product is added to what is there.
    """

    def __init__(self, out: Array, k: int, a_step: int, b_step: int, adds: bool) -> None:
        function, (m, n) = gemm(out.dtype.char), out.shape
        assert function is not None, "the caller has looked"
        number = _NAMES[out.dtype.char][1]
        self._function, self._out = function, out  # kept, for its address
        self._a, self._b = c_void_p(), c_void_p()
        orders = (c_int(_AS_IT_IS if step > 0 else _TRANSPOSED) for step in (a_step, b_step))
        self._arguments: tuple[Any, ...] = (
            c_int(_ROW_MAJOR), *orders, c_int64(m), c_int64(n), c_int64(k), number(1.0), self._a, c_int64(abs(a_step)),
            self._b, c_int64(abs(b_step)), number(float(adds)), c_void_p(address(out)), c_int64(n),
        )  # fmt: skip

    def __call__(self, a: int, b: int) -> None:
        """Computes it of matrices that begin at these addresses."""
        self._a.value, self._b.value = a, b
        self._function(*self._arguments)


@lru_cache(maxsize=1024)
def adds_as_numpy(m: int, k: int, n: int, a_step: int, b_step: int, kind: str) -> bool:
    """Whether an `AddedProduct` has the bits of NumPy's product and of an addition after it.

    Found by trials: another order of additions changes some of the sums.
    """
    from distsgd.core.kernels.products import multiply

    if gemm(kind) is None or m * k * n > LARGEST:
        return False
    for trial in trials(m * k * n):
        a, b, before = (filled(*shape, True, kind, trial) for shape in ((m, k), (k, n), (m, n)))
        places = [_apart(a, a_step), _apart(b, b_step)]
        found, alone = before.copy(), multiply(_ordered(a, a_step), _ordered(b, b_step))
        for adds, expected in ((True, before + alone), (False, alone)):
            AddedProduct(found, k, a_step, b_step, adds)(*map(address, places))
            if not (found == expected).all():
                return False
    return True


def _ordered(matrix: Array, step: int) -> Array:
    return np.array(matrix, order="C" if step > 0 else "F")


def _apart(matrix: Array, step: int) -> Array:
    """Memory in which the rows of a matrix, or with a negative step its columns, begin so many elements apart."""
    lines = matrix if step > 0 else matrix.T
    memory = np.zeros((len(lines), abs(step)), matrix.dtype)
    memory[:, : lines.shape[1]] = lines
    return memory


def trials(multiply_adds: int) -> range:
    """Numbers of trials for products of so many multiply-adds: enough that the few sums that BLAS may add in another
    order show it, each of them in about half of all trials."""
    return range(48 if multiply_adds < 1 << 22 else 12)


def filled(rows: int, columns: int, in_order: bool, kind: str, trial: int) -> Array:
    """A matrix of numbers between -1 and 1 whose rows, or columns, lie in memory one after the other.

    Of both signs, for sums in which much cancels differ more often. Another trial begins elsewhere in the same numbers.
    """
    numbers = np.roll(_numbers(kind), trial * 7919 + rows * 31 + columns)
    return np.array(np.resize(numbers, (rows, columns)), order="C" if in_order else "F")


@lru_cache(maxsize=2)
def _numbers(kind: str) -> Array:
    """As many as a prime, so that no row begins as another one does."""
    words = np.random.Philox(key=np.array([65_521, 1], np.uint64)).random_raw(65_521)
    numbers: Array = (words.view(np.int64) * 2.0**-63).astype(kind)
    return numbers
