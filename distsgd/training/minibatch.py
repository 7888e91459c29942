"""The global minibatch of a step, as the ranks' workers gather its microbatches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

from distsgd.core.device import Array
from distsgd.core.layout import Views
from distsgd.data.loader import GatheredBatch, Loader
from distsgd.nn.batch import Batch
from distsgd.training.steps import StepOrder


class Minibatch(ABC):
    """The examples of step number `step` (from 0); bounds[k] : bounds[k + 1] of them are microbatch k.

    clock   epoch and step where the device's memory has them and the host doesn't know them
    """

    loader: Loader
    bounds: tuple[int, ...]
    step: int = 0
    epoch: int = 0
    clock: Array | None = None

    @abstractmethod
    def gather(self, start: int, stop: int, buffer: Array | None) -> GatheredBatch:
        """The examples [start, stop) of the minibatch, their inputs in `buffer` where that is given."""

    def batch(self, rows: GatheredBatch, microbatch: int, state: Views, statistics: Views) -> Batch:
        """A microbatch of gathered examples, as an objective takes it."""
        return self.loader.batch(
            rows, state, step=self.step, epoch=self.epoch, microbatch=microbatch, statistics=statistics,
            clock=self.clock,
        )  # fmt: skip


@final
class IndexedMinibatch(Minibatch):
    """The minibatch that an order names by its examples' indices."""

    def __init__(self, loader: Loader, bounds: tuple[int, ...], order: StepOrder) -> None:
        self.loader, self.bounds, self.order = loader, bounds, order
        self.step, self.epoch = order.step, order.epoch

    def gather(self, start: int, stop: int, buffer: Array | None) -> GatheredBatch:
        return self.loader.gather(self.order.indices[start:stop], self.epoch, buffer)

    def row_indices(self, first: int, last: int) -> tuple[int, ...]:
        """The rows of the data set that the microbatches [first, last) hold."""
        chosen = self.order.indices[self.bounds[first] : self.bounds[last]]
        return tuple(self.loader.examples.row_indices(chosen).tolist())
