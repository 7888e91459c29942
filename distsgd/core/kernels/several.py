"""Products of several microbatches of one length, each with the bits that it has alone.

The columns of an array (features, parts n) are those of `parts` microbatches of n examples, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from distsgd.core.device import Array
from distsgd.core.kernels.blas import AddedProduct, adds_as_numpy, address
from distsgd.core.kernels.products import multiply

LARGEST = 1 << 29
"""Multiply-adds up to which it is tried whether columns are alike: larger products gain nothing."""


def multiply_each(a: Array, b: Array, parts: int) -> Array:
    """a b for a (m, k) and b (k, parts n)."""
    n = b.shape[1] // parts
    if parts == 1 or _alike(*a.shape, n, parts, a.strides[1] == a.itemsize, b.strides[1] == b.itemsize, a.dtype):
        return multiply(a, b)
    product: Array = np.empty((a.shape[0], b.shape[1]), a.dtype)
    for start in range(0, b.shape[1], n):
        multiply(a, b[:, start : start + n], product[:, start : start + n])
    return product


@lru_cache(maxsize=1024)
def _alike(m: int, k: int, n: int, parts: int, a_in_order: bool, b_in_order: bool, dtype: np.dtype[Any]) -> bool:
    """Whether the product of all microbatches' columns has the bits of their own products, with this CPU's kernels.

    Tried with numbers that fill the arrays: kernels choose what they do by shapes and memory order, and another order
    of additions changes some of the sums.
    """
    if m * k * n * parts > LARGEST:
        return False
    words = np.random.Philox(key=np.array([m, n], np.uint64)).random_raw(k * (m + n * parts))
    numbers = (words * 2.0**-64).astype(dtype)
    a = np.array(numbers[: k * m].reshape(m, k), order="C" if a_in_order else "F")
    b = np.array(numbers[k * m :].reshape(k, n * parts), order="C" if b_in_order else "F")
    product, places = multiply(a, b), [slice(part * n, part * n + n) for part in range(parts)]
    own = (np.array(b[:, at], order="C" if b_in_order else "F") for at in places)
    return all((product[:, at] == multiply(a, one)).all() for at, one in zip(places, own, strict=True))


T = TypeVar("T")


class Addition(NamedTuple, Generic[T]):
    """Where a microbatch's gradient goes: arrays, or views of all arrays.

    into   where it is written, or added
    own    where it is computed first, if it is to be added; None where it is written
    after  (into, other) pairs that are added afterwards, in order
    """

    into: T
    own: T | None
    after: tuple[tuple[T, T], ...]


def weight_gradients(
    additions: Sequence[Addition[Array]], n: int, x_in_order: bool
) -> Callable[[Array, Array], None]:
    """A function of dy (m, parts n) and x (k, parts n) that computes dW := dy xᵀ of each microbatch where it goes.

    Parameters
    ----------
    additions
        For each microbatch, in order; arrays (m, k).
    n
        Examples of a microbatch.
    x_in_order
        Whether the rows of x lie in memory one after the other, and not its columns.
    """
    (m, k), dtype, length = additions[0].into.shape, additions[0].into.dtype, n * len(additions)
    b_step, b_next = (-length, n) if x_in_order else (k, n * k)
    if not adds_as_numpy(m, n, k, length, b_step, dtype):
        return lambda dy, x: _with_numpy(additions, n, dy, x)
    calls = [(AddedProduct(one.into, n, length, b_step, one.own is not None), one.after) for one in additions]
    a_bytes, b_bytes = n * dtype.itemsize, b_next * dtype.itemsize

    def compute(dy: Array, x: Array) -> None:
        a, b = address(dy), address(x if x_in_order else x.T)
        for call, after in calls:
            call(a, b)
            a += a_bytes
            b += b_bytes
            for into, other in after:
                np.add(into, other, into)

    return compute


def _with_numpy(additions: Sequence[Addition[Array]], n: int, dy: Array, x: Array) -> None:
    for part, (into, own, after) in enumerate(additions):
        at = slice(part * n, part * n + n)
        multiply(dy[:, at], x[:, at].T, into if own is None else own)
        for left, right in after if own is None else ((into, own), *after):
            np.add(left, right, left)
