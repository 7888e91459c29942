"""`--shares auto`: a rank that is slower for many steps computes fewer microbatches, and no bit changes.

Without this option nothing here is imported: a step of its own takes the place of the trainer's, and a timed call that
of its gradients.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean, median
from time import perf_counter
from typing import Any, final

from distsgd.core.errors import OutOfMemoryError
from distsgd.parallel.shared_memory import NotShared
from distsgd.parallel.shares import seconds_each, shares_by_speed, shares_of, slowest
from distsgd.training.callbacks import pass_notes
from distsgd.training.non_finite import NonFinite
from distsgd.training.step import TrainingStep
from distsgd.training.steps import Flag, StepOrder, StepResult
from distsgd.training.trainer import Trainer

GROUPS = 6
"""Into so many groups the steps that are measured are cut. A mean of each, for a system that shares a core out does so
for milliseconds, and of short steps some take their own time and some another process's, too; of these the median."""
LEAST_STEPS = 4 * GROUPS
LEAST_SECONDS = 1.0
"""So much is measured before shares may change: a disturbance of less isn't worth it."""
LEAST_GAIN = 0.05
"""The part of a step that other shares have to save. Less comes and goes with the times that are measured."""
REFUSED_FOR = 20
"""How often shares that have made steps no shorter are not tried again."""
LEAST_WEIGHT = 0.25
"""What the newest times count at least, beside the earlier ones."""
_SHOWN = 16
"""Ranks whose shares a line has one by one."""


@final
class StepTimes:
    """Seconds of this rank's steps since `clear`."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begins anew."""
        self._computed, self._seconds = 0.0, 0.0
        self._steps: list[tuple[float, float]] = []

    def timed(self, compute: Callable[..., None]) -> Callable[..., None]:
        """What computes the gradients of a step, whose time counts."""

        def call(*given: Any) -> None:
            began = perf_counter()
            compute(*given)
            self._computed += perf_counter() - began

        return call

    def end_step(self, seconds: float) -> None:
        """A step has taken so long, with the wait for other ranks."""
        self._steps.append((self._computed, seconds))
        self._computed = 0.0
        self._seconds += seconds

    @property
    def are_enough(self) -> bool:
        """Whether they are known well enough to decide by."""
        return self._seconds >= LEAST_SECONDS and len(self._steps) >= LEAST_STEPS

    def usual(self) -> tuple[float, float]:
        """(seconds that this rank takes for its microbatches in a step, seconds of a step). The first group doesn't
        count: its first step touches memory, and plans sums."""
        length = len(self._steps) // GROUPS
        groups = [self._steps[length * group : length * (group + 1)] for group in range(1, GROUPS)]
        computed, passed = zip(*(map(fmean, zip(*group, strict=True)) for group in groups), strict=True)
        return median(computed), median(passed)


@final
class SharesRule:
    """Which shares come next: rank 0's decision, by what was measured.

    bounds   the microbatches' bounds in a minibatch of the usual length
    """

    def __init__(self, bounds: Sequence[int]) -> None:
        self.bounds = bounds
        self._before: tuple[tuple[int, ...], float] | None = None
        self._refused: dict[tuple[int, ...], int] = {}
        self._parts: list[float] = []
        self._decided = 0

    def decide(self, shares: tuple[int, ...], seconds: Sequence[float], of_step: float) -> tuple[int, ...]:
        """The shares from now on, often the same.

        What is predicted is the time of gradients alone. Other shares may need longer messages, so a change is taken
        back where the rest of a step has grown by more than the gradients have saved.

        Parameters
        ----------
        shares
            Those that were measured.
        seconds
            Of each rank, for its microbatches of a step.
        of_step
            Seconds of a whole step.
        """
        each, rest = self._smooth(seconds_each(shares, seconds, self.bounds)), of_step - max(seconds)
        self._refused = {one: left - 1 for one, left in self._refused.items() if left > 1}
        before, self._before = self._before, None
        now = slowest(shares, each, self.bounds)
        if before is not None and now + rest >= slowest(before[0], each, self.bounds) + before[1]:
            self._refused[shares] = REFUSED_FOR
            return before[0]
        found = shares_by_speed(each, self.bounds)
        if now - slowest(found, each, self.bounds) < LEAST_GAIN * of_step or found in self._refused:
            return shares
        self._before = (shares, rest)
        return found

    def _smooth(self, each: Sequence[float]) -> list[float]:
        """Seconds of each rank for a microbatch, from these and earlier ones.

        A rank that has half of a core computes faster after it has waited: the fewer microbatches it has, the less it
        takes for each. Without the earlier ones shares would go to and fro. They count as parts of the sum over ranks,
        which the machine's speed doesn't change.
        """
        self._decided += 1
        weight, total = max(LEAST_WEIGHT, 1 / self._decided), sum(each)
        before = self._parts or [0.0] * len(each)
        self._parts = [part + weight * (one / total - part) for part, one in zip(before, each, strict=True)]
        return [total * part for part in self._parts]


