"""Steps of a GPU as CUDA graphs: recorded once, and started again with other inputs.

Launching a small network's kernels one by one takes longer than running them. A graph starts all kernels of a step at
once, and the host waits for none of them: a step's results are copied to pinned memory, and read when they are
needed. Everything that differs from step to step is in the GPU's memory, in a `RecordedMinibatch`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from distsgd.core.device import Array, in_host_memory
from distsgd.core.errors import first_line
from distsgd.data.loader import Loader
from distsgd.gpu.recorded_step import RecordedMinibatch
from distsgd.gpu.streaming import PLACES, Stream
from distsgd.parallel.reduction import GradientReduction

IN_FLIGHT = 64
"""The most steps in flight; pinned memory holds the results of so many."""

_GRAPHS = 2 * PLACES
"""Graphs that are kept: an epoch has minibatches of one length, or of two where the last is shorter; see `Stream`."""


class NotRecorded(Exception):
    """A step can't be recorded."""


@dataclass(frozen=True)
class _Graph:
    """A graph, and what has to live as long as it: all memory whose addresses its kernels hold.

    The pool is its own, see `memory_pool`. Another pool would reuse the memory when the recording's arrays are deleted,
    and a later start of the graph would overwrite what is there then.
    """

    graph: Any
    pool: Any
    minibatch: RecordedMinibatch
    others: tuple[Any, ...]


class StepGraphs:
    """Graphs of a step, by the bounds of its microbatches, and by the buffer of examples that come from the host.

    loader     of the training examples
    reduction  an asynchronous one
    compute    launches a step on a recorded minibatch; returns its records, on the GPU, and other arrays that have to
               keep their addresses
    longest    the most examples of a minibatch
    scalars    how many scalars of a step the optimizer needs
    """

    def __init__(
        self,
        loader: Loader,
        reduction: GradientReduction,
        compute: Callable[[RecordedMinibatch], tuple[Array, tuple[Any, ...]]],
        longest: int,
        scalars: int,
    ) -> None:
        device = loader.device
        self._loader, self._device, self._compute = loader, device, compute
        self._stream = Stream(device, loader, longest) if in_host_memory(loader.examples.x) else None
        self._communicator, self._transport = reduction.communicator, reduction.transport
        self._record_shape = reduction.records.shape
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
        """Record no more graphs: from now on no bounds are known, and the graphs' memory is free."""
        self._refused = True
        self._wait()
        self._graphs.clear()

    def close(self) -> None:
        """Delete all graphs, then close the transport: NCCL waits for every graph with its messages before it ends.

        Memory is freed last: the GPU frees it after all that runs, including a message that no rank answers.
        """
        memory = [(graph.pool, graph.others) for graph in self._graphs.values()]
        self._graphs.clear()
        self._transport.close()
        del memory

    def is_known(self, bounds: tuple[int, ...]) -> bool:
        """Whether a step with these bounds has run before: the first one compiles kernels and allocates memory, without
        a graph."""
        if self._refused or bounds in self._met:
            return not self._refused
        self._met.add(bounds)
        return False

    def start(self, bounds: tuple[int, ...], indices: Array, epoch: int, step: int, scalars: tuple[float, ...]) -> None:
        """Start a step, which is then `in_flight`. Fewer than IN_FLIGHT steps may be in flight before."""
        place = 0 if self._stream is None else self._stream.send(indices, epoch)
        graph = self._graph(bounds, place)
        inputs, count = self._inputs_of_slots[self.in_flight], self._scalar_count
        inputs[:count].view(np.float64)[:] = scalars
        inputs[count : count + 2].view(np.uint64)[:] = epoch, step
        if self._stream is None:
            inputs[count + 2 : count + 2 + len(indices)] = self._loader.examples.row_indices(indices)
        self._inputs.set(inputs)
        graph.graph.launch()
        self._transport.launched()
        if self._stream is not None:
            self._stream.used(place)
        self._report.get(out=self._reports_of_slots[self.in_flight], blocking=False)
        self.in_flight += 1

    def reports(self) -> list[tuple[Array, bool]]:
        """Wait for all steps in flight; return in order the records of this rank's microbatches, and whether that step
        or an earlier one was non-finite."""
        if not self.in_flight:
            return []
        self._wait()
        found = self._reports_of_slots[: self.in_flight].copy()
        self.in_flight = 0
        ranks = self._communicator.size
        return [(one[ranks:].reshape(self._record_shape), bool(one[:ranks].any())) for one in found]

    def _wait(self) -> None:
        self._transport.synchronize()
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
        except Exception as error:  # any error of CUDA: launched one by one, the same kernels need no recording
            problem = first_line(error)
        for one in self._communicator.allgather_object(problem):
            if one:
                raise NotRecorded(one)
        assert graph is not None
        return graph

    def _record(self, bounds: tuple[int, ...], place: int) -> _Graph:
        xp, count, scalars = self._device.xp, bounds[-1], self._scalar_count
        numbers, clock = self._inputs[scalars + 2 :][:count], self._inputs[scalars : scalars + 2].view(np.uint64)
        rows = None if self._stream is None else self._stream.rows(place, count)
        minibatch = RecordedMinibatch(
            self._loader, bounds, rows, numbers, self._inputs[:scalars].view(np.float64), self._non_finite, clock
        )
        pool, stream = memory_pool(xp), xp.cuda.get_current_stream()
        with xp.cuda.using_allocator(pool.malloc):
            stream.begin_capture()
            try:
                records, others = self._compute(minibatch)
                self._report[: self._non_finite.size] = self._non_finite
                self._report[self._non_finite.size :] = records.ravel()
            except BaseException:
                with suppress(Exception):  # the recording is broken, as the first error says
                    stream.end_capture()
                raise
            graph = stream.end_capture()
        return _Graph(graph, pool, minibatch, others)


def memory_pool(xp: Any) -> Any:
    """A memory pool that frees no memory as long as it exists.

    CuPy's own pool frees memory that no array uses when it runs short, and a graph's kernels write there.
    """
    taken: list[Any] = []

    def take(size: int) -> Any:
        taken.append(xp.cuda.Memory(size))
        return xp.cuda.MemoryPointer(taken[-1], 0)

    return xp.cuda.MemoryPool(take)
