"""The first part of a step: the gradients of this rank's microbatches, added in the tree's order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import DistsgdError, raise_first, users_error
from distsgd.core.layout import Views
from distsgd.data.loader import GatheredBatch
from distsgd.parallel.tree import Span, TreeStep, buffers_needed, schedule
from distsgd.training.minibatch import Minibatch
from distsgd.training.non_finite import all_finite
from distsgd.training.running_statistics import RunningStatistics
from distsgd.training.stacks import stacks_of
from distsgd.training.steps import StepParts
from distsgd.training.zero_gradients import ZeroGradients


class _NodeBuffers:
    """Where one worker adds up the microbatches of one node of the tree: the row itself, then scratch, one a level."""

    def __init__(self, node: Span, flats: list[Array], views: Callable[[Array], Views]) -> None:
        self.node, self.flats = node, flats
        self.views = [views(flat) for flat in flats]


@final
class MicrobatchGradients:
    """Fills the reduction's rows with gradient sums, and its records with what each microbatch reports.

    guarded  look at each microbatch's gradient, and report one that isn't finite by a count that is NaN
    error    the first error of any worker in the last step; the reduction reports it
    zeros    the parameters without a gradient so far, until they are reported
    """

    def __init__(self, parts: StepParts, statistics: RunningStatistics) -> None:
        objective, reduction, loader, layout = parts.objective, parts.reduction, parts.loader, parts.layout
        self.objective, self.reduction, self.loader, self.statistics = objective, reduction, loader, statistics
        self.guarded, self._parts = parts.guarded, parts
        self.error: DistsgdError | None = None
        # Ranks may share the parameters, so a model may only read them.
        self._params = layout.views(reduction.params).read_only()
        self._views: Callable[[Array], Views] = layout.views
        if reduction.partition.ranks > 1:
            from distsgd.training.by_layer import views_by_layer

            self._params, self._views = views_by_layer(parts)
        self._state = statistics.running.read_only()
        self._workers = parts.workers.that_may_call(objective)
        self.take_rows()
        self.input_buffers = [loader.buffer(0)] * self._workers.count
        self._zeroes = not objective.overwrites_gradients()
        trained = {name for name in layout.names if not parts.regularization.freezes(name)}
        self.zeros = ZeroGradients(trained) if self._zeroes else None

    def take_rows(self) -> None:
        """Prepares for the rows and records that the reduction has now."""
        self._first = self.reduction.first_microbatch
        self._buffers = [self._node_buffers(worker) for worker in range(self._workers.count)]
        self._stacks = [stacks_of(self._parts, buffers, self._params) for buffers in self._buffers]

    def _node_buffers(self, worker: int) -> list[_NodeBuffers]:
        first, last = self.reduction.worker_spans[worker]
        nodes = [node for node in self.reduction.rows if first <= node[0] and node[1] <= last]
        deepest = max((buffers_needed(*node) for node in nodes), default=1)
        scratch = [np.zeros_like(self.reduction.params) for _ in range(deepest - 1)]
        return [_NodeBuffers(node, [self.reduction.rows[node], *scratch], self._views) for node in nodes]

    def clear(self) -> None:
        """Begins a step: nothing is reported yet."""
        self.reduction.records[:] = 0.0
        self.error = None

    def compute(self, minibatch: Minibatch) -> None:
        """All of this rank's microbatches, by its workers."""
        if self.statistics.are_copied:
            self._state = self.statistics.for_model()
        self._workers.run(lambda worker: self.compute_of_worker(worker, minibatch))

    def compute_of_worker(self, worker: int, minibatch: Minibatch) -> None:
        """One worker's microbatches; keeps the first error of any worker."""
        bounds, microbatch = minibatch.bounds, self.reduction.worker_spans[worker][0]
        try:
            start, gathered = self._gather(worker, minibatch)
            with np.errstate(all="ignore"):  # a loss that isn't finite is reported once, by name
                stacks = self._stacks[worker]
                if gathered is not None and stacks is not None and stacks.compute(minibatch, gathered, self._state):
                    return
                for buffers in self._buffers[worker]:
                    for plan in schedule(*buffers.node, bounds):
                        microbatch = plan.microbatch
                        begin, end = bounds[microbatch], bounds[microbatch + 1]
                        if gathered is None:
                            rows = minibatch.gather(begin, end, None)
                        else:
                            rows = gathered.slice(begin - start, end - start)
                        self._compute_microbatch(buffers, plan, minibatch, rows)
        except DistsgdError as error:
            self.error = self.error or error
        except BaseException as error:
            rank, hosts = self.reduction.communicator.rank, self.reduction.communicator.hosts
            place = f"step {minibatch.step + 1}, microbatch {microbatch}"
            where = f"the model failed on rank {rank} ({hosts[rank]}), {place}"
            self.error = self.error or users_error(error, where)

    def _gather(self, worker: int, minibatch: Minibatch) -> tuple[int, GatheredBatch | None]:
        """(the first example of a worker, all of its examples); None where they are too many to gather at once."""
        first, last = self.reduction.worker_spans[worker]
        start, stop = minibatch.bounds[first], minibatch.bounds[last]
        buffer = self.input_buffers[worker]
        if len(buffer) < stop - start:
            features = math.prod(self.loader.examples.x.shape[1:])
            if (stop - start) * features * buffer.itemsize > self.loader.device.gather_limit:
                return start, None
            buffer = self.input_buffers[worker] = self.loader.buffer(stop - start)
        return start, minibatch.gather(start, stop, buffer)

    def _compute_microbatch(self, to: _NodeBuffers, plan: TreeStep, minibatch: Minibatch, rows: GatheredBatch) -> None:
        own, flat, records = plan.microbatch - self._first, to.flats[plan.target], self.reduction.records
        batch = minibatch.batch(rows, plan.microbatch, self._state, self.statistics.own[own])
        if self._zeroes:
            flat[...] = 0.0
        loss_sum, count = self.objective.loss_and_grad(self._params, to.views[plan.target], batch)
        if self.zeros is not None:
            self.zeros.look(to.views[plan.target])
        records[own, 0] = loss_sum
        records[own, 1] = count
        if self.guarded and not (all_finite(flat) and all_finite(records[own, 2:])):
            records[own, 1] = math.nan  # all ranks see it after the reduction
        for into, other in plan.additions:
            np.add(to.flats[into], to.flats[other], out=to.flats[into])

    def report_zeros(self) -> None:
        """Rank 0 names the parameters without a gradient, once. Collective."""
        if self.zeros is not None:
            self.zeros.report(self.reduction.communicator)
            self.zeros = None

    def raise_first_error(self) -> None:
        """Raises on all ranks the error of the lowest rank that has one. Collective."""
        communicator = self.reduction.communicator
        self.reduction.all_gather()  # ends the step: the caller may catch this and make another one
        raise_first(communicator.allgather_object(self.error), self.error, communicator.rank)
