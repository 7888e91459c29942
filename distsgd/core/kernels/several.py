"""Products of several microbatches of one length, each with the bits that it has alone.

The columns of an array (features, parts n) are those of `parts` microbatches of n examples, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np

from distsgd.core.device import Array
from distsgd.core.kernels.blas import LARGEST, AddedProduct, adds_as_numpy, filled, trials
from distsgd.core.kernels.products import as_planned, multiply
from distsgd.core.kernels.vectors import address, ones, row_sums

_SMALL = 1 << 12
"""Elements of dW up to which it is computed for all microbatches by one call of NumPy, and then added."""

T = TypeVar("T")
Product: TypeAlias = Callable[[Array, Array], Array]
"""(a, b) -> a b."""


class Addition(NamedTuple, Generic[T]):
    """Where a microbatch's gradient goes: an array, or views of all arrays.

    into   where it is written, or added
    own    where it is computed first, if it is to be added; None where it is written
    after  (into, other) pairs that are added afterwards, in order
    """

    into: T
    own: T | None
    after: tuple[tuple[T, T], ...]


def split(columns: Array, parts: int) -> Array:
    """The microbatches' own columns: a view (parts, features, n)."""
    return columns.reshape(columns.shape[0], parts, -1).swapaxes(0, 1)


def product_of_each(a: Array, b: Array, parts: int) -> Product:
    """The fastest function for products like a b, with a (m, k) and b (k, parts n); m, k and n are at least 2.

    It is chosen by trials: BLAS chooses what it does by shapes and memory orders, and another order of additions
    changes some of the sums. Often it is another one in the last rows of the last columns alone, so there are many.
    """
    orders = (a.strides[1] == a.itemsize, b.strides[1] == b.itemsize)
    return _product(*a.shape, b.shape[1] // parts, parts, *orders, a.dtype.char)


@lru_cache(maxsize=1024)
def _product(m: int, k: int, n: int, parts: int, a_in_order: bool, b_in_order: bool, kind: str) -> Product:
    def at_once(a: Array, b: Array) -> Array:
        product: Array = np.empty((m, n * parts), kind)
        multiply(a, split(b, parts), split(product, parts))
        return product

    if parts == 1:
        return as_planned(m, k, n, a_in_order and not b_in_order, kind)

    def is_alone(way: Product) -> bool:
        for trial in trials(m * k * n * parts):
            a, b = filled(m, k, a_in_order, kind, trial), filled(k, n * parts, b_in_order, kind, trial)
            if not (way(a, b) == _one_by_one(a, _ordered_copies(b, n, b_in_order), n)).all():
                return False
        return True

    if m * k * n * parts <= LARGEST:
        for way in (multiply, at_once):
            if is_alone(way):
                return way
    return lambda a, b: _one_by_one(a, [b[:, at : at + n] for at in range(0, n * parts, n)], n)


def _one_by_one(a: Array, own: Sequence[Array], n: int) -> Array:
    product: Array = np.empty((len(a), n * len(own)), a.dtype)
    for part, b in enumerate(own):
        multiply(a, b, product[:, part * n : part * n + n])
    return product


def _ordered_copies(b: Array, n: int, in_order: bool) -> list[Array]:
    return [np.array(b[:, at : at + n], order="C" if in_order else "F") for at in range(0, b.shape[1], n)]


def weight_gradients(additions: Sequence[Addition[Array]], n: int, x_in_order: bool) -> Callable[[Array, Array], None]:
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
    (m, k), dtype, parts = additions[0].into.shape, additions[0].into.dtype, len(additions)
    if parts == 1:
        return _of_one(additions[0], lambda dy, x, dw: multiply(dy, x.T, dw))
    if m * k <= _SMALL and _are_sums_of_a_stack(m, k, n, parts, x_in_order, dtype.char):
        return _small_gradients(additions, parts)
    length, b_step, b_next = n * parts, k, n * k
    if x_in_order:
        b_step, b_next = -length, n
    if not adds_as_numpy(m, n, k, length, b_step, dtype.char):
        return lambda dy, x: _with_numpy(additions, n, dy, x)
    calls = [(AddedProduct(one.into, n, length, b_step, one.own is not None), one.after) for one in additions]
    a_bytes, b_bytes = n * dtype.itemsize, b_next * dtype.itemsize

    def compute(dy: Array, x: Array) -> None:
        lines = x if x_in_order else x.T
        if not (dy.dtype == x.dtype == dtype and dy.flags.c_contiguous and lines.flags.c_contiguous):
            _with_numpy(additions, n, dy, x)  # BLAS would read something else
            return
        a, b = address(dy), address(lines)
        for call, after in calls:
            call(a, b)
            a += a_bytes
            b += b_bytes
            for into, other in after:
                np.add(into, other, into)

    return compute


def bias_gradients(additions: Sequence[Addition[Array]], n: int) -> Callable[[Array], None]:
    """A function of dy (m, parts n) that computes Σₙ dy of each microbatch where it goes, an array (m,)."""
    parts, (m,), dtype = len(additions), additions[0].into.shape, additions[0].into.dtype
    if parts == 1:
        return _of_one(additions[0], row_sums)
    found, of_ones = np.empty((parts, m), dtype), ones(n, dtype)
    place, as_it_lies = placed(found, additions), _are_row_sums_of_a_stack(m, n, parts, dtype.char)

    def compute(dy: Array) -> None:
        own = split(dy, parts)
        np.matmul(own if as_it_lies else np.ascontiguousarray(own), of_ones, found)
        place()

    return compute


@lru_cache(maxsize=1024)
def _are_row_sums_of_a_stack(m: int, n: int, parts: int, kind: str) -> bool:
    """Whether rows that don't lie one after the other have the sums of those that do: not so for short ones."""
    of_ones = ones(n, np.dtype(kind))
    for trial in trials(m * n * parts):
        dy = filled(m, n * parts, True, kind, trial)
        found, own = np.matmul(split(dy, parts), of_ones), _ordered_copies(dy, n, True)
        if not all((sums == np.matmul(rows, of_ones)).all() for sums, rows in zip(found, own, strict=True)):
            return False
    return True


def _small_gradients(additions: Sequence[Addition[Array]], parts: int) -> Callable[[Array, Array], None]:
    found = np.empty((parts, *additions[0].into.shape), additions[0].into.dtype)
    place = placed(found, additions)

    def compute(dy: Array, x: Array) -> None:
        multiply(split(dy, parts), split(x, parts).swapaxes(1, 2), found)
        place()

    return compute


@lru_cache(maxsize=1024)
def _are_sums_of_a_stack(m: int, k: int, n: int, parts: int, x_in_order: bool, kind: str) -> bool:
    """Whether NumPy's product of stacks has the bits of the microbatches' own products."""
    found = np.empty((parts, m, k), kind)
    for trial in trials(m * k * n * parts):
        dy, x = filled(m, n * parts, True, kind, trial), filled(k, n * parts, x_in_order, kind, trial)
        multiply(split(dy, parts), split(x, parts).swapaxes(1, 2), found)
        own = zip(_ordered_copies(dy, n, True), _ordered_copies(x, n, x_in_order), strict=True)
        if not all((one == multiply(a, b.T)).all() for one, (a, b) in zip(found, own, strict=True)):
            return False
    return True


def placed(found: Array, additions: Sequence[Addition[Array]]) -> Callable[[], None]:
    """A function that puts what is found of each microbatch, an array (parts, …), where it goes."""
    sums: list[tuple[Array, Array, Array]] = []
    waiting: dict[int, tuple[Array, Array]] = {}  # by the address where it goes: (what is to be written there, where)

    def taken(place: Array) -> Array:
        """What is in this place, or is to be written there."""
        return waiting.pop(place.ctypes.data, (place,))[0]

    for value, (into, own, after) in zip(found, additions, strict=True):
        if own is None:
            waiting[into.ctypes.data] = value, into
        else:
            sums.append((taken(into), value, into))
        for left, right in after:
            sums.append((taken(left), taken(right), left))
    copies = tuple(waiting.values())

    def place() -> None:
        for left, right, into in sums:
            np.add(left, right, into)
        for value, into in copies:
            into[...] = value

    return place


def _of_one(addition: Addition[Array], compute: Callable[..., object]) -> Callable[..., None]:
    """A function that computes the only microbatch's gradient where it goes; `compute` takes that place last."""
    into, own, after = addition
    place, sums = (into, after) if own is None else (own, ((into, own), *after))

    def gradient(*operands: Array) -> None:
        compute(*operands, place)
        for left, right in sums:
            np.add(left, right, left)

    return gradient


def _with_numpy(additions: Sequence[Addition[Array]], n: int, dy: Array, x: Array) -> None:
    for part, (into, own, after) in enumerate(additions):
        at = slice(part * n, part * n + n)
        multiply(dy[:, at], x[:, at].T, into if own is None else own)
        for left, right in after if own is None else ((into, own), *after):
            np.add(left, right, left)
