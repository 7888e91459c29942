"""One training step: microbatch gradients, one reduction, one update; the same bits on any ranks and threads."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntFlag
from typing import NamedTuple

import numpy as np

from distsgd.core.device import Array, Device, to_host
from distsgd.core.errors import RAISED_BY_USERS, DistsgdError, users_error
from distsgd.core.layout import Layout, Views
from distsgd.data.loader import GatheredBatch, Loader
from distsgd.data.sampling import microbatch_bounds
from distsgd.nn.objective import Objective
from distsgd.optim.optimizers import Optimizer
from distsgd.optim.regularization import Regularization
from distsgd.parallel.reduction import GradientReduction
from distsgd.parallel.thread_pool import Workers
from distsgd.parallel.tree import Span, TreeStep, buffers_needed, schedule
from distsgd.training.non_finite import GRADIENT, UPDATE, NonFinite, all_finite
from distsgd.training.step_inputs import StepInputs
from distsgd.training.update import SliceUpdate
from distsgd.training.zero_gradients import ZeroGradients

_GATHERED_TOGETHER, _GATHERED_FOR_GPU = 8 << 20, 1 << 30
"""Bytes of inputs up to which a worker gathers all of its microbatches at once; above it, one at a time."""


class Flag(IntFlag):
    """What a rank reports with a step; the report of one rank is enough."""

    FAILED = 1
    STOP = 2
    CHECKPOINT = 4
    NON_FINITE = 8


NOTHING = Flag(0)
"""What ranks nearly always report. Kept: an enum's value takes a microsecond to make, and a small step a hundred."""
_FAILED, _NON_FINITE = int(Flag.FAILED), int(Flag.NON_FINITE)


class StepOrder(NamedTuple):
    """What one step is made of.

    step     its number, from 0
    indices  the minibatch
    updates  made before it: `step`, without those whose minibatch was skipped
    """

    step: int
    epoch: int
    indices: Array
    learning_rate: float
    updates: int


@dataclass(frozen=True)
class StepResult:
    """What every rank knows after a step.

    problem   why there was no update: of this minibatch, or of the one before, whose update came out wrong
    """

    loss_sum: float
    count: int
    flags: Flag
    gradient_norm: float | None
    problem: NonFinite | None = None


class _NodeBuffers:
    """Where one worker adds up the microbatches of one node of the tree: the row itself, then scratch, one a level."""

    def __init__(self, node: Span, flats: list[Array], layout: Layout) -> None:
        self.node, self.flats = node, flats
        self.views = [layout.views(flat) for flat in flats]


