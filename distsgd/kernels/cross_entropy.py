"""Softmax and cross-entropy with NumPy; arrays are (classes, n)."""

from __future__ import annotations

import numpy as np

from distsgd.device import Array


def softmax_cross_entropy(outputs: Array, labels: Array, want_grad: bool) -> tuple[Array, Array | None]:
    """(-log p[label] of each example (n,), the gradient p - t (classes, n) where it is wanted), with p := softmax."""
    z = outputs - np.maximum.reduce(outputs, axis=0)  # the largest becomes 0, so that exp can't overflow
    p = np.exp(z)
    total = np.add.reduce(p, axis=0)
    columns = np.arange(len(labels))
    losses = np.log(total)
    losses -= z[labels, columns]
    if not want_grad:
        return losses, None
    p /= total
    p[labels, columns] -= 1.0
    return losses, p
