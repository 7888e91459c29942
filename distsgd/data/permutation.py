"""A permutation of any length of which any entry can be computed alone, without an array of that length."""

from __future__ import annotations

import numpy as np

from distsgd.core.device import Array
from distsgd.core.random import random_words

_BLOCK = 8192
"""Entries that are computed together: they and what is computed on the way stay in the cache."""
_MULTIPLIERS = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # splitmix64's


class KeyedPermutation:
    """A permutation of range(count), a pure function of all arguments.

    A Feistel network of 8 rounds permutes the numbers of as many bits as count - 1 has; a number that isn't below
    `count` goes through it again, until one is. It is for large counts: the numbers of few bits have few permutations.

    Parameters
    ----------
    count
        The length, from 1 to 2**62.
    seed, purpose
        See `random_words`.
    *indices
        See `random_words`.

    References
    ----------
    .. [1] Black & Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002: cycle walking.
    .. [2] Luby & Rackoff, "How to construct pseudorandom permutations from pseudorandom functions", SIAM Journal on
       Computing 17, 1988.

    Examples
    --------
    >>> sorted(KeyedPermutation(7, 0, "an example")(np.arange(7)).tolist())
    [0, 1, 2, 3, 4, 5, 6]
    """

    def __init__(self, count: int, seed: int, purpose: str, *indices: int) -> None:
        bits = max(2, (count - 1).bit_length())
        self._count = np.uint64(count)
        self._left = bits // 2
        self._right = bits - self._left
        self._keys = random_words(8, seed, purpose, *indices)

    def __call__(self, positions: Array) -> Array:
        """The entries at these positions (n,), integers from 0 to below the length, as int64 (n,)."""
        found = np.empty(len(positions), np.uint64)
        for start in range(0, len(positions), _BLOCK):
            block = found[start : start + _BLOCK]
            block[...] = self._once(positions[start : start + _BLOCK].astype(np.uint64))
            outside = np.flatnonzero(block >= self._count)
            while len(outside):
                block[outside] = self._once(block[outside])
                outside = outside[block[outside] >= self._count]
        return found.view(np.int64)

    def _once(self, numbers: Array) -> Array:
        """The network's permutation of all numbers of so many bits."""
        left = numbers >> np.uint64(self._right)
        right = numbers & np.uint64((1 << self._right) - 1)
        for first, second in self._keys.reshape(4, 2):
            left ^= _mixed(right, first, self._left)
            right ^= _mixed(left, second, self._right)
        left <<= np.uint64(self._right)
        left |= right
        return left


def _mixed(numbers: Array, key: np.uint64, bits: int) -> Array:
    """So many bits that depend on all bits of the numbers and of the key."""
    mixed = numbers ^ key
    mixed *= np.uint64(_MULTIPLIERS[0])
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(_MULTIPLIERS[1])
    mixed >>= np.uint64(64 - bits)
    return mixed