@dataclass
class TrainingStep:
    """Computes, reduces and updates. Owns scratch memory; the reduction owns parameters, state and rows.

    guarded   look at each microbatch's gradient before the update, so that all ranks can skip a minibatch,
              and at the updated parameters. Without, a gradient that isn't finite is found by the ranks whose elements
              it spoils, in an update that others make.
    """

    objective: Objective
    optimizer: Optimizer
    regularization: Regularization
    reduction: GradientReduction
    workers: Workers
    loader: Loader
    layout: Layout
    running: Views
    clip_norm: float | None = None
    guarded: bool = False
    _error: Exception | None = field(default=None, init=False)
    _previous: tuple[Array, tuple[int, ...]] = field(default=(np.empty(0, np.int64), ()), init=False)

    def __post_init__(self) -> None:
        reduction = self.reduction
        self.params, self._on_cpu = self.layout.views(reduction.params), self.device.host_memory
        self._model_params = self.params.read_only()  # ranks may share the parameters, so a model may only read them
        self._callers = self.workers.that_may_call(self.objective)
        statistics = Layout.of(self.objective.statistics_shapes())
        self._statistics_layout = statistics
        self._statistics = [statistics.views(record[2:]) for record in reduction.records]
        self._buffers = [self._node_buffers(worker) for worker in range(self._callers.count)]
        self._update = SliceUpdate(
            self.optimizer, self.regularization, reduction, self.workers, self.layout, self.clip_norm, self.guarded
        )
        self._input_buffers = [self.loader.buffer(0)] * self._callers.count
        self._model_running = self.running.read_only()
        self._zeroes = not self.objective.overwrites_gradients()
        trained = [name for name in self.layout.names if not self.regularization.freezes(name)]
        self._first_gradients = ZeroGradients(trained) if self._zeroes else None
        self._scalar_count = len(self.optimizer.scalars(self.optimizer.learning_rate, 1))

    @property
    def device(self) -> Device:
        """Where this rank computes."""
        return self.reduction.plan.device

    def host_params(self) -> Views:
        """The parameters in the host's memory: a copy where they lie on another device."""
        return self.params if self.device.host_memory else self.layout.views(to_host(self.reduction.params))

    def params_buffer(self) -> Views:
        """Where rank 0 puts parameters of the host for `load`: in place, but for another device."""
        flat = self.reduction.params
        return self.params if self.device.host_memory else self.layout.views(np.zeros(flat.shape, flat.dtype))

    def load(self, filled: Views) -> None:
        """All ranks take the parameters that rank 0 has put into `params_buffer`. Collective."""
        in_place = filled is self.params or not self.reduction.communicator.is_root
        self.reduction.load_params(None if in_place else filled.flat)

    def model_running(self) -> Views:
        """The running statistics for a model to read: a copy where it computes on another device."""
        if self.device.host_memory or not len(self.running):
            return self.running
        return Layout(tuple(self.running), tuple(array.shape for array in self.running.values())).views(
            self.device.put(self.running.flat)
        )

    def _node_buffers(self, worker: int) -> list[_NodeBuffers]:
        span = self.reduction.worker_spans[worker]
        nodes = [node for node in self.reduction.rows if span[0] <= node[0] and node[1] <= span[1]]
        deepest = max((buffers_needed(*node) for node in nodes), default=1)
        scratch = [np.zeros_like(self.reduction.params) for _ in range(deepest - 1)]
        buffers = []
        for node in nodes:
            buffers.append(_NodeBuffers(node, [self.reduction.rows[node], *scratch], self.layout))
        return buffers

    def compute_recorded(self, bounds: tuple[int, ...], inputs: StepInputs) -> tuple[Array, tuple[Array, ...]]:
        """Computes a step for recording, on the minibatch in `inputs`. Reads no number."""
        indices = np.zeros(bounds[-1], np.int64)  # on the host, and not read
        self.reduction.records[:] = 0.0
        self._error = None
        self._compute(0, 0, 0, indices, bounds, inputs)
        if self._error is not None:
            raise self._error
        self.reduction.launch_sums(bounds)
        self._update.launch(bounds, bounds[-1] * self.objective.loss_scale, inputs)
        self.reduction.all_gather()
        return self.reduction.records, (self._input_buffers[0],)

    def bounds(self, order: StepOrder) -> tuple[int, ...]:
        """The bounds of the microbatches of a step's minibatch."""
        return tuple(microbatch_bounds(len(order.indices), self.reduction.partition.microbatches))

    def run(self, order: StepOrder, flags: Flag, want_norm: bool = False, skip: NonFinite | None = None) -> StepResult:
        """Makes a step; raises on all ranks what any rank raises.

        skip  why this minibatch is skipped; the reduction takes place all the same
        """
        step, indices = order.step, order.indices
        reduction = self.reduction
        bounds = self.bounds(order)
        reduction.records[:] = 0.0
        if not self._on_cpu:
            self._model_running = self.model_running().read_only()
        self._error = None
        if skip is None:
            self._callers.run(lambda worker: self._compute(worker, step, order.epoch, indices, bounds))
        if self._error is not None:
            flags |= Flag.FAILED
        if not self._update.finite:
            flags |= Flag.NON_FINITE
        reduction.flags[0] = flags
        if reduction.communicator.rank == 0:
            reduction.flags[1 : 1 + self._scalar_count] = self.optimizer.scalars(order.learning_rate, order.updates + 1)
        all_flags, records = reduction.reduce_scatter(bounds)
        bits = 0
        for value in all_flags[:, 0].tolist():
            bits |= int(value)
        given = Flag(bits) if bits else NOTHING
        if bits & _NON_FINITE:
            skip = self.wrong_update(step)
        elif bits & _FAILED:
            self._raise_first_error()
        loss_sum, count, problem = (0.0, 0, skip) if skip else self.totals(records, step, indices, bounds)
        if problem is not None:
            reduction.all_gather()  # or a rank would overwrite what another one still reads
            return StepResult(0.0, 0, given, None, problem)
        if self._first_gradients is not None:
            self._first_gradients.report(reduction.communicator)
            self._first_gradients = None
        scalars = tuple(all_flags[0, 1 : 1 + self._scalar_count].tolist())
        norm = self._update.run(bounds, count * self.objective.loss_scale, scalars, want_norm)
        reduction.all_gather()
        self.update_running(records, bounds)
        self._previous = (indices, bounds)
        return StepResult(loss_sum, count, given, norm)

    def _compute(
        self,
        worker: int,
        step: int,
        epoch: int,
        indices: Array,
        bounds: tuple[int, ...],
        inputs: StepInputs | None = None,
    ) -> None:
        """One worker's microbatches; the first error of any worker is kept, and the reduction reports it."""
        first, last = self.reduction.worker_spans[worker]
        start, stop, microbatch = bounds[first], bounds[last], first
        try:
            buffer = self._input_buffer(worker, stop - start)
            gathered = None if buffer is None else self._gather(start, stop, indices, epoch, buffer, inputs)
            with np.errstate(all="ignore"):  # a loss that isn't finite is reported once, by name
                for buffers in self._buffers[worker]:
                    for plan in schedule(*buffers.node, bounds):
                        microbatch, begin, end = plan.microbatch, bounds[plan.microbatch], bounds[plan.microbatch + 1]
                        if gathered is None:
                            rows = self._gather(begin, end, indices, epoch, None, inputs)
                        else:
                            rows = gathered.slice(begin - start, end - start)
                        self._compute_microbatch(
                            buffers, plan, step, epoch, rows, None if inputs is None else inputs.clock
                        )
        except DistsgdError as error:
            self._error = self._error or error
        except RAISED_BY_USERS as error:
            communicator = self.reduction.communicator
            host = communicator.hosts[communicator.rank]
            where = f"the model failed on rank {communicator.rank} ({host}), step {step + 1}, microbatch {microbatch}"
            self._error = self._error or users_error(error, where)

    def _gather(
        self, start: int, stop: int, indices: Array, epoch: int, buffer: Array | None, inputs: StepInputs | None
    ) -> GatheredBatch:
        """These of the minibatch's examples."""
        if inputs is not None and inputs.rows is not None:
            return inputs.rows.slice(start, stop)
        numbers = None if inputs is None else inputs.numbers[start:stop]
        return self.loader.gather(indices[start:stop], epoch, buffer, numbers)

    def _input_buffer(self, worker: int, count: int) -> Array | None:
        """Where a worker gathers its microbatches' inputs, used again in each step; None where they are too many."""
        buffer = self._input_buffers[worker]
        if len(buffer) < count:
            features = math.prod(self.loader.examples.x.shape[1:])
            if count * features * buffer.itemsize > (_GATHERED_TOGETHER if self._on_cpu else _GATHERED_FOR_GPU):
                return None
            buffer = self._input_buffers[worker] = self.loader.buffer(count)
        return buffer

    def _compute_microbatch(
        self, to: _NodeBuffers, plan: TreeStep, step: int, epoch: int, rows: GatheredBatch, clock: Array | None
    ) -> None:
        own, running = plan.microbatch - self.reduction.first_microbatch, self._model_running
        statistics = self._statistics[own]
        batch = self.loader.batch(
            rows, running, step=step, epoch=epoch, microbatch=plan.microbatch, statistics=statistics, clock=clock
        )
        if self._zeroes:
            to.flats[plan.target][...] = 0.0
        loss_sum, count = self.objective.loss_and_grad(self._model_params, to.views[plan.target], batch)
        if self._first_gradients is not None and clock is None:  # no number can be read while a step is recorded
            self._first_gradients.look(to.views[plan.target])
        records = self.reduction.records
        records[own, 0] = loss_sum
        records[own, 1] = count
        if self.guarded and not (all_finite(to.flats[plan.target]) and all_finite(self.reduction.records[own, 2:])):
            self.reduction.records[own, 1] = math.nan  # all ranks see it after the reduction
        for into, other in plan.additions:
            np.add(to.flats[into], to.flats[other], out=to.flats[into])

    @property
    def finite(self) -> bool:
        """Whether the gradient of this rank's elements was finite in every update so far."""
        return self._update.finite

    def wrong_update(self, step: int) -> NonFinite:
        """What was wrong with the last update, number `step` (from 1), where any rank isn't `finite`. Collective."""
        if self.guarded:  # no microbatch was; what a rank sees of sums depends on the number of ranks
            return NonFinite(step, UPDATE)
        nodes = self.reduction.communicator.allgather_object(self._update.non_finite_nodes)
        microbatches = min(set[Span]().union(*nodes), default=None)
        return self._found(step, UPDATE if microbatches is None else GRADIENT, microbatches, *self._previous)

    def reset(self) -> None:
        """The parameters and the state are other ones now, and finite."""
        self._update.finite = True
        self._update.non_finite_nodes.clear()

    def _found(
        self, step: int, what: str, microbatches: Span | None, indices: Array, bounds: tuple[int, ...]
    ) -> NonFinite:
        if microbatches is None:
            return NonFinite(step, what)
        rows = self.loader.examples.row_indices(indices[bounds[microbatches[0]] : bounds[microbatches[1]]])
        return NonFinite(step, what, microbatches, tuple(rows.tolist()))

    def _raise_first_error(self) -> None:
        for error in self.reduction.communicator.allgather_object(self._error):
            if error is not None:
                raise error

    def totals(
        self, records: Array, step: int, indices: Array, bounds: tuple[int, ...]
    ) -> tuple[float, int, NonFinite | None]:
        """(sum of the losses, examples, what isn't finite) of what the microbatches have reported of a step, from 0."""
        loss_sum, count = 0.0, 0
        for microbatch, (loss, examples) in enumerate(records[:, :2].tolist()):
            if not math.isfinite(loss):
                what = f"the loss is {loss}"
                return 0.0, 0, self._found(step + 1, what, (microbatch, microbatch + 1), indices, bounds)
            if math.isnan(examples):
                return 0.0, 0, self._found(step + 1, GRADIENT, (microbatch, microbatch + 1), indices, bounds)
            loss_sum += loss
            count += int(examples)
        if count < 1:
            raise DistsgdError(f"the loss function counted {count} examples at step {step + 1}; it must count them all")
        return loss_sum, count, None

    def update_running(self, records: Array, bounds: tuple[int, ...]) -> None:
        """Moves the running statistics on by what the microbatches have reported of a step."""
        if not len(self.running):
            return
        statistics = [self._statistics_layout.views(record[2:]) for record in records]

        def join(first: int, last: int) -> Views | None:
            if bounds[first] == bounds[last]:
                return None
            if last - first == 1:
                return statistics[first]
            middle = (first + last) // 2
            left, right = join(first, middle), join(middle, last)
            if left is None or right is None:
                return right if left is None else left
            self.objective.combine_statistics(left, right)
            return left

        joined = join(0, self.reduction.partition.microbatches)
        assert joined is not None, "a minibatch has at least one example"
        self.objective.update_state(self.running, joined)
