"""The first part of a step: the gradients of this rank's microbatches, added in the tree's order."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import final

import numpy as np

from distsgd.core.device import Array, to_host
from distsgd.core.errors import DistsgdError, raise_first, users_error
from distsgd.core.layout import Views
from distsgd.core.output import say
from distsgd.data.loader import GatheredBatch
from distsgd.parallel.communicator import Communicator
from distsgd.parallel.tree import Span, TreeStep, buffers_needed, schedule
from distsgd.training.minibatch import Minibatch
from distsgd.training.non_finite import all_finite
from distsgd.training.running_statistics import RunningStatistics
from distsgd.training.steps import StepParts


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
        self.guarded, self._first = parts.guarded, reduction.first_microbatch
        self.error: DistsgdError | None = None
        # Ranks may share the parameters, so a model may only read them.
        self._params = layout.views(reduction.params).read_only()
        views: Callable[[Array], Views] = layout.views
        if reduction.partition.ranks > 1:
            from distsgd.training.by_layer import views_by_layer

            self._params, views = views_by_layer(parts)
        self._state = statistics.running.read_only()
        self._workers = parts.workers.that_may_call(objective)
        self._buffers = [self._node_buffers(worker, views) for worker in range(self._workers.count)]
        self.input_buffers = [loader.buffer(0)] * self._workers.count
        self._zeroes = not objective.overwrites_gradients()
        trained = {name for name in layout.names if not parts.regularization.freezes(name)}
        self.zeros = ZeroGradients(trained) if self._zeroes else None

    def _node_buffers(self, worker: int, views: Callable[[Array], Views]) -> list[_NodeBuffers]:
        first, last = self.reduction.worker_spans[worker]
        nodes = [node for node in self.reduction.rows if first <= node[0] and node[1] <= last]
        deepest = max((buffers_needed(*node) for node in nodes), default=1)
        scratch = [np.zeros_like(self.reduction.params) for _ in range(deepest - 1)]
        return [_NodeBuffers(node, [self.reduction.rows[node], *scratch], views) for node in nodes]

    def clear(self) -> None:
        """Begins a step: nothing is reported yet."""
        self.reduction.records[:] = 0.0
        self.error = None

    def compute(self, minibatch: Minibatch) -> None:
        """All of this rank's microbatches, by its workers."""
        self.reduction.begin(minibatch.bounds)
        if self.statistics.are_copied:
            self._state = self.statistics.for_model()
        self._workers.run(lambda worker: self.compute_of_worker(worker, minibatch))

    def compute_of_worker(self, worker: int, minibatch: Minibatch) -> None:
        """One worker's microbatches; keeps the first error of any worker."""
        bounds, microbatch = minibatch.bounds, self.reduction.worker_spans[worker][0]
        try:
            start, gathered = self._gather(worker, minibatch)
            with np.errstate(all="ignore"):  # a loss that isn't finite is reported once, by name
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
        raise_first(communicator.allgather_object(self.error), self.error, communicator.rank)


@final
class ZeroGradients:
    """The names of the parameters whose gradient was zero in every microbatch so far: a line reports them.

    What is looked at is the value. Whether a function writes a view can't be seen without changing what it finds there:
    a mark in place of zero would spoil `grads["w"] += …`. So the line says what is certain: the gradient is zero for
    every example of a minibatch. That is right for some models, such as one whose last layer starts at zero.
    """

    def __init__(self, names: set[str]) -> None:
        self._names = names

    def look(self, grads: Views) -> None:
        """Takes note of one microbatch's gradient."""
        self._names.difference_update([name for name in tuple(self._names) if to_host(grads[name]).any()])

    def report(self, communicator: Communicator) -> None:
        """Rank 0 prints the names that are left on all ranks. Collective."""
        left = set.intersection(*communicator.allgather_object(self._names))
        if left and communicator.is_root:
            say(
                f"note: the gradient of {', '.join(sorted(left))} is zero for every example of the first minibatch; "
                "write it in grads where that isn't what you mean, or name what isn't trained with freeze",
                sys.stderr,
            )
