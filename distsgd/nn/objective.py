"""What is minimized: a model with a loss, or the user's own function. The trainer knows only this interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from math import prod
from typing import Protocol

import numpy as np

from distsgd.core.components import Component, is_own
from distsgd.core.device import Array, Shape
from distsgd.core.errors import ConfigurationError
from distsgd.core.layout import Views
from distsgd.nn.batch import Batch
from distsgd.nn.layers.base import Layer, StatefulLayer, pair_by_pair
from distsgd.nn.losses.base import Loss
from distsgd.nn.task import Task

_EVALUATED_TOGETHER, _LEAST_TOGETHER = 1 << 28, 32
"""Multiply-adds of forward up to which a model of images evaluates examples together, and the least number of them."""


class LossAndGrad(Protocol):
    """A function that gives the sum of the losses of a batch and its gradient: all that a model has to be."""

    def __call__(self, params: Views, grads: Views, batch: Batch, /) -> tuple[float, int]:
        """Computes one microbatch. All arrays are of this call alone: keep none of them.

        Parameters
        ----------
        params : Views
            The parameters, read-only.
        grads : Views
            Views of the same names, zero before: d(loss_sum)/d(params) goes into them.
        batch : Batch
            The examples.

        Returns
        -------
        loss_sum, example_count
            The SUM of the examples' losses, not their mean, and their number: distsgd divides once, after all sums.
        """


class Objective(Component, ABC):
    """The base class: a LossAndGrad with what training needs besides, shapes, initial values and outputs to score.

    A subclass overrides `parameter_shapes`, `initialize`, `loss_and_grad` and `score`; `predict` and `targets` for
    outputs; `state_shapes`, `statistics_shapes`, `combine_statistics` and `update_state` for running statistics. Most
    models need none: a Layer with a Loss is `Supervised`, a function is a `FunctionObjective`.
    """

    input_shape: Shape | None = None
    """The shape of one example, or None for a flat vector of its features."""
    inputs_as_stored: bool = False
    """Whether `batch.x` holds inputs as they are stored, not cast to the parameters' dtype: integers stay integers, and
    a structured array, one field an input, is several inputs of one example. Targets may then have any shape too."""

    loss_scale: int = 1
    """A power of two by which gradients are multiplied; the step divides it out with the number of examples."""

    def scaled(self, loss_scale: int) -> Objective:
        """This objective with a loss scale; a function of the user's own has none.

        Parameters
        ----------
        loss_scale : int
            The power of two by which gradients are multiplied.

        Returns
        -------
        Objective
            With this scale.
        """
        return self

    @abstractmethod
    def parameter_shapes(self) -> Mapping[str, Shape]:
        """Names and shapes of the parameters.

        Returns
        -------
        Mapping[str, Shape]
            In the order in which they lie in the flat buffer.
        """

    def state_shapes(self) -> Mapping[str, Shape]:
        """Names and shapes of running statistics.

        Returns
        -------
        Mapping[str, Shape]
            None by default.
        """
        return {}

    def statistics_shapes(self) -> Mapping[str, Shape]:
        """Names and shapes of what a microbatch reports for the running statistics.

        Returns
        -------
        Mapping[str, Shape]
            None by default.
        """
        return {}

    def multiply_adds(self) -> int:
        """An estimate of forward's multiply-adds for one example.

        Returns
        -------
        int
            One per parameter by default.
        """
        return sum(prod(shape) for shape in self.parameter_shapes().values())

    @abstractmethod
    def initialize(self, params: Views, state: Views, seed: int) -> None:
        """Fills parameters and running statistics with their initial values, a function of the seed alone.

        Parameters
        ----------
        params, state : Views
            Both by name, to be overwritten.
        seed : int
            The run's seed.
        """

    @abstractmethod
    def loss_and_grad(self, params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        """Computes one microbatch.

        Parameters
        ----------
        params, grads, batch
            See `LossAndGrad`.

        Returns
        -------
        loss_sum, example_count
            See `LossAndGrad`.
        """

    @abstractmethod
    def score(self, params: Views, scratch: Views, batch: Batch) -> tuple[float, int, Array | None]:
        """Evaluates examples.

        Parameters
        ----------
        params : Views
            The parameters, read-only.
        scratch : Views
            Views of the parameters' names and shapes, zero before, for gradients that no code reads.
        batch : Batch
            The examples; `batch.training` is False.

        Returns
        -------
        loss_sum, example_count, outputs
            The sum of their losses, their number, and the outputs (k, n) for metrics, or None.
        """

    def predict(self, params: Views, batch: Batch) -> Array:
        """Predictions for the inputs.

        Parameters
        ----------
        params : Views
            The parameters, read-only.
        batch : Batch
            The examples; `batch.y` has no meaning.

        Returns
        -------
        array
            Probabilities or values (k, n).

        Raises
        ------
        ConfigurationError
            Where the objective has no outputs, as by default.
        """
        raise ConfigurationError("this model has no outputs to predict with; give distsgd.FunctionObjective outputs=")

    def targets(self, y: Array, dtype: np.dtype) -> Array:
        """Stored targets in the function's form.

        Parameters
        ----------
        y : array
            Targets of n examples, (n,) or (n, outputs).
        dtype : dtype
            The parameters' dtype.

        Returns
        -------
        array
            Targets (n,) or (outputs, n).
        """
        return y.T

    def has_outputs(self) -> bool:
        """Whether there are outputs to measure, and to predict with.

        Returns
        -------
        bool
            True by default.
        """
        return True

    def task(self, target_shape: Shape, num_classes: int | None) -> Task | None:
        """What the outputs stand for.

        Parameters
        ----------
        target_shape : tuple of int
            The shape of one example's target.
        num_classes : int or None
            The number of classes of integer labels, None for other targets.

        Returns
        -------
        Task or None
            None, by default, where the configuration's loss says it.
        """
        return None

    def environment(self) -> Mapping[str, str]:
        """What the bits of its results depend on besides the arrays: a framework's version, kernels, threads.

        Returns
        -------
        mapping of str to str
            By name; a run whose ranks differ in one reports that its bits aren't the same on any number of ranks, and
            so does one where a rank has an entry "doubt": a sentence that says why.
        """
        return {}

    def running(self) -> AbstractContextManager[None]:
        """What surrounds the training of a run, on every rank.

        Returns
        -------
        context manager
            Entered before the first step, and left after the last one or an error; it does nothing by default.
        """
        return nullcontext()

    def take_best(self, params: Views, state: Views) -> None:
        """Called on every rank at the end of a run, with the best parameters, or the last where none were validated.

        Parameters
        ----------
        params, state : Views
            Both by name, read-only; copy what has to outlive the call.
        """

    def overwrites_gradients(self) -> bool:
        """Whether `loss_and_grad` writes every element of every gradient, whatever was there before.

        Returns
        -------
        bool
            False where there is code of a user's: gradients start at zero in each call then.
        """
        return is_own(self)

    def repeats_itself(self) -> bool:
        """Whether it runs the same operations for all microbatches of one length, whatever their values and step are.

        Returns
        -------
        bool
            True lets a device record the operations of one step and replay them. A user's code may look at its numbers.
        """
        return is_own(self)

    def combine_statistics(self, left: Views, right: Views) -> None:
        """Joins two microbatches' statistics: see `StatefulLayer`.

        Parameters
        ----------
        left, right : Views
            Both by name; `left` is overwritten with what both are together.
        """

    def combine_pairs(self, left: Views, right: Views) -> None:
        """Joins the statistics of several pairs of microbatches at once, by default one pair after the other.

        Parameters
        ----------
        left, right : Views
            As for `combine_statistics`, each array with one axis more in front: that of the pairs.
        """
        pair_by_pair(self.combine_statistics, left, right)

    def update_state(self, state: Views, statistics: Views) -> None:
        """Moves the running statistics by one step's joined statistics: see `StatefulLayer`.

        Parameters
        ----------
        state : Views
            The running statistics, by name, to be moved.
        statistics : Views
            Those of the whole minibatch, by name.
        """


@dataclass(frozen=True)
class Supervised(Objective):
    """A model and a loss on its outputs.

    Parameters
    ----------
    model : Layer
        The layer, with one axis of outputs.
    loss : Loss
        The loss of its outputs.
    input_shape : tuple of int
        The shape in which the model takes one example.
    loss_scale : int, default 1
        See Objective.
    """

    model: Layer
    loss: Loss
    input_shape: Shape
    loss_scale: int = 1

    def scaled(self, loss_scale: int) -> Supervised:
        return replace(self, loss_scale=loss_scale)

    def parameter_shapes(self) -> Mapping[str, Shape]:
        return self.model.parameter_shapes()

    def state_shapes(self) -> Mapping[str, Shape]:
        return self.model.state_shapes() if isinstance(self.model, StatefulLayer) else {}

    def statistics_shapes(self) -> Mapping[str, Shape]:
        return self.model.statistics_shapes() if isinstance(self.model, StatefulLayer) else {}

    def multiply_adds(self) -> int:
        return self.model.multiply_adds(self.input_shape) or super().multiply_adds()

    def initialize(self, params: Views, state: Views, seed: int) -> None:
        self.model.initialize(params, seed, "")
        if isinstance(self.model, StatefulLayer):
            self.model.initialize_state(state)

    def loss_and_grad(self, params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        outputs, backward = self.model.forward_on_data(params, batch.x, batch, "")
        batch.device.check_outputs(outputs, batch.x)
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
        return float(np.sum(losses, dtype=np.float64)), len(batch), self.loss.point(outputs)

    def predict(self, params: Views, batch: Batch) -> Array:
        return self.loss.predict(self._outputs(params, batch))

    def _outputs(self, params: Views, batch: Batch) -> Array:
        """The model's outputs in evaluation; images are evaluated a few at a time, for memory and the cache."""
        together = len(batch)
        if len(self.input_shape) > 1:
            together = max(_EVALUATED_TOGETHER // self.multiply_adds(), _LEAST_TOGETHER)
        outputs = []
        for start in range(0, max(len(batch), 1), max(together, 1)):
            part = slice(start, start + together)
            own = replace(batch, x=batch.x[..., part], y=batch.y[..., part], indices=batch.indices[part])
            found = self.model.forward(params, own.x, own, "")[0]
            outputs.append(found if together >= len(batch) else found.copy())  # a layer may use an array again
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs, axis=-1)

    def targets(self, y: Array, dtype: np.dtype) -> Array:
        return self.loss.targets(y, dtype)

    def combine_statistics(self, left: Views, right: Views) -> None:
        if isinstance(self.model, StatefulLayer):
            self.model.combine_statistics(left, right)

    def combine_pairs(self, left: Views, right: Views) -> None:
        if isinstance(self.model, StatefulLayer):
            self.model.combine_pairs(left, right)

    def update_state(self, state: Views, statistics: Views) -> None:
        if isinstance(self.model, StatefulLayer):
            self.model.update_state(state, statistics)
