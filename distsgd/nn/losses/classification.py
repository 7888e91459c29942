"""The loss of classes."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import numpy as np

from distsgd.core.device import Array, Shape, array_module, constants
from distsgd.core.errors import ConfigurationError
from distsgd.core.kernels import kernels_for
from distsgd.core.ranges import number_in
from distsgd.nn.losses.base import Loss
from distsgd.nn.task import Task


@dataclass(frozen=True)
class SoftmaxCrossEntropy(Loss):
    """loss := -Σ_c w_c t_c log p_c with p := softmax(outputs); gradient p Σ_c w_c t_c - w t.

    t is 1 for the label's class and 0 for the others, or the targets themselves where they are probabilities (k, n).

    Parameters
    ----------
    label_smoothing : float, default 0.0
        ε, which replaces t by (1 - ε) t + ε/k.
    class_weights : tuple of float, optional
        The w_c, 1 by default. As in PyTorch but for the mean, which divides by the number of examples: PyTorch divides
        by the sum of the labels' weights.

    References
    ----------
    .. [1] Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR 2016 (label smoothing).
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        number_in("[0, 1)", "label smoothing", self.label_smoothing)
        check_weights(self.class_weights)

    def output_size(self, target_shape: Shape, num_classes: int | None) -> int:
        if len(target_shape) == 1 and target_shape[0] > 1:
            size = target_shape[0]
        elif target_shape == () and num_classes is not None:
            size = num_classes
        else:
            raise ConfigurationError(
                "softmax-cross-entropy: expected integer labels (y.astype(int)) or rows of probabilities, got floats "
                f"{target_shape} an example; binary-cross-entropy takes 0 and 1, squared-error any values"
            )
        self._check_classes(size)
        return size

    def task(self, target_shape: Shape, num_classes: int | None) -> Task:
        return Task("classification", num_classes or self.output_size(target_shape, num_classes))

    def wrong_targets(self, rows: Array) -> str | None:
        if rows.dtype.kind != "f":
            return None
        if (wrong := no_probabilities(rows)) or np.allclose(rows.sum(axis=-1), 1, atol=1e-3):
            return wrong
        return "of each example must add up to 1 for a softmax; several answers take --loss binary-cross-entropy"

    def targets(self, rows: Array, dtype: np.dtype[np.generic]) -> Array:
        return rows if rows.ndim == 1 else super().targets(rows, dtype)

    def predict(self, outputs: Array) -> Array:
        return softmax(outputs)

    def value_and_grad(self, outputs: Array, y: Array, want_grad: bool) -> tuple[Array, Array | None]:
        labels = y.ndim == 1
        if y.shape != (outputs.shape[1:] if labels else outputs.shape) or (labels and y.dtype.kind not in "iu"):
            raise ConfigurationError(
                f"softmax-cross-entropy: expected integer labels (n,) or probabilities {outputs.shape} for outputs of "
                f"that shape, got {y.dtype} of shape {y.shape}; choose the model's outputs or the loss to fit"
            )
        if labels and not self.label_smoothing and self.class_weights is None:
            return kernels_for(outputs).softmax_cross_entropy(outputs, y, want_grad)  # type: ignore[no-any-return]
        z = outputs - outputs.max(axis=0)  # the largest becomes 0, so that exp can't overflow
        p = np.exp(z)
        total = np.add.reduce(p, axis=0)
        t = self._weighted_targets(y, outputs)
        mass = np.add.reduce(t, axis=0)
        losses = np.log(total) * mass - np.add.reduce(t * z, axis=0)
        if not want_grad:
            return losses, None
        p *= mass / total
        p -= t
        return losses, p

    def _weighted_targets(self, y: Array, outputs: Array) -> Array:
        """w_c t_c, smoothed, a new array (k, n)."""
        classes = outputs.shape[0]
        if y.ndim == 1:
            t = np.zeros_like(outputs)
            t[y, array_module(outputs).arange(len(y))] = 1.0
        else:
            t = y.astype(outputs.dtype)
        if self.label_smoothing:
            t *= 1.0 - self.label_smoothing
            t += self.label_smoothing / classes
        if self.class_weights is not None:
            self._check_classes(classes)
            t *= constants(outputs, self.class_weights)[:, None]
        return t

    def _check_classes(self, classes: int) -> None:
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise ConfigurationError(f"class weights: expected {classes} numbers, got {len(self.class_weights)}")


def softmax(outputs: Array) -> Array:
    """exp(z) of each column, divided by its sum."""
    p: Array = np.exp(outputs - outputs.max(axis=0))
    p /= np.add.reduce(p, axis=0)
    return p


def no_probabilities(rows: Array) -> str | None:
    """What is wrong with values as probabilities."""
    if not (np.any(rows < 0) or np.any(rows > 1)):
        return None
    return (
        "must be probabilities from 0 to 1 for a cross-entropy; (y + 1) / 2 makes them of -1 and +1, and other values "
        "take --loss squared-error"
    )


def check_weights(weights: tuple[float, ...] | None) -> None:
    """Raise ConfigurationError for weights of classes that no loss can have."""
    if weights is not None and not (all(isfinite(w) and w >= 0 for w in weights) and any(weights)):
        raise ConfigurationError(
            f"class weights: expected finite numbers of at least 0 and one that is more, got {weights!r}"
        )
