"""Steps of a GPU as CUDA graphs: recorded once, and started again with other numbers.

Launching a small network's kernels one by one takes longer than running them. A graph starts all of a step at once,
and the host waits for none of them: what a step has to tell is copied to pinned memory, and looked at when it is
needed. All that differs from one step to the next lies in the GPU's memory, in `StepInputs`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from distsgd.core.device import Array, is_on_host
from distsgd.core.errors import first_line
from distsgd.data.loader import GatheredBatch, Loader
from distsgd.gpu.streaming import PLACES, Stream
from distsgd.parallel.reduction import GradientReduction

IN_FLIGHT = 64
"""Steps after which the host looks at their results at the latest: so much pinned memory there is."""

_GRAPHS = 2 * PLACES
"""Graphs that are kept: an epoch has one length of minibatch, or two where its last is shorter; see `Stream`."""


class NotRecorded(Exception):
    """A step can't be recorded."""


class StepInputs(NamedTuple):
    """What a step takes from the GPU's memory, where it lies at the same place in each step.

    rows      the examples where they come from the host; None where the data set lies on the GPU
    numbers   the rows of the data set, (n,) int64
    clock     epoch and step, (2,) uint64
    scalars   the optimizer's, (s,) float64; NaN where nothing is to be updated any more
    trouble   (ranks,) float64: not 0 from the first step on in which a rank has met what isn't finite
    """

    rows: GatheredBatch | None
    numbers: Array
    clock: Array
    scalars: Array
    non_finite: Array


@dataclass(frozen=True)
class Report:
    """What a step has told: this rank's microbatches' records, and whether there was trouble in it or before it."""

    records: Array
    non_finite: bool


@dataclass(frozen=True)
class _Graph:
    """A graph, and what has to live as long as it: all memory that its kernels were told the place of.

    The pool is its own, see `_pool`. Memory of any other one is handed out again when the arrays of the recording are
    gone, and a later start of the graph would write over whatever lies there then.
    """

    graph: Any
    pool: Any
    inputs: StepInputs
    others: tuple[Any, ...]


