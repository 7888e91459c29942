"""One training step: microbatch gradients, one reduction, one update; the same bits on any ranks and threads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from distsgd.core.device import Array, Device, to_host
from distsgd.core.errors import DistsgdError
from distsgd.core.layout import Views
from distsgd.data.sampling import microbatch_bounds
from distsgd.parallel.reduction import BLOCK
from distsgd.parallel.tree import Span
from distsgd.training.gradients import MicrobatchGradients
from distsgd.training.minibatch import IndexedMinibatch
from distsgd.training.non_finite import GRADIENT, UPDATE, NonFinite
from distsgd.training.running_statistics import RunningStatistics, least_examples
from distsgd.training.steps import NOTHING, Flag, StepOrder, StepParts, StepResult
from distsgd.training.update import ShardedUpdate


@dataclass
class TrainingStep(StepParts):
    """Computes, reduces and updates: `Steps` of which each ends before `advance` returns. It owns scratch memory.

    look    called with all ranks' flags before the update; what it raises, it raises on all of them
    """

    look: Callable[[Array], None] | None = field(default=None, init=False)
    in_flight: int = field(default=0, init=False)
    _previous: IndexedMinibatch | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.params = self.layout.views(self.reduction.params)
        self.statistics = RunningStatistics(self)
        self.gradients = MicrobatchGradients(self, self.statistics)
        self.update = ShardedUpdate(self)
        self._least = least_examples(self.objective)
        self._scalar_count = len(self.optimizer.scalars(self.optimizer.learning_rate, 1))

    def run(
        self, order: StepOrder, flags: Flag, want_norm: bool = False, skip: NonFinite | None = None, wait: bool = True
    ) -> StepResult:
        """Makes a step; raises on all ranks what any rank raises. The arguments are those of `Steps.advance`."""
        minibatch = self.minibatch(order)
        self.gradients.clear()
        self.reduction.begin(minibatch.bounds)
        if skip is None:
            self.gradients.compute(minibatch)
        given, scalars, records = self._reduce(minibatch, flags)
        if given is not NOTHING:
            if given & Flag.NON_FINITE:
                skip = self.wrong_update(order.step)
            elif given & Flag.FAILED:
                self.gradients.raise_first_error()
        loss_sum, count, problem = (0.0, 0, skip) if skip else self.totals(records, minibatch)
        if problem is not None:
            self.reduction.all_gather()  # or a rank would overwrite what another one still reads
            return StepResult(0.0, 0, given, None, problem)
        self.gradients.report_zeros()
        norm = self.update.run(minibatch.bounds, count * self.objective.loss_scale, scalars, want_norm)
        self.reduction.finish(wait or want_norm or given is not NOTHING)  # what follows then may read the parameters
        self.statistics.update(records, minibatch.bounds)
        self._previous = minibatch
        return StepResult(loss_sum, count, given, norm)

    def advance(
        self, order: StepOrder, flags: Flag, want_norm: bool = False, skip: NonFinite | None = None, wait: bool = True
    ) -> list[StepResult]:
        """Makes this step; see `Steps`."""
        return [self.run(order, flags, want_norm, skip, wait)]

    def close(self) -> None:
        """Closes the reduction."""
        self.reduction.close()

    def minibatch(self, order: StepOrder) -> IndexedMinibatch:
        """The minibatch of a step, in microbatches."""
        bounds = microbatch_bounds(len(order.indices), self.reduction.partition.microbatches, self._least)
        return IndexedMinibatch(self.loader, bounds, order)

    def _reduce(self, minibatch: IndexedMinibatch, flags: Flag) -> tuple[Flag, tuple[float, ...], Array]:
        """(what any rank has reported, rank 0's scalars of the optimizer, all microbatches' records). Collective."""
        reduction, order = self.reduction, minibatch.order
        if self.gradients.error is not None:
            flags |= Flag.FAILED
        if not self.update.finite:
            flags |= Flag.NON_FINITE
        reduction.flags[0] = flags
        if reduction.communicator.rank == 0:
            reduction.flags[1 : 1 + self._scalar_count] = self.optimizer.scalars(order.learning_rate, order.updates + 1)
        all_flags, records = reduction.reduce_scatter(minibatch.bounds)
        if self.look is not None:
            self.look(all_flags)
        bits = 0
        for value in all_flags[:, 0].tolist():
            bits |= int(value)
        scalars = tuple(all_flags[0, 1 : 1 + self._scalar_count].tolist())
        return Flag(bits) if bits else NOTHING, scalars, records

    def totals(self, records: Array, minibatch: IndexedMinibatch) -> tuple[float, int, NonFinite | None]:
        """(sum of the losses, examples, what isn't finite) of what the microbatches have reported of a step."""
        loss_sum, count = 0.0, 0
        for microbatch, (loss, examples) in enumerate(records[:, :2].tolist()):
            if not math.isfinite(loss) or math.isnan(examples):
                what = GRADIENT if math.isfinite(loss) else f"the loss is {loss}"
                return 0.0, 0, _found(minibatch, what, (microbatch, microbatch + 1))
            loss_sum += loss
            count += int(examples)
        if count < 1:
            where = f"at step {minibatch.step + 1}"
            raise DistsgdError(f"the loss function counted {count} examples {where}; it must count them all")
        return loss_sum, count, None

    @property
    def finite(self) -> bool:
        """Whether the gradient of this rank's elements was finite in every update so far."""
        return self.update.finite

    def wrong_update(self, step: int) -> NonFinite:
        """What was wrong with the last update, number `step` (from 1), where any rank isn't `finite`. Collective."""
        if self.guarded:  # no microbatch was; what a rank sees of sums depends on the number of ranks
            return NonFinite(step, UPDATE)
        nodes = self.reduction.communicator.allgather_object(self.update.non_finite_nodes)
        microbatches = min(set[Span]().union(*nodes), default=None)
        if microbatches is None or self._previous is None:
            return NonFinite(step, UPDATE)
        return _found(self._previous, GRADIENT, microbatches)

    def reset(self) -> None:
        """The parameters and the state are other ones now, and finite."""
        self.update.finite = True
        self.update.non_finite_nodes.clear()

    def penalty(self) -> float:
        """The L1 and L2 terms of the parameters in place."""
        if not self.regularization.penalizes:
            return 0.0
        return self.regularization.loss(
            to_host(self.reduction.params), self.regularization.segments(self.layout), BLOCK
        )

    @property
    def device(self) -> Device:
        """Where this rank computes."""
        return self.reduction.plan.device

    def host_params(self) -> Views:
        """The parameters in the host's memory: a copy where they lie on another device."""
        return self.layout.views(to_host(self.reduction.params))

    def params_buffer(self) -> Views:
        """Where rank 0 puts parameters of the host for `load`: in place where the host's memory has them."""
        flat = self.reduction.params
        return self.params if self.device.host_memory else self.layout.views(np.zeros(flat.shape, flat.dtype))

    def load(self, filled: Views) -> None:
        """All ranks take the parameters that rank 0 has put into `params_buffer`. Collective."""
        in_place = filled is self.params or not self.reduction.communicator.is_root
        self.reduction.load_params(None if in_place else filled.flat)


def _found(minibatch: IndexedMinibatch, what: str, microbatches: Span) -> NonFinite:
    return NonFinite(minibatch.step + 1, what, microbatches, minibatch.row_indices(*microbatches))
