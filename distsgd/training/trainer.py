"""The loop: steps, validations, records, checkpoints and the decision to stop.

Rank 0 decides and broadcasts. What depends on time or signals travels in the header of a step, so that all ranks act
on it after the same step.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from distsgd.core.output import say
from distsgd.core.status_table import Phase
from distsgd.data.sampling import Sampler
from distsgd.optim.schedules import Schedule
from distsgd.parallel import Communicator
from distsgd.training.callbacks import Callback, Hooks, RunView
from distsgd.training.checkpoint_store import Checkpoints, CheckpointStore
from distsgd.training.evaluator import Evaluator, Scores
from distsgd.training.intervals import Intervals, Limits
from distsgd.training.metrics.base import Value
from distsgd.training.non_finite import NonFinite, NonFinitePolicy, Reaction
from distsgd.training.run_state import RunState
from distsgd.training.selection import Selection
from distsgd.training.speed import SpeedMeter
from distsgd.training.step import TrainingStep
from distsgd.training.steps import NOTHING, Flag, StepOrder, StepResult, Steps

if TYPE_CHECKING:
    from distsgd.core.checkpoint import Checkpoint


class StopReason(StrEnum):
    """Why an attempt ended: a limit or the target was reached, the stopping rule decided so, or it was asked to."""

    COMPLETED = "completed"
    EARLY_STOPPED = "early_stopped"
    STOPPED = "stopped"


@dataclass
class Trainer:
    """Trains until a limit, and leaves the best parameters in place.

    evaluators   by the set's name in records: `train_full` where it is wanted, `validation`, `test`
    callbacks    called on rank 0
    store        where rank 0 keeps checkpoints; None for a run that keeps none
    last_scores  of the last validation
    _next_due    the first step, from 1, after which there may be more to do than in every step, whatever time it is
    """

    communicator: Communicator
    step: TrainingStep
    steps: Steps
    sampler: Sampler
    schedule: Schedule
    limits: Limits
    intervals: Intervals
    selection: Selection
    evaluators: Mapping[str, Evaluator]
    non_finite: NonFinitePolicy
    check_replicas: int = 0
    callbacks: Sequence[Callback] = ()
    store: CheckpointStore | None = None
    notes: Sequence[str] = ()
    progress: RunState = field(default_factory=RunState)
    last_scores: dict[str, Value] = field(default_factory=dict, init=False)
    _learning_rate: float = field(default=0.0, init=False)
    _stop_asked: bool = field(default=False, init=False)
    _stops: bool = field(default=False, init=False)
    _next_due: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.scores = Scores(self.step, self.evaluators)
        self.speed = SpeedMeter()
        self.last_step = self.limits.steps(self.sampler.steps_per_epoch)
        self.hooks = Hooks(self.communicator, self.callbacks, lambda: self.progress.step)
        self.checkpoints = Checkpoints(self.communicator, self.scores, self.selection.rule, self.store, self.hooks)

    def stop(self) -> None:
        """Asks for an orderly end after the step that runs now, with a checkpoint; any rank, any thread, any signal."""
        self._stop_asked = True

    @property
    def epoch(self) -> int:
        """Epochs that have ended."""
        return self.progress.step // self.sampler.steps_per_epoch

    def fit(self) -> StopReason:
        """Runs this attempt. Collective."""
        view = RunView(lambda: self.progress.step, self.sampler.steps_per_epoch, self.last_step, self.stop)
        self.hooks.call(lambda callback: callback.on_start(view))
        self.selection.begin(self.communicator)
        if self.non_finite.rolls_back:
            self.checkpoint()  # there has to be one to go back to
        while True:
            reason = self._train()
            self.hooks.raise_error()
            if reason is not StopReason.STOPPED and self.progress.best is None:
                # Without any regular validation this one scores the final parameters. It does not enter the
                # records, the best and patience: a run that resumes later equals one that never stopped.
                self.last_scores = self.scores.of("validation") or self.last_scores
            if self.checkpoint(final=True):
                return reason

    def _train(self) -> StopReason:
        self._stops, self._next_due = False, 0
        while (reason := self._reason_to_stop()) is None:
            for result in self._begin_step():
                if result.problem is None or self._react(result.problem) is Reaction.SKIP:
                    self._count(result)
                    if self.progress.step >= self._next_due or result.flags is not NOTHING or result.problem:
                        self._act(result)
        return reason

    def _reason_to_stop(self) -> StopReason | None:
        """Why no further step is made, the same on all ranks; otherwise plans up to where more may be due."""
        step, stop_step = self.progress.step, self.selection.stop_step
        if step < self._next_due:
            return None
        if self.selection.reached(self.progress):
            return StopReason.COMPLETED
        if stop_step is not None and step >= stop_step:
            return StopReason.EARLY_STOPPED
        if step >= self.last_step:
            return StopReason.COMPLETED
        validates = "validation" in self.evaluators
        due = self.intervals.next_after(step, self.sampler.steps_per_epoch, validates, self.check_replicas)
        self._next_due = min(due, self.last_step, stop_step or self.last_step)
        return StopReason.STOPPED if self._stops else None

    def _begin_step(self) -> list[StepResult]:
        """Begins a step; the results of the steps that have ended: of all of them where something is due after it."""
        progress, per_epoch, before = self.progress, self.sampler.steps_per_epoch, self.steps.in_flight
        step = progress.step + before
        number = step + 1
        self.speed.begin_step()
        self.communicator.heartbeat.set_phase(Phase.STEP, number)
        rate = self._learning_rate = self.schedule.learning_rate(self.step.optimizer.learning_rate, step, per_epoch)
        is_due = number >= self._next_due
        return self.steps.advance(
            StepOrder(step, step // per_epoch, self.sampler.minibatch(step), rate, progress.updates + before),
            self._flags(number),
            want_norm=is_due and self._record_due(number) is not None,
            skip=progress.skipped.get(number),
            wait=is_due,
        )

    def _flags(self, step: int) -> Flag:
        """What this rank reports with step number `step`, counted from 1."""
        flags = Flag.STOP if self._stop_asked else NOTHING
        if self.hooks.error is not None:
            flags |= Flag.FAILED
        if self.communicator.is_root:
            now = time.monotonic()
            if self.limits.seconds is not None and now - self.speed.began >= self.limits.seconds:
                flags |= Flag.STOP
            since, per_epoch = now - self.checkpoints.began, self.sampler.steps_per_epoch
            if self.intervals.checkpoint_due(step, per_epoch, since, self.checkpoints.is_idle):
                flags |= Flag.CHECKPOINT
        return flags

    def _record_due(self, step: int) -> str | None:
        """Why there is a record at this step: validation, epoch, log, or None."""
        return self.intervals.record_due(step, self.sampler.steps_per_epoch, "validation" in self.evaluators)

    def _count(self, result: StepResult) -> None:
        """Counts a step that has ended, and calls the callbacks."""
        progress = self.progress
        if progress.step % self.sampler.steps_per_epoch == 0:
            progress.loss_sum, progress.count = 0.0, 0
        progress.step += 1
        progress.updates += result.problem is None
        progress.loss_sum += result.loss_sum
        progress.count += result.count
        loss = result.loss_sum / result.count if result.count else math.nan
        if self.communicator.is_root:
            self.communicator.heartbeat.set_phase(Phase.CALLBACK, progress.step)
            self.hooks.call_alone(lambda callback: callback.on_step(progress.step, loss, result.count))
        self.speed.end_step(result.count)

    def _act(self, result: StepResult) -> None:
        """Does what is due after a step, and what any rank has reported with it."""
        flags, step = result.flags, self.progress.step
        if flags is not NOTHING and flags & Flag.FAILED:
            self.hooks.raise_error()
        if self.check_replicas > 0 and step % self.check_replicas == 0:
            from distsgd.training.replicas import compare_replicas

            compare_replicas(self.step, self.progress, self._learning_rate)
        due = self._record_due(step)
        if due is not None or result.problem is not None:
            self._record(result, due)
        if flags is not NOTHING and (not flags & Flag.CHECKPOINT or self.checkpoint()) and flags & Flag.STOP:
            self._stops, self._next_due = True, 0

    def _record(self, result: StepResult, due: str | None) -> None:
        """Scores what is due, judges it, and passes the record to the callbacks. Collective."""
        progress = self.progress
        self.communicator.heartbeat.set_phase(Phase.VALIDATION, progress.step)
        penalty = self.step.penalty()
        progress.train_loss = progress.loss_sum / progress.count + penalty if progress.count else None
        record: dict[str, Any] = {
            "step": progress.step,
            "epoch": self.epoch,
            "train_loss": progress.train_loss,
            "learning_rate": self._learning_rate,
            "gradient_norm": result.gradient_norm,
        }
        if penalty:
            record["penalty"] = penalty
        if result.problem is not None:
            record["skipped"] = result.problem.record()
        if due in ("validation", "epoch"):
            record.update(self.scores.of("train_full"))
        if due == "validation":
            self._validate(record)
        record["run"] = self.speed.record(progress.step)
        self.hooks.call(lambda callback: callback.on_record(record))

    def _validate(self, record: dict[str, Any]) -> None:
        """Adds the scores of a validation, and those of the test set where it is the best so far."""
        self.last_scores = self.scores.of("validation")
        record.update(self.last_scores)
        if self.selection.judge(self.communicator, self.progress, record):
            if self.selection.test_at_best:
                record.update(self.scores.of("test"))
            self.selection.keep(self.step, self.progress, record)

    def _react(self, found: NonFinite) -> Reaction:
        """Raises, skips the minibatch, or goes back to a checkpoint and skips it when it comes again. Collective."""
        skipped = self.progress.skipped
        if found.step in skipped:
            return Reaction.SKIP
        reaction, where = self.non_finite.decide(found, skipped, self.progress.step), ""
        if reaction is Reaction.ROLL_BACK:
            self._roll_back(found)
            where = f"going back to step {self.progress.step}, and "
        self.progress.skipped = {**skipped, found.step: found}
        if self.communicator.is_root:
            say(f"warning: {found}; {where}its minibatch is skipped", sys.stderr)
        return reaction

    def _roll_back(self, found: NonFinite) -> None:
        metadata, self._next_due = self.progress.metadata, 0
        self.speed.end_step(0)
        self.communicator.heartbeat.set_phase(Phase.CHECKPOINT, self.progress.step)
        self.progress = self.checkpoints.go_back(found, self.progress.step)
        self.selection.begin(self.communicator)
        self.progress.metadata, self.last_scores = metadata, {}
        self.hooks.call(lambda callback: callback.on_rollback(self.progress.step))

    def checkpoint(self, final: bool = False) -> bool:
        """Saves the run as it is; False where it goes back instead, for the last update was wrong. Collective."""
        self.communicator.heartbeat.set_phase(Phase.CHECKPOINT, self.progress.step)
        is_finite, is_idle = self.checkpoints.prepare(final)
        if not is_finite and self._react(self.step.wrong_update(self.progress.step)) is Reaction.ROLL_BACK:
            return False
        if is_idle:
            self.checkpoints.save(self.progress, final)
        return True

    def restore(self, checkpoint: Checkpoint | None) -> None:
        """Continues from rank 0's checkpoint (None elsewhere). Collective."""
        self.progress = self.checkpoints.restore(checkpoint)

    def finalize(self) -> dict[str, Value]:
        """Puts the best parameters in place (the last where nothing was validated) and scores the test set."""
        self.selection.put_best_in_place(self.communicator, self.step, self.progress)
        return self.scores.of("test")

    def end(self, summary: Mapping[str, Any]) -> None:
        """Calls the callbacks' `on_end`."""
        self.hooks.call(lambda callback: callback.on_end(summary))

    def close(self) -> None:
        """Frees recorded steps and the reduction's transport; parameters and state stay."""
        self.steps.close()
