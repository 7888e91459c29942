"""Losses that a function computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, final

import numpy as np

from distsgd.core.device import Array, Shape
from distsgd.core.errors import ConfigurationError
from distsgd.nn.losses.base import Loss, LossFunction, checked


@final
@dataclass(frozen=True)
class FunctionLoss(Loss):
    """The loss that a function computes: see `loss_from`.

    Parameters
    ----------
    function : function
        `function(outputs, y) -> (losses (n,), grad (k, n))`.
    outputs : int, optional
        The number of outputs that the function takes. By default one for each class, or for each value.
    """

    function: LossFunction
    outputs: int | None = None

    def user_functions(self) -> tuple[Callable[..., Any], ...]:
        return (self.function,)

    def output_size(self, target_shape: Shape, num_classes: int | None) -> int:
        return self.outputs or num_classes or prod(target_shape)

    def targets(self, rows: Array, dtype: np.dtype[np.generic]) -> Array:
        return rows if rows.ndim == 1 and rows.dtype.kind in "iu" else super().targets(rows, dtype)

    def value_and_grad(self, outputs: Array, y: Array, want_grad: bool) -> tuple[Array, Array | None]:
        losses, grad = checked(self.function, self.function(outputs, y), outputs, True)
        return losses, grad.astype(outputs.dtype) if want_grad else None  # a copy: the caller may overwrite it


def loss_from(function: LossFunction, outputs: int | None = None) -> Loss:
    """A loss made of a function, for `fit(…, loss=…)`, which also takes the function itself.

    Parameters
    ----------
    function : function
        `function(outputs, y) -> (losses, grad)`: outputs (k, n), batch-last; y integer labels (n,) or values (k, n);
        the loss of each example (n,), and the gradient (k, n) of their sum with respect to the outputs.
    outputs : int, optional
        The number of outputs that the function takes. By default one for each class, or for each value.

    Returns
    -------
    Loss
        One thread at a time calls the function, unless it has an attribute `thread_safe` that is True.

    Examples
    --------
    >>> def quartic(outputs, y):
    ...     return ((outputs - y) ** 4).sum(axis=0), 4 * (outputs - y) ** 3
    >>> loss_from(quartic).per_example(np.array([[1.0, 3.0]]), np.array([[0.0, 1.0]])).tolist()
    [1.0, 16.0]
    """
    if not callable(function):
        raise ConfigurationError(f"loss: expected a function (outputs, y), got {type(function).__name__}")
    return FunctionLoss(function, outputs)
