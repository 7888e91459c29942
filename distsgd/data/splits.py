"""Which examples are split off for validation: pure functions of a seed, the same on every rank."""

from __future__ import annotations

import numpy as np

from distsgd.core.device import Array
from distsgd.core.random import permutation
from distsgd.data.sampling import index_dtype


def split_off(num_examples: int, count: int, seed: int, labels: Array | None = None) -> tuple[Array, Array]:
    """(rest, `count` random examples), both as sorted indices: a fixed function of the seed.

    With labels (num_examples,) each class has its share of the `count`, rounded: down first, and what is left goes to
    the largest remainders, of equal ones to the lower class. A class keeps an example among the rest as long as another
    can give one.
    """
    order = permutation(num_examples, seed, "validation split")
    order = order.astype(index_dtype(num_examples))
    if labels is not None:
        order = _by_shares(order, count, labels)
    return np.sort(order[count:]), np.sort(order[:count])


def _by_shares(order: Array, count: int, labels: Array) -> Array:
    """The order with each class's share of `count` in front."""
    sizes = np.bincount(labels)
    shares, remainders = np.divmod(count * sizes, len(order))
    most = np.argsort(-remainders, kind="stable")
    for limit in (sizes - 1, sizes):
        while (left := count - int(shares.sum())) and len(able := most[shares[most] < limit[most]]):
            shares[able[:left]] += 1
    narrow = labels.astype(np.min_scalar_type(len(sizes)))  # which sorts in one pass where it has 16 bits or fewer
    by_class = order[np.argsort(narrow[order], kind="stable")]
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # within the class
    return by_class[np.argsort(place >= np.repeat(shares, sizes), kind="stable")]
