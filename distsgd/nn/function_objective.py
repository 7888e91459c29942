"""The user's own function as an objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from distsgd.core.device import Array, Shape, described
from distsgd.core.errors import ConfigurationError
from distsgd.core.layout import Views
from distsgd.nn.batch import Batch
from distsgd.nn.objective import LossAndGrad, Objective


@dataclass(frozen=True)
class FunctionObjective(Objective):
    """The user's own function, and the arrays it starts from.

    Parameters
    ----------
    function : LossAndGrad
        A LossAndGrad: `function(params, grads, batch) -> (loss_sum, example_count)`.
    params : mapping of str to array
        Names, shapes and initial values of the parameters.
    outputs : function, optional
        `outputs(params, batch)` returns the model's outputs (outputs, n); without it there are no metrics and
        predictions.
    input_shape : tuple of int, optional
        The shape of one example in `batch.x`; None for a flat vector of features.
    thread_safe : bool, default False
        Whether several threads may call both functions at the same time; by default one thread calls them.

    Raises
    ------
    ConfigurationError
        In a step, where `function` returns anything but two numbers.

    Examples
    --------
    A line through points, fitted by least squares:

    >>> def line(params, grads, batch):
    ...     error = params["w"] @ batch.x - batch.y[0]
    ...     grads["w"] += batch.x @ error
    ...     return 0.5 * float(error @ error), len(batch)
    >>> FunctionObjective(line, {"w": np.zeros(2)}).parameter_shapes()
    {'w': (2,)}
    """

    function: LossAndGrad
    params: Mapping[str, Array]
    outputs: Callable[[Views, Batch], Array] | None = None
    input_shape: Shape | None = None
    thread_safe: bool = False

    def user_functions(self) -> tuple[Callable[..., Any], ...]:
        return (self.function,) if self.outputs is None else (self.function, self.outputs)

    def parameter_shapes(self) -> Mapping[str, Shape]:
        return {name: tuple(np.shape(array)) for name, array in self.params.items()}

    def initialize(self, params: Views, state: Views, seed: int) -> None:
        for name, array in self.params.items():
            params[name][...] = array

    def loss_and_grad(self, params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        result = self.function(params, grads, batch)
        try:
            loss_sum, count = result
            return batch.device.number(loss_sum), int(count)
        except (TypeError, ValueError):
            got = type(result).__name__
            if isinstance(result, tuple):
                got = f"({', '.join(described(one, shape=True) for one in result)})"
            raise ConfigurationError(
                f"a loss function must return (loss_sum, example_count), two numbers, got {got}"
            ) from None

    def score(self, params: Views, scratch: Views, batch: Batch) -> tuple[float, int, Array | None]:
        loss_sum, count = self.loss_and_grad(params, scratch, batch)
        return loss_sum, count, None if self.outputs is None else self.outputs(params, batch)

    def has_outputs(self) -> bool:
        return self.outputs is not None

    def predict(self, params: Views, batch: Batch) -> Array:
        if self.outputs is None:
            return super().predict(params, batch)
        return self.outputs(params, batch)
