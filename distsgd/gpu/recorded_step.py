"""A step that can be recorded: it reads no number on the host, and its inputs from the same places each time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from distsgd.core.device import Array
from distsgd.core.kernels import kernels_for
from distsgd.data.loader import GatheredBatch, Loader
from distsgd.training.minibatch import Minibatch
from distsgd.training.step import TrainingStep


@final
@dataclass(eq=False)
class RecordedMinibatch(Minibatch):
    """What a recorded step reads from its device's memory, at the same place in each step.

    rows        the examples where they come from the host; None where the data set lies on the device
    numbers     the rows of the data set, (n,) int64
    scalars     the optimizer's, (s,) float64; NaN where nothing is updated any more
    non_finite  (ranks,) float64: not 0 from the first step on in which a rank has found a non-finite number
    clock       epoch and step, (2,) uint64
    """

    loader: Loader
    bounds: tuple[int, ...]
    rows: GatheredBatch | None
    numbers: Array
    scalars: Array
    non_finite: Array
    clock: Array | None

    def gather(self, start: int, stop: int, buffer: Array | None) -> GatheredBatch:
        if self.rows is not None:
            return self.rows.slice(start, stop)
        positions = np.zeros(stop - start, np.int64)  # on the host, and not read
        return self.loader.gather(positions, 0, buffer, self.numbers[start:stop])


def compute_recorded(step: TrainingStep, minibatch: RecordedMinibatch) -> tuple[Array, tuple[Any, ...]]:
    """Launches a whole step; returns its records, and other arrays that have to keep their addresses."""
    gradients, reduction, bounds = step.gradients, step.reduction, minibatch.bounds
    gradients.clear()
    reduction.begin(bounds)
    gradients.compute_of_worker(0, minibatch)
    if gradients.error is not None:
        raise gradients.error
    reduction.launch_sums(bounds)
    _launch_update(step, minibatch)
    reduction.all_gather()
    return reduction.records, (gradients.input_buffers[0],)


def _launch_update(step: TrainingStep, minibatch: RecordedMinibatch) -> None:
    """One update. What isn't finite is marked in the minibatch's `non_finite`, and ends all updates."""
    update, reduction, bounds = step.update, step.reduction, minibatch.bounds
    communicator, params, kernels = reduction.communicator, reduction.params, kernels_for(reduction.params)
    own = minibatch.non_finite[communicator.rank : communicator.rank + 1]
    for chunk in update.chunks[0]:
        update.sum_up(chunk, bounds, bounds[-1] * step.objective.loss_scale)
        kernels.find_non_finite(chunk.total, own)
    kernels.find_non_finite_losses(reduction.records, own, params)
    reduction.transport.allgather_slices(minibatch.non_finite, [1] * communicator.size)
    kernels.hold_after_non_finite(minibatch.non_finite, minibatch.scalars, params)
    for chunk in update.chunks[0]:
        update.apply(chunk, tuple(minibatch.scalars))
