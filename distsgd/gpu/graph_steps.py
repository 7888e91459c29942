"""Steps of a GPU that are recorded and run asynchronously: many are in flight before the host reads a result."""

from __future__ import annotations

import math
import sys
from functools import partial

import numpy as np

from distsgd.core.device import Array
from distsgd.core.output import say
from distsgd.gpu.graphs import IN_FLIGHT, NotRecorded, StepGraphs
from distsgd.gpu.recorded_step import compute_recorded
from distsgd.training.minibatch import IndexedMinibatch
from distsgd.training.non_finite import NonFinite
from distsgd.training.step import TrainingStep
from distsgd.training.steps import NOTHING, Flag, StepOrder, StepResult


class RecordedSteps:
    """Begins steps, and returns the results of those that have ended, in order: see `training.steps.Steps`.

    A step that can't be recorded ends before `advance` returns.

    longest   the most examples of a minibatch
    """

    def __init__(self, step: TrainingStep, longest: int) -> None:
        self._step, self._communicator = step, step.reduction.communicator
        scalars = len(step.optimizer.scalars(step.optimizer.learning_rate, 1))
        self._graphs = StepGraphs(step.loader, step.reduction, partial(compute_recorded, step), longest, scalars)
        self._alone, self._asked_for = self._communicator.size == 1, False
        self._started: list[IndexedMinibatch] = []

    @property
    def in_flight(self) -> int:
        """The number of steps that have started and whose results haven't been returned."""
        return len(self._started)

    def advance(
        self, order: StepOrder, flags: Flag, want_norm: bool = False, skip: NonFinite | None = None, wait: bool = True
    ) -> list[StepResult]:
        """Start a step; return the results of steps that have ended since: see `Steps`.

        Ranks with asynchronous steps receive each other's flags when they read results.
        """
        asynchronous = not (wait or want_norm or skip or self._is_asked_for(flags))
        if asynchronous and self._start(order):
            return self._end(flags) if self.in_flight == IN_FLIGHT else []
        results = self._end(flags)
        if results and results[-1].problem is not None:
            return results
        results.append(self._step.run(order, flags, want_norm, skip))
        if not self._alone:
            self._asked_for = not all(self._communicator.allgather_object(self._step.finite))
        return results

    def close(self) -> None:
        """Frees the graphs, and then the transport, whose messages they hold."""
        self._graphs.close()

    def _is_asked_for(self, flags: Flag) -> bool:
        """Whether all ranks have to report their flags in the next step; the same answer on all ranks."""
        return bool(flags) or not self._step.finite if self._alone else self._asked_for

    def _start(self, order: StepOrder) -> bool:
        """Lets the GPU make a step alone; False where it can't, or not yet."""
        minibatch = self._step.minibatch(order)
        bounds = minibatch.bounds
        if not self._graphs.is_known(bounds) or self._step.gradients.zeros is not None:  # which reads numbers
            return False
        scalars = self._step.optimizer.scalars(order.learning_rate, order.updates + 1)
        if not all(map(math.isfinite, scalars)):  # of a schedule; in a graph NaN means an earlier step's
            return False
        try:
            self._graphs.start(bounds, order.indices, order.epoch, order.step, scalars)
        except NotRecorded as problem:
            if self._communicator.is_root:
                line = f"warning: steps can't be recorded as a CUDA graph ({problem}) and are slower without"
                say(line, sys.stderr)
            self._graphs.refuse()
            return False
        self._started.append(minibatch)
        return True

    def _end(self, flags: Flag) -> list[StepResult]:
        """Wait for the steps in flight; return their results. A non-finite step runs again, to locate the gradient."""
        if not self._started:
            return []
        started, self._started = self._started, []
        results: list[StepResult] = []
        for one, (records, non_finite) in zip(started, self._reports(flags), strict=True):
            loss_sum, count, problem = self._step.totals(records, one)
            if problem is None and non_finite:  # the parameters are still those before this step
                self._step.run(one.order, NOTHING)
                problem = self._step.wrong_update(one.step + 1)
            if problem is not None:
                return [*results, StepResult(0.0, 0, NOTHING, None, problem)]
            self._step.statistics.update(records, one.bounds)
            results.append(StepResult(loss_sum, count, NOTHING, None))
        return results

    def _reports(self, flags: Flag) -> list[tuple[Array, bool]]:
        """(the records of all microbatches, whether one was not finite) of each step in flight. Collective."""
        reports = self._graphs.reports()
        if self._alone:
            return reports
        gathered = self._communicator.allgather_object((flags, self._step.finite, [records for records, _ in reports]))
        self._asked_for = any(theirs or not finite for theirs, finite, _ in gathered)
        of_steps = zip(*(records for _, _, records in gathered), strict=True)
        return [
            (np.concatenate(records), non_finite) for records, (_, non_finite) in zip(of_steps, reports, strict=True)
        ]
