"""NumPy's own BLAS, called for what NumPy has no function for: a matrix product that is added to what is there.

OpenBLAS as NumPy's wheels bring it, whose functions have names of their own. Elsewhere there is none.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from ctypes import c_char, c_double, c_float, c_int, c_int64, c_void_p
from functools import lru_cache
from typing import Any

import numpy as np

from distsgd.core.device import Array

_NAMES = {"f": ("scipy_cblas_sgemm64_", c_float), "d": ("scipy_cblas_dgemm64_", c_double)}
"""cblas_sgemm and cblas_dgemm with 64-bit integers, and what they take as numbers."""
_ROW_MAJOR, _AS_IT_IS, _TRANSPOSED = 101, 111, 112


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


def address(array: Array) -> int:
    """Where a contiguous array begins. `array.ctypes` takes three times as long."""
    return ctypes.addressof(c_char.from_buffer(array))  # type: ignore[arg-type]


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

    Tried with numbers that fill the arrays: another order of additions changes some of the sums.
    """
    from distsgd.core.kernels.products import multiply

    if gemm(kind) is None:
        return False
    a, b = (_numbers(shape, step, kind) for shape, step in (((m, k), a_step), ((k, n), b_step)))
    before = _numbers((m, n), n, kind).copy()
    found = before.copy()
    places = [address(np.asarray(one.base)) for one in (a, b)]
    AddedProduct(found, k, a_step, b_step, adds=True)(*places)
    alone = multiply(*(np.array(one, order="C" if step > 0 else "F") for one, step in ((a, a_step), (b, b_step))))
    if not (found == before + alone).all():
        return False
    AddedProduct(found, k, a_step, b_step, adds=False)(*places)
    return bool((found == alone).all())


def _numbers(shape: tuple[int, int], step: int, kind: str) -> Array:
    """A matrix whose rows, or columns, begin so many elements apart; its base begins where it does."""
    rows, columns = shape if step > 0 else shape[::-1]
    words = np.random.Philox(key=np.array([columns, step & 0xFFFF], np.uint64)).random_raw(rows * abs(step))
    whole = (words * 2.0**-64).astype(kind)
    matrix = whole.reshape(rows, -1)[:, :columns]
    return matrix if step > 0 else matrix.T
