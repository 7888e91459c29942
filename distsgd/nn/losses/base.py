"""Losses: a function of a model's outputs and the targets, as a SUM over examples, and its gradient.

Sums, because the trainer adds them over microbatches and divides once, by the number of examples. Arrays are
batch-last.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import prod
from typing import Any, TypeAlias

import numpy as np

from distsgd.core.components import Component
from distsgd.core.device import Array, Shape
from distsgd.core.errors import ConfigurationError
from distsgd.nn.task import Task

LossFunction: TypeAlias = Callable[[Array, Array], tuple[Array, Array]]
"""`(outputs (k, n), targets (n,) or (k, n)) -> (losses (n,), grad (k, n))`."""


class Loss(Component, ABC):
    """The base class: a loss of outputs (k, n) against y, values (k, n) or integer labels (n,).

    A subclass overrides `value_and_grad` alone where there is one output for each value: a label is a value, too. One
    that takes labels, or other outputs, overrides `output_size`, `targets`, `task` and `predict` as well; `point` and
    `interval` where outputs are no predictions of the values themselves. A sample weight multiplies the loss and
    gradient of its example; the mean still divides by the number of examples.

    Examples
    --------
    >>> class Absolute(Loss):
    ...     def value_and_grad(self, outputs, y, want_grad):
    ...         return np.abs(outputs - y).sum(axis=0), np.sign(outputs - y)
    >>> loss_sum, grad = Absolute().loss_and_grad(np.array([[1.0, 3.0]]), np.array([[0.0, 1.0]]))
    >>> loss_sum, grad.tolist()
    (3.0, [[1.0, 1.0]])
    """

    usual_coverage: float | None = None
    """The coverage of an interval that is drawn, where the loss has intervals."""

    standardizable: bool = True
    """Whether values that the loss takes may be standardized: not where their zero or their sign has a meaning."""

    def output_size(self, target_shape: Shape, num_classes: int | None) -> int:
        """The number of outputs that a model needs for given targets: by default one for each value.

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
        return prod(target_shape)

    def task(self, target_shape: Shape, num_classes: int | None) -> Task:
        """What the outputs stand for: by default classes or values, where there is one output for each.

        Parameters
        ----------
        target_shape, num_classes
            See `output_size`.

        Returns
        -------
        Task
            Without the classes' names.
        """
        outputs = self.output_size(target_shape, num_classes)
        if num_classes is not None and outputs == num_classes > 1:
            return Task("classification", num_classes)
        return Task("regression" if num_classes is None and outputs == prod(target_shape) else "other")

    def wrong_targets(self, rows: Array) -> str | None:
        """What is wrong with stored targets, and what to do, after the words "the targets".

        Parameters
        ----------
        rows : array
            Targets as the data has them, (n,) or (n, …).

        Returns
        -------
        str or None
            None, the default, where they can be taken.
        """
        return None

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

    def predict(self, outputs: Array) -> Array:
        """The predictions that outputs stand for: by default their point predictions.

        Parameters
        ----------
        outputs : array
            The model's outputs (k, n).

        Returns
        -------
        array
            Probabilities or values (k, n).
        """
        return self.point(outputs)

    def point(self, outputs: Array) -> Array:
        """What metrics take for the outputs: one number for each value, or those that labels are made from.

        Parameters
        ----------
        outputs : array
            The model's outputs (k, n).

        Returns
        -------
        array
            By default the outputs themselves.
        """
        return outputs

    def interval(self, outputs: Array, coverage: float) -> tuple[Array, Array] | None:
        """Intervals in which the values lie with a probability.

        Parameters
        ----------
        outputs : array
            The model's outputs (k, n).
        coverage : float
            The probability, above 0 and below 1.

        Returns
        -------
        lower, upper
            Of the shape of `point`; None, the default, where the outputs say nothing of an interval.

        Raises
        ------
        ConfigurationError
            Where the loss has intervals, and none of this coverage.
        """
        return None

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
        return checked(self, self.value_and_grad(outputs, y, want_grad=False), outputs, False)[0]

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
        losses, grad = self.losses_and_grad(outputs, y, weights)
        total = np.add.reduce(losses, dtype=np.float64)
        return (float(total) if isinstance(total, float) else total), grad

    def losses_and_grad(self, outputs: Array, y: Array, weights: Array | None = None) -> tuple[Array, Array]:
        """The weighted losses of `loss_and_grad`, not yet added (n,), and their sum's gradient (k, n).

        Parameters
        ----------
        outputs, y, weights : array
            See `loss_and_grad`.

        Returns
        -------
        losses, grad
            The two.
        """
        losses, grad = checked(self, self.value_and_grad(outputs, y, want_grad=True), outputs, True)
        if weights is not None:
            if weights.shape != losses.shape:
                raise ConfigurationError(
                    f"sample weights: expected shape {losses.shape}, got {weights.shape}; give one for each example"
                )
            losses = losses * weights
            grad *= weights
        return losses, grad


def checked(loss: Any, found: Any, outputs: Array, want_grad: bool) -> tuple[Array, Any]:
    """What a loss returned for these outputs; ConfigurationError where that is no loss for each example, and no
    gradient. `loss` is what the message names."""
    try:
        losses, grad = found
        fits = losses.shape == outputs.shape[1:] and losses.dtype.kind in "fiub"
        if fits and (not want_grad or (grad.shape == outputs.shape and grad.dtype.kind in "fiub")):
            return losses, grad
    except (AttributeError, TypeError, ValueError):
        pass
    raise _wrong_result(loss, found, outputs)


def _wrong_result(loss: Any, found: Any, outputs: Array) -> ConfigurationError:
    """The error for what a loss, or a function, returned in place of losses and their gradient."""
    name = getattr(loss, "__name__", type(loss).__name__)
    if not isinstance(found, tuple) or len(found) != 2:
        return ConfigurationError(
            f"loss {name}: expected a tuple (losses, gradient) of arrays, got {type(found).__name__}; return both"
        )
    got = [
        f"{one.dtype} {tuple(one.shape)}" if hasattr(one, "dtype") and hasattr(one, "shape") else type(one).__name__
        for one in found
    ]
    return ConfigurationError(
        f"loss {name}: expected arrays of numbers, losses {outputs.shape[1:]}, one an example, and a gradient "
        f"{outputs.shape}, got {got[0]} and {got[1]}; return the examples' losses, not their mean"
    )


def check_values(name: str, outputs: Array, y: Array) -> None:
    """Raise ConfigurationError where y isn't one value of the outputs' dtype for each output."""
    if y.shape != outputs.shape or y.dtype != outputs.dtype:
        raise ConfigurationError(
            f"{name}: expected targets of shape {outputs.shape} and {outputs.dtype} like the outputs, got {y.shape} "
            f"and {y.dtype}; bring them into that form with the loss's `targets`, and give the model as many outputs"
        )
