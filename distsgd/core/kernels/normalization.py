"""Batch normalization with NumPy, a few features at a time, so that all passes but the first find them in the cache.

rows and y are (features, count), statistics and parameters (features,).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from distsgd.core.device import Array
from distsgd.core.kernels.vectors import empty, mask_into, ones, zeros

_PART_BYTES = 1 << 18


def normalize(
    rows: Array, scale: Array, shift: Array, epsilon: float, rectify: bool = False
) -> tuple[Array, Array, Array, Array]:
    """(y, mean, m2, inverse): y := scale (rows - mean) inverse + shift with inverse := 1 / √(m2 / count + epsilon).

    m2 is the sum of squared differences from the mean. Where `rectify` is true, y is the positive part of that.
    """
    count, y = rows.shape[1], empty(rows.shape, rows.dtype)
    mean, m2, inverse = (np.empty(len(rows), rows.dtype) for _ in range(3))
    for part in _parts(rows):
        np.matmul(rows[part], ones(count, rows.dtype), out=mean[part])
        mean[part] /= count
        centered = np.subtract(rows[part], mean[part, None], out=y[part])
        np.vecdot(centered, centered, out=m2[part])
        inverse[part] = 1.0 / np.sqrt(m2[part] / count + epsilon)
        centered *= (scale[part] * inverse[part])[:, None]
        centered += shift[part, None]
        if rectify:
            np.maximum(centered, zeros(count, rows.dtype), out=centered)
    return y, mean, m2, inverse


def normalize_backward(
    rows: Array,
    mean: Array,
    inverse: Array,
    scale: Array,
    dy: Array,
    dscale: Array,
    dshift: Array,
    rectified: Array | None = None,
) -> Array:
    """dx, with dscale := Σ dy x̂ and dshift := Σ dy overwritten, x̂ being (rows - mean) inverse.

    dx := (dy - (dshift + x̂ dscale) / count) scale inverse. Where `normalize` has rectified y, `rectified` is y, and dy
    counts where y > 0.
    """
    count, dx, kept = rows.shape[1], empty(dy.shape, dy.dtype), None
    for part in _parts(rows):
        passed = dy[part]
        if rectified is not None:
            kept = empty(passed.shape, dy.dtype) if kept is None or len(kept) != len(passed) else kept
            mask_into(kept.reshape(-1), passed.reshape(-1), rectified[part].reshape(-1))
            passed = kept
        centered = np.subtract(rows[part], mean[part, None], out=dx[part])
        np.vecdot(passed, centered, out=dscale[part])
        dscale[part] *= inverse[part]
        np.matmul(passed, ones(count, dy.dtype), out=dshift[part])
        centered *= (dscale[part] * inverse[part] / -count)[:, None]
        centered += passed
        centered -= (dshift[part] / count)[:, None]
        centered *= (scale[part] * inverse[part])[:, None]
    return dx


def transform(rows: Array, mean: Array, factor: Array, shift: Array) -> Array:
    """(rows - mean) factor + shift."""
    y = np.empty_like(rows)
    for part in _parts(rows):
        np.subtract(rows[part], mean[part, None], out=y[part])
        y[part] *= factor[part, None]
        y[part] += shift[part, None]
    return y


def transform_backward(
    rows: Array, mean: Array, inverse: Array, scale: Array, dy: Array, dscale: Array, dshift: Array
) -> Array:
    """As normalize_backward, where mean and inverse aren't functions of rows: dx := dy scale inverse."""
    np.vecdot(dy, rows - mean[:, None], out=dscale)
    dscale *= inverse
    np.matmul(dy, ones(dy.shape[1], dy.dtype), out=dshift)
    dx: Array = dy * (scale * inverse)[:, None]
    return dx


def _parts(rows: Array) -> Iterator[slice]:
    together = max(1, _PART_BYTES // max(rows[:1].nbytes, 1))
    for start in range(0, len(rows), together):
        yield slice(start, start + together)