@final
class BalancedSteps:
    """A trainer's steps (`Steps`), between which shares change. Rank 0 says in the header of a step that times are
    known well enough; after that step all ranks report theirs."""

    def __init__(self, trainer: Trainer, rule: SharesRule) -> None:
        self._trainer, self._step, self._rule = trainer, trainer.step, rule
        self._times = StepTimes()
        gradients = trainer.step.gradients
        gradients.compute = self._times.timed(gradients.compute)  # type: ignore[method-assign]

    @property
    def in_flight(self) -> int:
        """None: each ends before the next one."""
        return self._step.in_flight

    def advance(
        self, order: StepOrder, flags: Flag, want_norm: bool = False, skip: NonFinite | None = None, wait: bool = True
    ) -> list[StepResult]:
        """Makes this step; see `Steps`."""
        if self._times.are_enough and self._trainer.communicator.is_root:
            flags |= Flag.SHARES
        began = perf_counter()
        results = self._step.advance(order, flags, want_norm, skip, wait)
        if skip is None:  # else no gradient was computed
            self._times.end_step(perf_counter() - began)
        if results[-1].flags & Flag.SHARES:
            self._share_out(order.step + 1)
        return results

    def close(self) -> None:
        """Closes the trainer's own steps."""
        self._step.close()

    def _share_out(self, step: int) -> None:
        """Decides on the shares after this step, and changes them where they are others. Collective."""
        communicator, before = self._trainer.communicator, shares_of(self._step.reduction.partition)
        own, of_step = self._times.usual()
        seconds = communicator.gather_object(own) or []
        after = communicator.on_root(lambda: self._rule.decide(before, seconds, of_step))
        self._times.clear()
        if after == before:
            return
        take_shares(self._step, after)
        self._trainer.speed.of_attempt["shares"] = list(after)
        times = ", ".join(f"{1000 * time:.3g}" for time in seconds)
        pass_notes(communicator, self._trainer.callbacks, [
            f"note: from step {step + 1} on ranks compute {_text(after)} microbatches, {_text(before)} before"
            + (f", for which they took {times} ms" if len(seconds) <= _SHOWN else "")
        ])  # fmt: skip


def record_shares(trainer: Trainer) -> None:
    """From now on records and the summary have the shares under `run`."""
    measure, speed, reduction = trainer.speed.measure, trainer.speed, trainer.step.reduction
    speed.measure = lambda step: {**measure(step), "shares": list(shares_of(reduction.partition))}
    speed.of_attempt["shares"] = list(shares_of(reduction.partition))


def _text(shares: Sequence[int]) -> str:
    return ", ".join(map(str, shares)) if len(shares) <= _SHOWN else f"{min(shares)} to {max(shares)}"


def take_shares(step: TrainingStep, shares: tuple[int, ...]) -> None:
    """From the next step on each rank computes so many microbatches; parameters and state stay. Collective.

    Raises OutOfMemoryError, on all ranks, where rows for them can't be shared.
    """
    reduction = step.reduction
    for chunks in step.update.chunks:
        for chunk in chunks:
            chunk.sums.clear()  # which hold the rows that will be others
    try:
        reduction.take(replace(reduction.plan, partition=replace(reduction.partition, shares=shares)))
    except NotShared as host:
        raise OutOfMemoryError(
            f"shares auto: there is no shared memory on {host} for rows of other shares; continue with --shares equal, "
            "which has the same bits"
        ) from None
    step.gradients.take_rows()
    step.statistics.take_records(reduction.records)
    gc.collect()  # a function that calls itself has planned the sums, and holds the rows until it is collected
