"""The loader: microbatches gathered from examples, in the form that an objective takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from distsgd.core.device import CPU, Array, Device
from distsgd.core.errors import DataError
from distsgd.core.layout import Views
from distsgd.data.augmentation import Augmentation, move
from distsgd.data.examples import Examples
from distsgd.nn.batch import Batch
from distsgd.nn.objective import Objective


@dataclass(slots=True)
class GatheredBatch:
    """Gathered examples: inputs (n, features) in the model's dtype, stored targets, weights, and their row indices."""

    x: Array
    y: Array
    weights: Array | None
    row_indices: Array

    def on(self, device: Device) -> GatheredBatch:
        """A copy in the device's memory; the row indices stay on the host."""
        weights = None if self.weights is None else device.put(self.weights)
        return GatheredBatch(device.put(self.x), device.put(self.y), weights, self.row_indices)

    def slice(self, start: int, stop: int) -> GatheredBatch:
        """The examples [start, stop), without a copy."""
        weights = None if self.weights is None else self.weights[start:stop]
        return GatheredBatch(self.x[start:stop], self.y[start:stop], weights, self.row_indices[start:stop])


@dataclass(frozen=True)
class Loader:
    """Gathers microbatches of examples as an objective takes them.

    Parameters
    ----------
    examples
        Where they lie, on the host or on the device, they are gathered.
    objective, dtype
        The objective decides the shape of inputs and the form of targets, dtype is the model's.
    seed
        Of augmentation and of the batches' random words.
    with_targets
        Whether batches have targets; without, inputs alone are read.
    augmentation
        What is done to the images of training batches, and to no others.
    device
        Where batches are computed with.
    """

    examples: Examples
    objective: Objective
    dtype: np.dtype
    seed: int
    with_targets: bool = True
    augmentation: Augmentation | None = None
    device: Device = CPU

    def check(self) -> None:
        """Raises DataError where the examples don't fit the objective's input."""
        shape, features = self.objective.input_shape, int(np.prod(self.examples.x.shape[1:]))
        if shape is not None and int(np.prod(shape)) != features:
            raise DataError(
                f"the model takes examples of shape {shape}, {int(np.prod(shape))} numbers each, but the data has "
                f"{self.examples.x.shape[1:]}, {features} numbers each"
            )

    def gather(
        self, positions: Array, epoch: int | None = None, buffer: Array | None = None, row_indices: Array | None = None
    ) -> GatheredBatch:
        """The examples at these positions, copied out of the data set in the model's dtype.

        Inputs are C-ordered rows on every path, and become a transposed view in `batch`: the memory order of an operand
        is part of what GEMM computes.

        Parameters
        ----------
        positions
            Positions (n,) in the set of examples.
        epoch
            The epoch for which training images are augmented; None for no augmentation.
        buffer
            Memory for the inputs, at least (n, features) in the model's dtype: reused memory is faster than new.
        row_indices
            The row indices in the device's memory, where they are there already.
        """
        device, examples = self._place, self.examples
        rows = examples.row_indices(positions)
        there = device.put(rows) if row_indices is None else row_indices
        shape = (len(rows), *examples.x.shape[1:])
        out = None if buffer is None else buffer[: len(rows)].reshape(shape)
        as_it_is = examples.inputs is None and examples.scale == 1.0 and examples.x.dtype == self._input_dtype
        x = device.take(examples.x, there, out if as_it_is else None)
        if examples.check is not None:
            examples.check(x, rows)
        self._augment(x, positions, epoch)
        if examples.inputs is not None:
            x = examples.inputs.apply(x, self.dtype)
        elif examples.scale != 1.0:
            x = np.divide(x, examples.scale, out=out, dtype=self.dtype)
        elif x.dtype != self._input_dtype:
            x = x.astype(self._input_dtype)
        y = device.take(examples.y, there) if self.with_targets else device.empty((len(rows),), self.dtype)
        if self.with_targets and examples.targets is not None:
            y = examples.targets.apply(y, self.dtype)
        weights = None if examples.weights is None else device.take(examples.weights, there).astype(self.dtype)
        found = GatheredBatch(x.reshape(len(rows), math.prod(shape[1:])), y, weights, rows)
        return found if device is self.device else found.on(self.device)

    @cached_property
    def _place(self) -> Device:
        """Where the examples lie."""
        return self.device if self.device.holds(self.examples.x) else CPU

    @cached_property
    def _input_dtype(self) -> np.dtype:
        """Of gathered inputs: the model's, or the stored one where the objective takes inputs as they are stored."""
        as_stored = self.objective.inputs_as_stored and self.examples.inputs is None and self.examples.scale == 1.0
        return self.examples.x.dtype if as_stored else self.dtype

    def buffer(self, count: int) -> Array:
        """Memory for `gather`, of `count` examples."""
        make = self.device.empty if self._place is self.device else self.device.host_buffer
        return make((count, math.prod(self.examples.x.shape[1:])), self._input_dtype)

    def _augment(self, x: Array, positions: Array, epoch: int | None) -> None:
        """In place, makes of gathered rows x the examples at these positions, and augments them.

        Examples that are moved or augmented lie on the host.
        """
        if len(self.examples.shifts) > 1:
            indices = self.examples.example_indices(positions)
            down, right = np.array(self.examples.shifts)[indices // len(self.examples.x)].T
            move(x, down, right, int(np.abs(self.examples.shifts).max()))
        if epoch is not None and self.augmentation is not None:
            indices = self.examples.example_indices(positions)
            words = self.augmentation.random_words(self.examples.capacity, self.seed, epoch, indices)
            self.augmentation.apply(x, words)

    def batch(
        self, chosen: Array | GatheredBatch, state: Views, *, step: int = 0, epoch: int = 0, microbatch: int = 0,
        statistics: Views | None = None, clock: Array | None = None,
    ) -> Batch:  # fmt: skip
        """The batch of these examples, by positions or gathered already.

        It is a training batch where `statistics` is given: the views that its batch statistics are written to.
        """
        training = statistics is not None
        gathered = chosen if isinstance(chosen, GatheredBatch) else self.gather(chosen, epoch if training else None)
        x, shape = self.device.aligned(gathered.x).T, self.objective.input_shape
        if self.objective.inputs_as_stored:
            x = x.reshape(*self.examples.x.shape[1:], len(gathered.row_indices))
        elif shape is not None and len(shape) > 1:
            x = x.reshape(*shape, len(gathered.row_indices))
        y = self.objective.targets(gathered.y, self.dtype) if self.with_targets else gathered.y
        return Batch(x=x, y=y, indices=gathered.row_indices, weights=gathered.weights, epoch=epoch, step=step,
                     microbatch=microbatch, seed=self.seed, training=training, state=state, device=self.device,
                     statistics={} if statistics is None else statistics, clock=clock)  # fmt: skip
