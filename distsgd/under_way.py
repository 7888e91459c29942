"""Steps one after the other: each ends before the next begins, or a GPU goes on with many by itself."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from distsgd.device import Array
from distsgd.graphs import UNDER_WAY, StepGraphs
from distsgd.non_finite import NonFinite
from distsgd.output import say
from distsgd.sampling import lane_bounds
from distsgd.step import Flag, StepResult, TrainingStep


@dataclass(frozen=True)
class _Started:
    """A step under way, with what is needed to make it once more."""

    step: int
    epoch: int
    indices: Array
    bounds: tuple[int, ...]
    learning_rate: float
    updates: int


class Steps:
    """Begins steps, and hands out the results of those that have ended, in order.

    graphs   how a GPU makes steps by itself; without, a step ends before `advance` returns
    """

    def __init__(self, step: TrainingStep, graphs: StepGraphs | None) -> None:
        self._step, self._graphs = step, graphs
        self._started: list[_Started] = []

    @property
    def under_way(self) -> int:
        """Steps begun whose results nobody has seen yet."""
        return len(self._started)

    def advance(
        self,
        step: int,
        epoch: int,
        indices: Array,
        learning_rate: float,
        flags: Flag,
        want_norm: bool = False,
        *,
        updates: int,
        leave_out: NonFinite | None = None,
        wait: bool,
    ) -> list[StepResult]:
        """Begins a step, as `TrainingStep.run` makes one; the results of steps that have ended since.

        wait   end all steps, this one included; so does one whose norm is wanted, with flags, or left out
        A result with a problem is the last one, and of the steps begun after it nothing is left.
        """
        by_itself = self._step.finite and not (wait or flags or want_norm or leave_out)
        if by_itself and self._start(step, epoch, indices, learning_rate, updates):
            return self._end() if self.under_way == UNDER_WAY else []
        results = self._end()
        if results and results[-1].problem is not None:
            return results
        place = (step, epoch, indices, learning_rate)
        return [*results, self._step.run(*place, flags, want_norm, updates=updates, leave_out=leave_out)]

    def _start(self, step: int, epoch: int, indices: Array, learning_rate: float, updates: int) -> bool:
        """Lets the GPU make a step by itself; False where it can't, or not yet."""
        if self._graphs is None:
            return False
        bounds = tuple(lane_bounds(len(indices), self._step.exchange.partition.lanes))
        if not self._graphs.is_known(bounds):
            return False
        scalars = self._step.optimizer.scalars(learning_rate, updates + 1)
        try:
            self._graphs.start(bounds, indices, epoch, step, scalars)
        except Exception as error:  # whatever CUDA says: launched one by one, the same kernels need no recording
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            say(f"warning: steps can't be recorded as a CUDA graph ({reason}) and are slower without", sys.stderr)
            self._graphs.refuse()
            return False
        self._started.append(_Started(step, epoch, indices, bounds, learning_rate, updates))
        return True

    def _end(self) -> list[StepResult]:
        """Waits for the steps under way; their results. A gradient that wasn't finite is looked at once more."""
        if self._graphs is None or not self._started:
            return []
        started, self._started = self._started, []
        results: list[StepResult] = []
        for one, report in zip(started, self._graphs.reports(), strict=True):
            loss_sum, count, problem = self._step.totals(report.records, one.step, one.indices, one.bounds)
            if problem is None and report.trouble:  # the parameters are still those before this step
                place = (one.step, one.epoch, one.indices, one.learning_rate)
                self._step.run(*place, Flag(0), updates=one.updates)
                problem = self._step.wrong_update(one.step + 1)
            if problem is not None:
                return [*results, StepResult(0.0, 0, Flag(0), None, problem)]
            self._step.update_running(report.records, one.bounds)
            results.append(StepResult(loss_sum, count, Flag(0), None))
        return results
