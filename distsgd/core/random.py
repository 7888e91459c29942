"""Random numbers as a function of named integers, so that no rank keeps a stream of its own.

Everything comes from raw words of Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11),
whose stream NumPy promises to keep; NumPy's own distributions may change, so they are not used.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from distsgd.core.device import Array, Shape

__all__ = ["normal", "permutation", "random_words", "uniform"]


class Stream(NamedTuple):
    """Philox's key, and the counter after which its words begin.

    clock   (epoch, step) uint64 in the device's memory, in place of the counter's second and third word; else None
    """

    key: tuple[int, int]
    counter: tuple[int, int, int, int]
    clock: Array | None = None


_MASK = (1 << 64) - 1


@lru_cache(maxsize=4096)
def _purpose_word(purpose: str) -> int:
    return int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")


def stream(seed: int, purpose: str, *indices: int) -> Stream:
    """The stream of (seed, purpose, indices), with up to three indices.

    The seed and a hash of the purpose are Philox's key; the indices are the upper words of its counter, so any two
    different (seed, purpose, indices) read disjoint parts of its sequence.
    """
    if len(indices) > 3:
        raise ValueError(f"at most 3 indices fit Philox's counter, got {len(indices)}")
    counter = [0, 0, 0, 0]
    counter[1 : 1 + len(indices)] = [index & _MASK for index in indices]
    return Stream((seed & _MASK, _purpose_word(purpose)), (counter[0], counter[1], counter[2], counter[3]))


def words_of(place: Stream, count: int) -> Array:
    """The first `count` uint64 words of a stream."""
    key, counter = (np.array(words, dtype=np.uint64) for words in place[:2])
    words: Array = np.random.Philox(counter=counter, key=key).random_raw(count)
    return words


def random_words(count: int, seed: int, purpose: str, *indices: int) -> Array:
    """Random words: a pure function of all arguments.

    Parameters
    ----------
    count
        How many.
    seed
        The run's seed.
    purpose
        A name for what they are used for; other names give unrelated words.
    *indices
        Up to three numbers, such as epoch and step.

    Returns
    -------
    array
        uint64 (count,).
    """
    return words_of(stream(seed, purpose, *indices), count)


def uniform(shape: Shape, seed: int, purpose: str, *indices: int) -> Array:
    """Uniform numbers on [0, 1), with 53 random bits each.

    Parameters
    ----------
    shape
        The array's shape.
    seed, purpose
        See `random_words`.
    *indices
        See `random_words`.

    Returns
    -------
    array
        float64 (shape).

    Examples
    --------
    >>> uniform((2, 3), 0, "a first try").shape
    (2, 3)
    """
    words = random_words(int(np.prod(shape)), seed, purpose, *indices)
    return ((words >> np.uint64(11)) * 2.0**-53).reshape(shape)


def normal(shape: Shape, seed: int, purpose: str, *indices: int) -> Array:
    """Standard normal numbers, by Box and Muller's transform.

    Parameters
    ----------
    shape
        The array's shape.
    seed, purpose
        See `random_words`.
    *indices
        See `random_words`.

    Returns
    -------
    array
        float64 (shape).

    References
    ----------
    .. [1] Box & Muller, "A note on the generation of random normal deviates", Annals of Mathematical Statistics 29,
       1958.
    """
    count = int(np.prod(shape))
    half = (count + 1) // 2
    u = uniform((2, half), seed, purpose, *indices)
    radius = np.sqrt(-2.0 * np.log1p(-u[0]))  # 1 - u is in (0, 1], so the logarithm is finite
    angle = 2.0 * np.pi * u[1]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count].reshape(shape)


def permutation(count: int, seed: int, purpose: str, *indices: int) -> Array:
    """A permutation of range(count): the order of as many random words by their upper bits.

    The lower bits of each word are replaced by its index, so that no two are equal: any sorting algorithm gives the
    same order, NumPy's fastest too.

    Parameters
    ----------
    count
        The length.
    seed, purpose
        See `random_words`.
    *indices
        See `random_words`.

    Returns
    -------
    array
        int64 (count,).
    """
    words = random_words(count, seed, purpose, *indices)
    mask = np.uint64((1 << max(count - 1, 0).bit_length()) - 1)
    words &= ~mask
    words |= np.arange(count, dtype=np.uint64)
    words.sort()
    words &= mask
    return words.astype(np.int64)


def index_dtype(count: int) -> type[np.signedinteger[Any]]:
    """The smallest type, int32 or int64, that numbers `count` examples."""
    return np.int32 if count < 2**31 else np.int64


def keep_mask(shape: Shape, keep: float, words: Array) -> Array:
    """A boolean mask that is true with probability `keep`, from 32 bits an element: `words` has ceil(n / 2) of them."""
    bits = words.astype("<u8", copy=False).view("<u4")[: int(np.prod(shape))]
    return (bits < np.uint64(round(keep * 2.0**32))).reshape(shape)
