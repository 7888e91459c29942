"""How often each example comes in an epoch, where some come more often than others: pure functions of integers."""

from __future__ import annotations

import numpy as np

from distsgd.core.device import Array
from distsgd.core.random import permutation, uniform


def weighted_counts(weights: Array, seed: int, epoch: int) -> Array:
    """Of n examples in an epoch of n, example i comes n wᵢ / Σw times, rounded down or up.

    Parameters
    ----------
    weights
        Not negative (n,), at least one above 0.
    seed, epoch
        Which of them are rounded up depends on these.

    Returns
    -------
    array
        int32 (n,), which sums to n.

    References
    ----------
    .. [1] Madow, "On the theory of systematic sampling, II", Annals of Mathematical Statistics 20, 1949.
    """
    total = np.cumsum(weights, dtype=np.float64)
    start = uniform((1,), seed, "weighted draws", epoch)[0]
    ends = np.minimum(np.floor(total / total[-1] * len(weights) + start), len(weights)).astype(np.int64)
    ends[-1] = len(weights)
    counts: Array = np.diff(ends, prepend=0).astype(np.int32)
    return counts


class BalancedCounts:
    """Of n examples in an epoch of n, each class that there is comes equally often, and so does each of its examples:
    both to within 1.

    Parameters
    ----------
    labels
        The class of each example (n,).
    seed
        Which classes and examples come once more depends on it, and on the epoch.
    """

    def __init__(self, labels: Array, seed: int) -> None:
        self._seed = seed
        self._members = np.argsort(labels, kind="stable").astype(np.int64)
        present, self._sizes = np.unique(labels, return_counts=True)
        self._classes = present.tolist()

    def __call__(self, epoch: int) -> Array:
        """How often each example comes: int32 (n,), which sums to n."""
        count = len(self._members)
        each, left = divmod(count, len(self._classes))
        quotas = np.full(len(self._classes), each)
        quotas[permutation(len(quotas), self._seed, "balanced classes", epoch)[:left]] += 1
        found, start = np.zeros(count, np.int32), 0
        for label, size, quota in zip(self._classes, self._sizes.tolist(), quotas.tolist(), strict=True):
            members = self._members[start : start + size]
            found[members] = quota // size
            more = permutation(size, self._seed, "balanced draws", epoch, int(label))[: quota % size]
            found[members[more]] += 1
            start += size
        return found
