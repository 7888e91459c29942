"""Losses: a function of a model's outputs and the targets, as a SUM over examples, and its gradient.

Sums, because the trainer adds them over microbatches and divides once, by the number of examples. Arrays are
batch-last.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, prod

import numpy as np

from distsgd.core.components import Component
from distsgd.core.device import Array, Shape, array_module, constants
from distsgd.core.errors import ConfigurationError
from distsgd.core.kernels import kernels_for
from distsgd.core.ranges import number_in


class Loss(Component, ABC):
    """The base class: a loss of outputs (k, n) against y, integer labels (n,) or values (k, n).

    A subclass overrides `output_size`, `predict` and `value_and_grad`, and `targets` where it takes labels. A
    sample weight multiplies the loss and gradient of its example; the mean still divides by the number of examples.

    Examples
    --------
    >>> outputs, y = np.array([[1.0, 3.0]]), np.array([[0.0, 1.0]])
    >>> loss_sum, grad = SquaredError().loss_and_grad(outputs, y)
    >>> loss_sum, grad.tolist()
    (2.5, [[1.0, 2.0]])
    """

    @abstractmethod
    def output_size(self, target_shape: Shape, num_classes: int | None) -> int:
        """The number of outputs that a model needs for given targets.

        Parameters
        ----------
        target_shape : tuple of int
            The shape of one example's target; `()` for labels and single values.
        num_classes : int or None
            The number of classes of integer labels, None for other targets.

        Returns
        -------
        int
            The model's outputs for one example.

        Raises
        ------
        ConfigurationError
            Where the loss doesn't fit the targets.
        """

    def targets(self, rows: Array, dtype: np.dtype[np.generic]) -> Array:
        """Stored targets in the form that the loss takes: by default values, flattened to k an example.

        Parameters
        ----------
        rows : array
            Targets as the data has them, (n,) or (n, …).
        dtype : dtype
            The parameters' dtype.

        Returns
        -------
        Array
            Values (k, n) of `dtype`, whose rows are contiguous over the batch; or labels (n,).
        """
        columns: Array = rows.reshape(rows.shape[0], prod(rows.shape[1:])).T
        return columns.astype(dtype, order="C", copy=False)

    @abstractmethod
    def predict(self, outputs: Array) -> Array:
        """The predictions that outputs stand for.

        Parameters
        ----------
        outputs : array
            The model's outputs (k, n).

        Returns
        -------
        array
            Probabilities or values (k, n).
        """

    @abstractmethod
    def value_and_grad(self, outputs: Array, y: Array, want_grad: bool) -> tuple[Array, Array | None]:
        """The loss of each example and, where it is wanted, the gradient of their sum, without sample weights.

        Parameters
        ----------
        outputs : array
            The model's outputs (k, n).
        y : array
            Targets as `targets` returns them.
        want_grad : bool
            Whether the gradient is needed.

        Returns
        -------
        losses, grad
            (n,), and (k, n) in a new array, which the caller may overwrite; None where it isn't wanted.

        Raises
        ------
        ConfigurationError
            Where the targets don't fit the outputs.
        """

    def per_example(self, outputs: Array, y: Array) -> Array:
        """The loss of each example, without sample weights.

        Parameters
        ----------
        outputs, y : array
            See `value_and_grad`.

        Returns
        -------
        array
            Losses (n,).
        """
        return self.value_and_grad(outputs, y, want_grad=False)[0]

    def loss_and_grad(self, outputs: Array, y: Array, weights: Array | None = None) -> tuple[float, Array]:
        """The sum of the weighted losses, and its gradient with respect to the outputs.

        Parameters
        ----------
        outputs, y : array
            See `value_and_grad`.
        weights : array, optional
            Sample weights (n,), or None.

        Returns
        -------
        loss_sum, grad
            The sum, added in float64: a float, or an array without dimensions where the device computes
            asynchronously. The gradient (k, n) in the outputs' dtype.
        """
        losses, grad = self.value_and_grad(outputs, y, want_grad=True)
        assert grad is not None
        if weights is not None:
            if weights.shape != losses.shape:
                raise ConfigurationError(
                    f"sample weights: expected shape {losses.shape}, got {weights.shape}; give one for each example"
                )
            losses = losses * weights
            grad *= weights
        total = np.add.reduce(losses, dtype=np.float64)
        return (float(total) if isinstance(total, float) else total), grad


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
        weights = self.class_weights
        if weights is not None and not (all(isfinite(w) and w >= 0 for w in weights) and any(weights)):
            raise ConfigurationError(
                f"class weights: expected finite numbers of at least 0 and one that is more, got {weights!r}"
            )

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

    def targets(self, rows: Array, dtype: np.dtype[np.generic]) -> Array:
        return rows if rows.ndim == 1 else super().targets(rows, dtype)

    def predict(self, outputs: Array) -> Array:
        p: Array = np.exp(outputs - outputs.max(axis=0))
        p /= np.add.reduce(p, axis=0)
        return p

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


@dataclass(frozen=True)
class BinaryCrossEntropy(Loss):
    """loss := Σₖ log(1 + exp(z)) - t z over the outputs z (k, n), k binary answers; gradient sigmoid(z) - t.

    Computed as max(z, 0) - t z + log(1 + exp(-abs(z))), which can't overflow. Targets are 0, 1 or probabilities;
    integer labels 0 and 1 are one answer.

    Examples
    --------
    >>> BinaryCrossEntropy().per_example(np.array([[0.0, 3.0]]), np.array([[1.0, 0.0]])).round(4).tolist()
    [0.6931, 3.0486]
    """

    def output_size(self, target_shape: Shape, num_classes: int | None) -> int:
        if target_shape == () and num_classes is not None and num_classes > 2:
            raise ConfigurationError(
                f"binary-cross-entropy: expected labels 0 and 1, got {num_classes} classes; use softmax-cross-entropy"
            )
        return prod(target_shape)

    def predict(self, outputs: Array) -> Array:
        decay: Array = np.exp(-np.abs(outputs))
        return _sigmoid(outputs, decay)

    def value_and_grad(self, outputs: Array, y: Array, want_grad: bool) -> tuple[Array, Array | None]:
        _check_values("binary-cross-entropy", outputs, y)
        decay: Array = np.exp(-np.abs(outputs))
        terms = np.maximum(outputs, 0.0)
        terms -= outputs * y
        terms += np.log1p(decay)
        losses = np.add.reduce(terms, axis=0)
        if not want_grad:
            return losses, None
        grad = _sigmoid(outputs, decay)
        grad -= y
        return losses, grad


@dataclass(frozen=True)
class SquaredError(Loss):
    """loss := ½ Σₖ (output - t)², gradient output - t.

    Targets with several dimensions are flattened to k values. The factor ½ and the sum over k outputs are those of most
    derivations; PyTorch's and Keras's mean squared errors are 2/k times this one.

    Examples
    --------
    >>> SquaredError().per_example(np.array([[1.0, 3.0]]), np.array([[0.0, 1.0]])).tolist()
    [0.5, 2.0]
    """

    def output_size(self, target_shape: Shape, num_classes: int | None) -> int:
        return prod(target_shape)

    def predict(self, outputs: Array) -> Array:
        return outputs

    def value_and_grad(self, outputs: Array, y: Array, want_grad: bool) -> tuple[Array, Array | None]:
        _check_values("squared-error", outputs, y)
        difference: Array = outputs - y
        losses = np.add.reduce(np.square(difference), axis=0)
        losses *= 0.5
        return losses, difference


LOSSES: Mapping[str, type[Loss]] = {
    "softmax-cross-entropy": SoftmaxCrossEntropy,
    "binary-cross-entropy": BinaryCrossEntropy,
    "squared-error": SquaredError,
}


def _check_values(name: str, outputs: Array, y: Array) -> None:
    if y.shape != outputs.shape or y.dtype != outputs.dtype:
        raise ConfigurationError(
            f"{name}: expected targets of shape {outputs.shape} and {outputs.dtype} like the outputs, got {y.shape} "
            f"and {y.dtype}; bring them into that form with the loss's `targets`, and give the model as many outputs"
        )


def _sigmoid(z: Array, decay: Array) -> Array:
    """1 / (1 + exp(-z)) from `decay` = exp(-|z|), to full relative precision at both ends."""
    numerator: Array = np.maximum(z >= 0, decay, dtype=z.dtype)
    numerator /= 1.0 + decay
    return numerator
