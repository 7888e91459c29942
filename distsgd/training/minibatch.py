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
    """The examples of step number `step` (from 0); bounds[k] : bounds[k + 1] of them are microbatch k."""

    __slots__ = ("bounds", "step")

    def __init__(self, step: int, bounds: tuple[int, ...]) -> None:
        self.step, self.bounds = step, bounds

    @abstractmethod
    def gather(self, start: int, stop: int, buffer: Array | None) -> GatheredBatch:
        """The examples [start, stop) of the minibatch, their inputs in `buffer` where that is given."""

    @abstractmethod
    def batch(self, rows: GatheredBatch, microbatch: int, state: Views, statistics: Views) -> Batch:
        """A microbatch of gathered examples, as an objective takes it."""


@final
class IndexedMinibatch(Minibatch):
    """The minibatch that an order names by its examples' indices."""

    __slots__ = ("loader", "order")

    def __init__(self, loader: Loader, order: StepOrder, bounds: tuple[int, ...]) -> None:
        super().__init__(order.step, bounds)
        self.loader, self.order = loader, order

    def gather(self, start: int, stop: int, buffer: Array | None) -> GatheredBatch:
        return self.loader.gather(self.order.indices[start:stop], self.order.epoch, buffer)

    def batch(self, rows: GatheredBatch, microbatch: int, state: Views, statistics: Views) -> Batch:
        step, epoch = self.step, self.order.epoch
        return self.loader.batch(rows, state, step=step, epoch=epoch, microbatch=microbatch, statistics=statistics)

    def row_indices(self, first: int, last: int) -> tuple[int, ...]:
        """The rows of the data set that the microbatches [first, last) hold."""
        chosen = self.order.indices[self.bounds[first] : self.bounds[last]]
        return tuple(self.loader.examples.row_indices(chosen).tolist())
