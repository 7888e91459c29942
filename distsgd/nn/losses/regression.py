"""Losses of values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distsgd.core.device import Array, Shape
from distsgd.core.ranges import number_in
from distsgd.nn.losses.base import Loss, check_values
from distsgd.nn.task import Task


class ValueLoss(Loss):
    """A loss of values, of which integers are some, too."""

    def task(self, target_shape: Shape, num_classes: int | None) -> Task:
        return Task("regression")


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

    def task(self, target_shape: Shape, num_classes: int | None) -> Task:
        if num_classes == 2 and self.output_size(target_shape, num_classes) == 1:
            return Task("classification", 2, answer="probability")
        return Task("regression")

    def value_and_grad(self, outputs: Array, y: Array, want_grad: bool) -> tuple[Array, Array | None]:
        check_values("squared-error", outputs, y)
        difference: Array = outputs - y
        losses = np.add.reduce(np.square(difference), axis=0)
        losses *= 0.5
        return losses, difference


@dataclass(frozen=True)
class AbsoluteError(ValueLoss):
    """loss := Σₖ |output - t|, gradient sign(output - t), which is 0 where both are equal.

    The prediction is the median. PyTorch's and Keras's mean absolute errors are 1/k times this one.

    Examples
    --------
    >>> AbsoluteError().per_example(np.array([[1.0, 3.0]]), np.array([[0.0, 1.0]])).tolist()
    [1.0, 2.0]
    """

    def value_and_grad(self, outputs: Array, y: Array, want_grad: bool) -> tuple[Array, Array | None]:
        check_values("l1", outputs, y)
        difference: Array = outputs - y
        return np.add.reduce(np.abs(difference), axis=0), np.sign(difference) if want_grad else None


@dataclass(frozen=True)
class Huber(ValueLoss):
    """loss := Σₖ ½ d² where |d| ≤ δ, else δ (|d| - ½ δ), of d := output - t; the gradient is d, cut off at -δ and δ.

    Parameters
    ----------
    delta : float, default 1.0
        δ, in the units of the targets; of standardized targets in those of their spread.

    References
    ----------
    .. [1] Huber, "Robust estimation of a location parameter", Annals of Mathematical Statistics 35 (1964).

    Examples
    --------
    >>> Huber().per_example(np.array([[1.0, 3.0]]), np.array([[0.5, 1.0]])).tolist()
    [0.125, 1.5]
    """

    delta: float = 1.0

    def __post_init__(self) -> None:
        number_in("(0, inf)", "huber: delta", self.delta)

    def value_and_grad(self, outputs: Array, y: Array, want_grad: bool) -> tuple[Array, Array | None]:
        check_values("huber", outputs, y)
        delta = float(self.delta)
        difference: Array = outputs - y
        inside = np.minimum(np.maximum(difference, -delta), delta)
        # With c the cut difference, both cases are c (d - c / 2).
        losses = np.add.reduce(inside * (difference - 0.5 * inside), axis=0)
        return losses, inside if want_grad else None


@dataclass(frozen=True)
class Poisson(ValueLoss):
    """loss := Σₖ exp(z) - t z, gradient exp(z) - t, of outputs z, the logarithms of the rates of counts t ≥ 0.

    The negative log-likelihood without log t!, which no parameter changes, as PyTorch's PoissonNLLLoss has it. The
    prediction is the rate exp(z).

    References
    ----------
    .. [1] Nelder, Wedderburn, "Generalized linear models", Journal of the Royal Statistical Society A 135 (1972).

    Examples
    --------
    >>> Poisson().loss_and_grad(np.array([[0.0]]), np.array([[3.0]]))
    (1.0, array([[-2.]]))
    """

    standardizable = False

    def wrong_targets(self, rows: Array) -> str | None:
        if not np.any(rows < 0):
            return None
        return "must be counts of at least 0 for --loss poisson; other values take --loss squared-error"

    def point(self, outputs: Array) -> Array:
        rate: Array = np.exp(outputs)
        return rate

    def value_and_grad(self, outputs: Array, y: Array, want_grad: bool) -> tuple[Array, Array | None]:
        check_values("poisson", outputs, y)
        rate: Array = np.exp(outputs)
        losses = np.add.reduce(rate - y * outputs, axis=0)
        if want_grad:
            rate -= y
        return losses, rate if want_grad else None
