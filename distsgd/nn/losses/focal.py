"""Focal losses: cross-entropies in which examples that are predicted well count less."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from distsgd.core.device import Array, Shape, array_module, constants
from distsgd.core.errors import ConfigurationError
from distsgd.core.ranges import number_in
from distsgd.nn.losses.base import Loss, check_values
from distsgd.nn.losses.binary import BinaryLoss, no_binary_labels, sigmoid
from distsgd.nn.losses.classification import check_weights, softmax
from distsgd.nn.task import Task


@dataclass(frozen=True)
class Focal(Loss):
    """loss := -w_c (1 - p_c)^γ log p_c of the label's class c, with p := softmax(outputs).

    The gradient is w_c (1 - p_c)^γ (γ p_c log p_c / (1 - p_c) - 1) (t - p), where t is 1 for the label's class and 0
    for the others.

    Parameters
    ----------
    gamma : float, default 2.0
        γ, at least 0; with 0 this is the cross-entropy.
    class_weights : tuple of float, optional
        The w_c, 1 by default.

    References
    ----------
    .. [1] Lin, Goyal, Girshick, He, Dollár, "Focal loss for dense object detection", ICCV 2017.

    Examples
    --------
    >>> Focal().per_example(np.array([[0.0, 3.0], [0.0, 0.0]]), np.array([1, 0])).round(4).tolist()
    [0.1733, 0.0001]
    """

    gamma: float = 2.0
    class_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        number_in("[0, inf)", "focal: gamma", self.gamma)
        check_weights(self.class_weights)

    def output_size(self, target_shape: Shape, num_classes: int | None) -> int:
        if target_shape != () or num_classes is None:
            raise ConfigurationError(
                "focal: expected integer labels (y.astype(int)), got floats or several values an example; binary-focal "
                "takes 0 and 1"
            )
        self._check_classes(num_classes)
        return num_classes

    def task(self, target_shape: Shape, num_classes: int | None) -> Task:
        return Task("classification", self.output_size(target_shape, num_classes))

    def targets(self, rows: Array, dtype: np.dtype[np.generic]) -> Array:
        return rows

    def predict(self, outputs: Array) -> Array:
        return softmax(outputs)

    def value_and_grad(self, outputs: Array, y: Array, want_grad: bool) -> tuple[Array, Array | None]:
        if y.shape != outputs.shape[1:] or y.dtype.kind not in "iu":
            raise ConfigurationError(
                f"focal: expected integer labels {outputs.shape[1:]} for outputs {outputs.shape}, got {y.dtype} "
                f"{y.shape}; choose the model's outputs or the loss to fit"
            )
        gamma, place = float(self.gamma), (y, array_module(outputs).arange(len(y)))
        z = outputs - outputs.max(axis=0)  # the largest becomes 0, so that exp can't overflow
        p = np.exp(z)
        own = p[place]
        p[place] = 0.0
        others = np.add.reduce(p, axis=0)  # without cancellation where p_c is near 1
        p[place] = own
        total = others + own
        log_own = z[place] - np.log(total)
        own, others = own / total, others / total
        power = np.power(others, gamma)
        if self.class_weights is not None:
            self._check_classes(len(outputs))
            power *= constants(outputs, self.class_weights)[y]
        losses = -(power * log_own)
        if not want_grad:
            return losses, None
        # log p / (1 - p) has the limit -1 where p is 1.
        certain = others <= 0
        ratio = log_own / (others + certain)
        ratio -= certain * ratio + certain
        factor = power * (gamma * own * ratio - 1.0)
        p *= -factor / total
        p[place] += factor
        return losses, p

    def _check_classes(self, classes: int) -> None:
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise ConfigurationError(f"class weights: expected {classes} numbers, got {len(self.class_weights)}")


@dataclass(frozen=True)
class BinaryFocal(BinaryLoss):
    """loss := Σₖ -t α q^γ log p - (1 - t) (1 - α) p^γ log q of k binary answers, with p := sigmoid(z) and q := 1 - p.

    The gradient is t α q^γ (γ p log p - q) + (1 - t) (1 - α) p^γ (p - γ q log q). Targets are those of
    `BinaryCrossEntropy`.

    Parameters
    ----------
    gamma : float, default 2.0
        γ, at least 0; with 0 this is the cross-entropy.
    alpha : float, optional
        α, above 0 and below 1. By default there is none: both factors are 1.

    References
    ----------
    .. [1] Lin, Goyal, Girshick, He, Dollár, "Focal loss for dense object detection", ICCV 2017.

    Examples
    --------
    >>> BinaryFocal().per_example(np.array([[0.0, 3.0]]), np.array([[1.0, 1.0]])).round(4).tolist()
    [0.1733, 0.0001]
    """

    gamma: float = 2.0
    alpha: float | None = None

    def __post_init__(self) -> None:
        number_in("[0, inf)", "focal: gamma", self.gamma)
        if self.alpha is not None:
            number_in("(0, 1)", "focal: alpha", self.alpha)

    def output_size(self, target_shape: Shape, num_classes: int | None) -> int:
        no_binary_labels("binary-focal", target_shape, num_classes, "focal")
        return prod(target_shape)

    def value_and_grad(self, outputs: Array, y: Array, want_grad: bool) -> tuple[Array, Array | None]:
        check_values("binary-focal", outputs, y)
        gamma = float(self.gamma)
        decay: Array = np.exp(-np.abs(outputs))
        rest = np.log1p(decay)
        log_p, log_q = -(np.maximum(-outputs, 0.0) + rest), -(np.maximum(outputs, 0.0) + rest)
        p, q = sigmoid(outputs, decay), sigmoid(-outputs, decay)
        yes, no = y * np.power(q, gamma), (1.0 - y) * np.power(p, gamma)
        if self.alpha is not None:
            yes *= float(self.alpha)
            no *= 1.0 - float(self.alpha)
        losses = -np.add.reduce(yes * log_p + no * log_q, axis=0)
        if not want_grad:
            return losses, None
        grad = yes * (gamma * p * log_p - q)
        grad += no * (p - gamma * q * log_q)
        return losses, grad
