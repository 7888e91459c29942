"""Losses of yes-or-no answers."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, prod

import numpy as np

from distsgd.core.device import Array, Shape, constants
from distsgd.core.errors import ConfigurationError
from distsgd.core.ranges import number_in
from distsgd.nn.losses.base import Loss, check_values
from distsgd.nn.losses.classification import no_probabilities
from distsgd.nn.task import Task


class BinaryLoss(Loss):
    """Of answers, yes or no, whose outputs are logits: what such losses have alike."""

    def task(self, target_shape: Shape, num_classes: int | None) -> Task:
        outputs = self.output_size(target_shape, num_classes)
        return Task("multilabel", outputs) if outputs > 1 else Task("classification", 2)

    def wrong_targets(self, rows: Array) -> str | None:
        return no_probabilities(rows) if rows.dtype.kind == "f" else None

    def predict(self, outputs: Array) -> Array:
        return sigmoid(outputs, np.exp(-np.abs(outputs)))


@dataclass(frozen=True)
class BinaryCrossEntropy(BinaryLoss):
    """loss := Σₖ w t log(1 + exp(-z)) + (1 - t) log(1 + exp(z)) over the outputs z (k, n), k binary answers.

    The gradient is (1 - t) sigmoid(z) - w t sigmoid(-z); with w = 1 it is sigmoid(z) - t, and the loss is computed as
    max(z, 0) - t z + log(1 + exp(-abs(z))), which can't overflow. Targets are 0, 1 or probabilities; integer labels 0
    and 1 are one answer.

    Parameters
    ----------
    pos_weight : tuple of float, optional
        w, the weight of yes: one number, or one for each answer. PyTorch's pos_weight.
    label_smoothing : float, default 0.0
        ε, which replaces t by (1 - ε) t + ε/2.

    References
    ----------
    .. [1] Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR 2016 (label smoothing).

    Examples
    --------
    >>> BinaryCrossEntropy().per_example(np.array([[0.0, 3.0]]), np.array([[1.0, 0.0]])).round(4).tolist()
    [0.6931, 3.0486]
    """

    pos_weight: tuple[float, ...] | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        number_in("[0, 1)", "label smoothing", self.label_smoothing)
        weights = self.pos_weight
        if weights is not None and not (weights and all(isfinite(w) and w > 0 for w in weights)):
            raise ConfigurationError(f"pos_weight: expected finite numbers above 0, got {weights!r}")

    def output_size(self, target_shape: Shape, num_classes: int | None) -> int:
        no_binary_labels("binary-cross-entropy", target_shape, num_classes, "softmax-cross-entropy")
        self._check_weights(prod(target_shape))
        return prod(target_shape)

    def value_and_grad(self, outputs: Array, y: Array, want_grad: bool) -> tuple[Array, Array | None]:
        check_values("binary-cross-entropy", outputs, y)
        if self.label_smoothing:
            y = y * (1.0 - self.label_smoothing)
            y += self.label_smoothing / 2
        decay: Array = np.exp(-np.abs(outputs))
        if self.pos_weight is not None:
            return self._weighted(outputs, y, decay, want_grad)
        terms = np.maximum(outputs, 0.0)
        terms -= outputs * y
        terms += np.log1p(decay)
        losses = np.add.reduce(terms, axis=0)
        if not want_grad:
            return losses, None
        grad = sigmoid(outputs, decay)
        grad -= y
        return losses, grad

    def _weighted(self, outputs: Array, y: Array, decay: Array, want_grad: bool) -> tuple[Array, Array | None]:
        assert self.pos_weight is not None
        self._check_weights(len(outputs))
        yes = constants(outputs, self.pos_weight)[:, None] * y
        no = 1.0 - y
        mass = yes + no
        terms = np.log1p(decay)
        terms += np.maximum(outputs, 0.0)
        terms *= mass
        terms -= outputs * yes
        losses = np.add.reduce(terms, axis=0)
        if not want_grad:
            return losses, None
        grad = sigmoid(outputs, decay)
        grad *= mass
        grad -= yes
        return losses, grad

    def _check_weights(self, outputs: int) -> None:
        if self.pos_weight is not None and len(self.pos_weight) not in (1, outputs):
            expected = "one number" if outputs == 1 else f"one number, or {outputs}"
            raise ConfigurationError(f"pos_weight: expected {expected}, got {len(self.pos_weight)}")


def sigmoid(z: Array, decay: Array) -> Array:
    """1 / (1 + exp(-z)) from `decay` = exp(-|z|), to full relative precision at both ends."""
    numerator: Array = np.maximum(z >= 0, decay, dtype=z.dtype)
    numerator /= 1.0 + decay
    return numerator


def no_binary_labels(name: str, target_shape: Shape, num_classes: int | None, instead: str) -> None:
    """Raise ConfigurationError for labels of more than two classes."""
    if target_shape == () and num_classes is not None and num_classes > 2:
        raise ConfigurationError(f"{name}: expected labels 0 and 1, got {num_classes} classes; use {instead}")
