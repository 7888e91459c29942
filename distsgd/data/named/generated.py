"""Points that are computed, not read: a function of the seed alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from distsgd.core.device import Array
from distsgd.core.random import normal, permutation
from distsgd.data.sources.assemble import assemble
from distsgd.data.sources.base import DataSource, OpenOptions
from distsgd.data.sources.converted import ValuesSource


def open_xor(options: OpenOptions) -> DataSource:
    """Exclusive or of two inputs, with a third that is always 1: four points, targets (4, 1) for the squared error."""
    x = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]], dtype=np.float32)
    y = np.array([[0], [1], [1], [0]], dtype=np.float32)
    return assemble("xor", {"x": ValuesSource.of(x), "y": ValuesSource.of(y)})


def open_moons(options: OpenOptions) -> DataSource:
    """300 points of two interleaving half circles, noise 0.2, two classes."""
    x, y = make_moons(seed=options.seed)
    return replace(assemble("moons", {"x": ValuesSource.of(x), "y": ValuesSource.of(y)}), num_classes=2)


def make_moons(count: int = 300, noise: float = 0.2, seed: int = 0) -> tuple[Array, Array]:
    """Points of two interleaving half circles, in random order, for a first try of a classifier.

    Label 0: (cos t, sin t), label 1: (1 - cos t, 1/2 - sin t), t evenly from 0 to π, plus normal noise. The half
    circles are those of scikit-learn's make_moons.

    Parameters
    ----------
    count : int, default 300
        The number of points.
    noise : float, default 0.2
        The standard deviation of the noise.
    seed : int, default 0
        Of noise and order: the points are a function of it alone, the same bits on every CPU.

    Returns
    -------
    x : array
        Points (count, 2), float32.
    y : array
        Labels (count,), int64.

    Examples
    --------
    >>> x, y = make_moons(100)
    >>> x.shape, y.sum()
    ((100, 2), np.int64(50))
    """
    outer = count // 2
    t0, t1 = np.linspace(0.0, np.pi, outer), np.linspace(0.0, np.pi, count - outer)
    x = np.concatenate([np.stack([np.cos(t0), np.sin(t0)], 1), np.stack([1.0 - np.cos(t1), 0.5 - np.sin(t1)], 1)])
    x += noise * normal((count, 2), seed, "moons-noise")
    order = permutation(count, seed, "moons-order")
    # CPUs may differ in the last bit of cos and log; multiples of 2**-20 are the same on all, and exact in float32.
    rounded = np.rint(x * 2.0**20) * 2.0**-20
    labels = (np.arange(count) >= outer).astype(np.int64)
    return rounded[order].astype(np.float32), labels[order]