class StepGraphs:
    """Graphs of one step, by the bounds of its microbatches, and by the place of its examples where they come from the
    host.

    loader    of the training examples
    reduction  that goes by itself
    compute   launches a step that takes its numbers from StepInputs; returns its records, on the GPU, and whatever
              else has to stay where it is
    longest   examples of a minibatch at most
    scalars   numbers that the optimizer needs to know of a step
    """

    def __init__(
        self,
        loader: Loader,
        reduction: GradientReduction,
        compute: Callable[[tuple[int, ...], StepInputs], tuple[Array, tuple[Any, ...]]],
        longest: int,
        scalars: int,
    ) -> None:
        device = loader.device
        self._loader, self._device, self._compute = loader, device, compute
        self._stream = Stream(device, loader, longest) if is_on_host(loader.examples.x) else None
        self._communicator, self._record_shape = reduction.communicator, reduction.records.shape
        self._scalar_count = scalars
        numbers = longest if self._stream is None else 0
        xp, words, ranks = device.xp, scalars + 2 + numbers, self._communicator.size
        self._inputs, self._non_finite = xp.zeros(words, np.int64), xp.zeros(ranks)
        self._report = xp.zeros(ranks + reduction.records.size)
        self._inputs_of_slots = device.host_buffer((IN_FLIGHT, words), np.dtype(np.int64))
        self._reports_of_slots = device.host_buffer((IN_FLIGHT, self._report.size), np.dtype(np.float64))
        self._graphs: OrderedDict[tuple[int, ...], _Graph] = OrderedDict()
        self._met: set[tuple[int, ...]] = set()
        self._refused = False
        self.in_flight = 0

    def refuse(self) -> None:
        """There are to be no more graphs: from now on no bounds are known, and others may have the graphs' memory."""
        self._refused = True
        self._wait()
        self._graphs.clear()

    def close(self) -> None:
        """Ends all graphs, and then the communicator: NCCL waits for every graph of its messages before it ends.

        Memory goes last, for the GPU gives it back behind all that runs, be it a message that nobody answers.
        """
        memory = [(graph.pool, graph.others) for graph in self._graphs.values()]
        self._graphs.clear()
        self._communicator.close()
        del memory

    def is_known(self, bounds: tuple[int, ...]) -> bool:
        """Whether a step with these bounds was seen before: the first one compiles kernels and finds memory, and is
        made without a graph."""
        if self._refused or bounds in self._met:
            return not self._refused
        self._met.add(bounds)
        return False

    def start(self, bounds: tuple[int, ...], indices: Array, epoch: int, step: int, scalars: tuple[float, ...]) -> None:
        """Starts a step, which is `in_flight` then. There has to be room for it: less than UNDER_WAY are."""
        place = 0 if self._stream is None else self._stream.send(indices, epoch)
        graph = self._graph(bounds, place)
        inputs, count = self._inputs_of_slots[self.in_flight], self._scalar_count
        inputs[:count].view(np.float64)[:] = scalars
        inputs[count : count + 2].view(np.uint64)[:] = epoch, step
        if self._stream is None:
            inputs[count + 2 : count + 2 + len(indices)] = self._loader.examples.row_indices(indices)
        self._inputs.set(inputs)
        graph.graph.launch()
        self._communicator.launched()
        if self._stream is not None:
            self._stream.used(place)
        self._report.get(out=self._reports_of_slots[self.in_flight], blocking=False)
        self.in_flight += 1

    def reports(self) -> list[Report]:
        """Waits for all steps in flight; what each has told, in their order."""
        if not self.in_flight:
            return []
        self._wait()
        told = self._reports_of_slots[: self.in_flight].copy()
        self.in_flight = 0
        ranks = self._communicator.size
        return [Report(one[ranks:].reshape(self._record_shape), bool(one[:ranks].any())) for one in told]

    def _wait(self) -> None:
        self._communicator.synchronize()
        self._device.synchronize()

    def _graph(self, bounds: tuple[int, ...], place: int) -> _Graph:
        key = (*bounds, place)
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = self._record_together(bounds, place)
            if len(self._graphs) > _GRAPHS:
                self._device.synchronize()
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        return graph

    def _record_together(self, bounds: tuple[int, ...], place: int) -> _Graph:
        """A new graph, on all ranks; NotRecorded on all where one of them can't. Collective."""
        graph, problem = None, ""
        try:
            graph = self._record(bounds, place)
        except Exception as error:  # whatever CUDA says: launched one by one, the same kernels need no recording
            problem = first_line(error)
        for one in self._communicator.allgather_object(problem):
            if one:
                raise NotRecorded(one)
        assert graph is not None
        return graph

    def _record(self, bounds: tuple[int, ...], place: int) -> _Graph:
        xp, scalars, count = self._device.xp, self._scalar_count, bounds[-1]
        rest = self._inputs[scalars + 2 :]
        inputs = StepInputs(
            None if self._stream is None else self._stream.rows(place, count),
            rest[:count],
            self._inputs[scalars : scalars + 2].view(np.uint64),
            self._inputs[:scalars].view(np.float64),
            self._non_finite,
        )
        pool, stream = _pool(xp), xp.cuda.get_current_stream()
        with xp.cuda.using_allocator(pool.malloc):
            stream.begin_capture()
            try:
                records, others = self._compute(bounds, inputs)
                self._report[: self._non_finite.size] = self._non_finite
                self._report[self._non_finite.size :] = records.ravel()
            except BaseException:
                with suppress(Exception):  # the recording is broken, which is no news
                    stream.end_capture()
                raise
            graph = stream.end_capture()
        return _Graph(graph, pool, inputs, others)


def _pool(xp: Any) -> Any:
    """A memory pool that gives nothing back to CUDA as long as it is there.

    CuPy's own does so when it runs short, with what no array uses at that time; and a graph's kernels write there.
    """
    taken: list[Any] = []

    def take(size: int) -> Any:
        taken.append(xp.cuda.Memory(size))
        return xp.cuda.MemoryPointer(taken[-1], 0)

    return xp.cuda.MemoryPool(take)
