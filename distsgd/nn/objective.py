"""What is minimized: a model with a loss, or the user's own function. The trainer knows no more than this seam."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Protocol

import numpy as np

from distsgd.core.components import Component, is_own
from distsgd.core.device import Array, Shape, is_on_host
from distsgd.core.errors import ConfigurationError
from distsgd.core.layout import Views
from distsgd.nn.batch import Batch
from distsgd.nn.layers import Layer
from distsgd.nn.losses import Loss

_EVALUATED_TOGETHER, _LEAST_TOGETHER = 1 << 28, 32
"""Multiply-adds of forward for which examples go through a model of images together, and how many at least."""


class LossAndGrad(Protocol):
    """The one thing a model has to be: the sum of the losses of a batch and its gradient."""

    def __call__(self, params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        """(loss_sum, example_count). Puts d(loss_sum)/d(params) into the views of `grads`, which are zero before.

        `params` are read-only. All arrays are of this call alone: keep none of them.
        """


class Objective(Component, ABC):
    """A LossAndGrad with what training needs besides: shapes, initial values, outputs to score."""

    input_shape: Shape | None = None
    """The shape of one example, or None for a flat vector of its features."""

    loss_scale: int = 1
    """A power of two that gradients come multiplied by; who adds them up divides it out with the number of examples."""

    def scaled(self, loss_scale: int) -> Objective:
        """This objective with a loss scale; a function of the user's own has none."""
        return self

    @abstractmethod
    def parameter_shapes(self) -> Mapping[str, Shape]:
        """Names and shapes of the parameters."""

    def state_shapes(self) -> Mapping[str, Shape]:
        """Names and shapes of running statistics."""
        return {}

    def statistics_shapes(self) -> Mapping[str, Shape]:
        """Names and shapes of what a microbatch reports for the running statistics."""
        return {}

    def multiply_adds(self) -> int:
        """About how many forward makes for one example: one a parameter, unless a model knows better."""
        return sum(prod(shape) for shape in self.parameter_shapes().values())

    @abstractmethod
    def initialize(self, params: Views, state: Views, seed: int) -> None:
        """Fills parameters and running statistics with their initial values."""

    @abstractmethod
    def loss_and_grad(self, params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        """See LossAndGrad."""

    @abstractmethod
    def score(self, params: Views, scratch: Views, batch: Batch) -> tuple[float, int, Array | None]:
        """(loss_sum, example_count, outputs or None) in evaluation; may use `scratch` as gradients, which are zero."""

    def predict(self, params: Views, batch: Batch) -> Array:
        """What the model says of the inputs, batch-last: probabilities, or values."""
        raise ConfigurationError("this model has no outputs to predict with; give distsgd.FunctionObjective outputs=")

    def targets(self, y: Array, dtype: np.dtype) -> Array:
        """Stored targets of n examples, (n,) or (n, outputs), as the function takes them: (n,) or (outputs, n)."""
        return y.T

    def overwrites_gradients(self) -> bool:
        """Whether `loss_and_grad` writes every element of every gradient, whatever was there before.

        Where it is not certain to, as here, gradients start at zero in each call.
        """
        return False

    def repeats_itself(self) -> bool:
        """Whether it does the same for every microbatch of one length, whatever numbers are in it and whatever step it
        is of.

        A GPU may record it then, and the recording stand for all steps.
        """
        return False

    def combine_statistics(self, left: Views, right: Views) -> None:
        """Joins two microbatches' statistics into `left`."""

    def update_state(self, state: Views, statistics: Views) -> None:
        """Moves the running statistics on by one step's joined statistics."""


@dataclass(frozen=True)
class Supervised(Objective):
    """A model and a loss on its outputs."""

    model: Layer
    loss: Loss
    input_shape: Shape
    loss_scale: int = 1

    def scaled(self, loss_scale: int) -> Supervised:
        return replace(self, loss_scale=loss_scale)

    def parameter_shapes(self) -> Mapping[str, Shape]:
        return self.model.parameter_shapes()

    def state_shapes(self) -> Mapping[str, Shape]:
        return self.model.state_shapes()

    def statistics_shapes(self) -> Mapping[str, Shape]:
        return self.model.statistics_shapes()

    def multiply_adds(self) -> int:
        return self.model.multiply_adds(self.input_shape) or super().multiply_adds()

    def initialize(self, params: Views, state: Views, seed: int) -> None:
        self.model.initialize(params, seed, "")
        self.model.initialize_state(state)

    def loss_and_grad(self, params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        outputs, backward = self.model.forward(params, batch.x, batch, "")
        if not batch.device.is_cpu and (type(outputs) is not type(batch.x) or outputs.dtype != batch.x.dtype):
            raise ConfigurationError(
                f"the model's outputs must be {_described(batch.x, False)} as its inputs are, got "
                f"{_described(outputs, False)}; a layer has to compute with the arrays and the dtype that it is given"
            )
        loss_sum, d_outputs = self.loss.loss_and_grad(outputs, batch.y, batch.weights)
        if self.loss_scale != 1:
            d_outputs *= float(self.loss_scale)
        backward(d_outputs, grads)
        return loss_sum, len(batch)

    def score(self, params: Views, scratch: Views, batch: Batch) -> tuple[float, int, Array | None]:
        outputs = self._outputs(params, batch)
        losses = self.loss.per_example(outputs, batch.y)
        if batch.weights is not None:
            losses = losses * batch.weights
        return float(np.sum(losses, dtype=np.float64)), len(batch), outputs

    def predict(self, params: Views, batch: Batch) -> Array:
        return self.loss.predict(self._outputs(params, batch))

    def _outputs(self, params: Views, batch: Batch) -> Array:
        """The model's outputs in evaluation; images go through it in small parts, for memory and the cache."""
        together = len(batch)
        if len(self.input_shape) > 1:
            together = max(_EVALUATED_TOGETHER // self.multiply_adds(), _LEAST_TOGETHER)
        outputs = []
        for start in range(0, len(batch), together):
            part = slice(start, start + together)
            own = replace(batch, x=batch.x[..., part], y=batch.y[..., part], indices=batch.indices[part])
            found = self.model.forward(params, own.x, own, "")[0]
            outputs.append(found if together >= len(batch) else found.copy())  # a layer may use an array again
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs, axis=-1)

    def targets(self, y: Array, dtype: np.dtype) -> Array:
        return self.loss.targets(y, dtype)

    def overwrites_gradients(self) -> bool:
        return is_own(self)

    def repeats_itself(self) -> bool:
        return is_own(self)  # a layer of a user's may look at its numbers

    def combine_statistics(self, left: Views, right: Views) -> None:
        self.model.combine_statistics(left, right)

    def update_state(self, state: Views, statistics: Views) -> None:
        self.model.update_state(state, statistics)


@dataclass(frozen=True)
class FunctionObjective(Objective):
    """The user's own function, and the arrays it starts from.

    `function(params, grads, batch)` is a LossAndGrad. `params` gives names, shapes and initial values. With
    `outputs(params, batch)`, which returns what the model says, (outputs, n), there are metrics and predictions too.
    One thread calls both functions, unless `thread_safe` says that several may.
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
            return float(loss_sum) if is_on_host(loss_sum) else _single(loss_sum), int(count)
        except (TypeError, ValueError):
            got = type(result).__name__
            if isinstance(result, tuple):
                got = f"({', '.join(map(_described, result))})"
            raise ConfigurationError(
                f"a loss function must return (loss_sum, example_count), two numbers, got {got}"
            ) from None

    def score(self, params: Views, scratch: Views, batch: Batch) -> tuple[float, int, Array | None]:
        loss_sum, count = self.loss_and_grad(params, scratch, batch)
        return loss_sum, count, None if self.outputs is None else self.outputs(params, batch)

    def predict(self, params: Views, batch: Batch) -> Array:
        if self.outputs is None:
            return super().predict(params, batch)
        return self.outputs(params, batch)


def _single(loss_sum: Any) -> Any:
    """An array of a GPU that is one number. Raises ValueError for another."""
    if loss_sum.size != 1 or loss_sum.dtype.kind not in "fiu":
        raise ValueError
    return loss_sum.reshape(())


def _described(value: object, with_shape: bool = True) -> str:
    """What kind of array or object this is, in words."""
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        return type(value).__name__
    whose = "NumPy's" if is_on_host(value) else "the GPU's"
    return f"{whose} {value.dtype}" + (f" of shape {value.shape}" if with_shape else "")
