"""Sums of gradients that travel between GPUs while backward goes on: a stretch at a time, on a stream of their own.

Backward fills a gradient from its end to its beginning. What is complete is cut into stretches of some megabytes, and
each is reduced as soon as all of it is there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from distsgd.communication.base import Parts
from distsgd.communication.exchange import BLOCK, Partition, Plan
from distsgd.communication.nccl import NcclCommunicator
from distsgd.communication.tree import Span, TreeSum, part, scratch_levels, tree_sum
from distsgd.device import Array

STRETCH_BYTES = 4 << 20
"""What is sent at once: enough for a link's bandwidth, and little enough that the last one, which nothing hides, is
short."""


class Reduction(ABC):
    """Reduces one stretch of all ranks' rows, on the current stream; every rank the same stretches in the same order.

    total   what comes of it, on the elements that this rank owns
    """

    def __init__(self, communicator: NcclCommunicator, plan: Plan, rows: Mapping[Span, Array]) -> None:
        self.communicator, self.plan, self.rows = communicator, plan, rows
        self.partition: Partition = plan.partition
        self.owned = self.partition.elements_of(communicator.rank)
        self.total = plan.device.xp.empty(self.owned.stop - self.owned.start, plan.dtype)

    @abstractmethod
    def reduce(self, stretch: slice, bounds: tuple[int, ...]) -> None:
        """Fills what this rank owns of the stretch."""


class TreeReduction(Reduction):
    """In the tree's order, where each rank has one lane.

    Each rank adds up a part of every stretch, not the whole of those that it owns, so that all links are busy with each
    stretch; the sums, a rank's share of the gradient, then go to their owners.
    """

    def __init__(self, communicator: NcclCommunicator, plan: Plan, rows: Mapping[Span, Array]) -> None:
        super().__init__(communicator, plan, rows)
        ((_, self._row),) = rows.items()
        blocks = -(-_elements_together(plan) // BLOCK)
        longest = min(-(-blocks // self.partition.ranks) * BLOCK, self.partition.elements)
        xp = plan.device.xp
        self._arrived = xp.empty(self.partition.ranks * longest, plan.dtype)
        self._scratch = xp.empty((scratch_levels(self.partition.lanes, on_cpu=False), longest), plan.dtype)
        self._prepared: dict[tuple[int, tuple[int, ...]], tuple[TreeSum, tuple[Parts, Parts], tuple[Parts, Parts]]] = {}

    def reduce(self, stretch: slice, bounds: tuple[int, ...]) -> None:
        found = self._prepared.get((stretch.start, bounds))
        if found is None:
            found = self._prepared[stretch.start, bounds] = self._prepare(stretch, bounds)
        lanes, (sent, received), (given, taken) = found
        send = self.communicator.alltoall
        send(self._row.view(np.uint8), sent, self._arrived.view(np.uint8), received)
        with np.errstate(all="ignore"):  # numbers that aren't finite are told once, by name
            summed = lanes.compute()
        send(summed.view(np.uint8), given, self.total.view(np.uint8), taken)

    def _prepare(
        self, stretch: slice, bounds: tuple[int, ...]
    ) -> tuple[TreeSum, tuple[Parts, Parts], tuple[Parts, Parts]]:
        me, ranks, lanes = self.communicator.rank, range(self.partition.ranks), self.partition.lanes
        nothing = slice(0, 0)
        spans = [self._part(stretch, rank) for rank in ranks]
        mine = spans[me]
        count = mine.stop - mine.start
        rows = {(rank, rank + 1): self._arrived[rank * count : (rank + 1) * count] for rank in ranks}
        rows[me, me + 1] = self._row[mine]
        lanes_sum = tree_sum(rows, (0, lanes), bounds, slice(0, count), self._scratch)
        assert lanes_sum is not None, "a minibatch has at least one example"
        owned = [self.partition.elements_of(rank) for rank in ranks]
        return (
            lanes_sum,
            (
                self._bytes(nothing if rank == me else span for rank, span in enumerate(spans)),
                self._bytes(nothing if rank == me else slice(rank * count, (rank + 1) * count) for rank in ranks),
            ),
            (
                self._bytes(_inside(mine, of_rank, mine.start) for of_rank in owned),
                self._bytes(_inside(span, self.owned, self.owned.start) for span in spans),
            ),
        )

    def _part(self, stretch: slice, rank: int) -> slice:
        """What a rank adds up of a stretch: whole blocks."""
        first, last = part(-(-(stretch.stop - stretch.start) // BLOCK), self.partition.ranks, rank)
        return slice(min(stretch.start + first * BLOCK, stretch.stop), min(stretch.start + last * BLOCK, stretch.stop))

    def _bytes(self, spans: Any) -> Parts:
        width = self.plan.dtype.itemsize
        return Parts.of(slice(span.start * width, span.stop * width) for span in spans)


class Overlapped:
    """Hands stretches to a reduction as they become complete, from the end of the buffer to its beginning.

    The reduction's stream waits for the stream that computes at each stretch, and that one for it at the end.
    """

    def __init__(self, reduction: Reduction) -> None:
        plan, self.reduction = reduction.plan, reduction
        cuda, length = plan.device.xp.cuda, _elements_together(plan)
        elements = plan.partition.elements
        starts = reversed(range(0, elements, length))
        self.stretches = [slice(start, min(start + length, elements)) for start in starts]
        self._cuda, self._stream = cuda, cuda.Stream(non_blocking=True)
        self._complete = [cuda.Event(disable_timing=True) for _ in self.stretches]
        self._reduced = cuda.Event(disable_timing=True)
        self._next = 0
        self._bounds: tuple[int, ...] = ()

    @property
    def sums(self) -> dict[Span, Array]:
        """The sum of all lanes, as the tree's root, on the elements that this rank owns."""
        return {(0, self.reduction.partition.lanes): self.reduction.total}

    def begin(self, bounds: tuple[int, ...]) -> None:
        """A step begins, whose lanes have these bounds."""
        self._next, self._bounds = 0, bounds

    def complete(self, first: int) -> None:
        """This rank's row is complete from element `first` on."""
        while self._next < len(self.stretches) and self.stretches[self._next].start >= first:
            mark, stretch = self._complete[self._next], self.stretches[self._next]
            mark.record(self._cuda.get_current_stream())
            self._stream.wait_event(mark)
            with self._stream:
                self.reduction.reduce(stretch, self._bounds)
            self._next += 1

    def finish(self) -> None:
        """All of the row is complete, or will not be used: what is left is sent, and what follows waits for the sum."""
        self.complete(0)
        self._reduced.record(self._stream)
        self._cuda.get_current_stream().wait_event(self._reduced)


def make_overlapped(communicator: NcclCommunicator, plan: Plan, rows: Mapping[Span, Array]) -> Overlapped | None:
    """For ranks by themselves; None where the tree's sums are to be sent when all of them are there."""
    partition = plan.partition
    if partition.lanes != partition.ranks or partition.elements <= _elements_together(plan):
        return None
    return Overlapped(TreeReduction(communicator.beside(), plan, rows))


def _elements_together(plan: Plan) -> int:
    """Elements of a stretch: whole blocks."""
    return max(STRETCH_BYTES // plan.dtype.itemsize // BLOCK, 1) * BLOCK


def _inside(span: slice, limits: slice, origin: int) -> slice:
    """The part of a span that is inside limits, counted from an origin; empty where there is none."""
    start, stop = max(span.start, limits.start), min(span.stop, limits.stop)
    return slice(start - origin, stop - origin) if start < stop else slice(0, 0)
