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
from typing import Any

import numpy as np

from distsgd.core.device import Array, host_copy, to_host
from distsgd.core.output import say
from distsgd.core.status_table import Phase
from distsgd.data.sampling import Sampler
from distsgd.optim.schedules import Schedule
from distsgd.parallel import Communicator
from distsgd.parallel.reduction import BLOCK
from distsgd.training.callbacks import Callback
from distsgd.training.early_stopping import StoppingRule, reaches
from distsgd.training.evaluator import Evaluator
from distsgd.training.hooks import Hooks
from distsgd.training.intervals import Intervals, Limits
from distsgd.training.metrics import Value
from distsgd.training.non_finite import NonFinite, goes_back
from distsgd.training.replicas import compare_replicas
from distsgd.training.run_state import RunState
from distsgd.training.speed import SpeedMeter
from distsgd.training.state import restore, take
from distsgd.training.step import NOTHING, Flag, StepOrder, StepResult, TrainingStep
from distsgd.training.steps import Steps

PATIENCE = 30.0
"""Seconds for which a checkpoint waits until the one before it is written."""


class StopReason(StrEnum):
    """Why an attempt ended: a limit or the target was reached, the stopping rule decided so, or it was asked to."""

    COMPLETED = "completed"
    EARLY_STOPPED = "early_stopped"
    STOPPED = "stopped"


@dataclass
class Trainer:
    """Trains until a limit, and leaves the best parameters in place.

    `rule` decides about the best parameters and early stopping by the metric `monitor`; it is None where nothing is
    validated. `callbacks` are called on rank 0.
    """

    communicator: Communicator
    step: TrainingStep
    steps: Steps
    sampler: Sampler
    schedule: Schedule
    limits: Limits
    intervals: Intervals
    rule: StoppingRule | None = None
    monitor: str = ""
    validation: Evaluator | None = None
    test: Evaluator | None = None
    train: Evaluator | None = None
    test_at_best: bool = True
    on_non_finite: str = "stop"
    check_replicas: int = 0
    callbacks: Sequence[Callback] = ()
    notes: Sequence[str] = ()
    progress: RunState = field(default_factory=RunState)
    last_scores: dict[str, Value] = field(default_factory=dict, init=False)
    _stop_asked: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._hooks = Hooks(self.communicator, self.callbacks, lambda: self.progress.step)
        self.began = time.monotonic()
        self._last_checkpoint = self.began
        self.speed = SpeedMeter()
        self._scratch = [self.step.layout.views(row) for row in self._scratch_rows()]
        self._segments = self.step.regularization.segments(self.step.layout)

    def _scratch_rows(self) -> list[Array]:
        """One gradient-sized buffer a worker: rows that are idle between steps."""
        rows = list(self.step.reduction.rows.values())
        missing = self.step.workers.count - len(rows)
        return rows + [np.zeros_like(self.step.reduction.params) for _ in range(missing)]

    def stop(self) -> None:
        """Asks for an orderly end after the step that runs now, with a checkpoint; any rank, any thread, any signal."""
        self._stop_asked = True

    @property
    def reached_target(self) -> bool:
        """Whether the last validation reached the target."""
        if self.limits.target is None or self.progress.scores is None:
            return False
        return reaches(self.limits.target, self.progress.scores)

    @property
    def steps_done(self) -> int:
        """Steps that have ended."""
        return self.progress.step

    @property
    def last_step(self) -> int:
        """The step that the limits end the run at."""
        return self.limits.steps(self.sampler.steps_per_epoch)

    @property
    def epoch(self) -> int:
        """Epochs that have ended."""
        return self.progress.step // self.sampler.steps_per_epoch

    def fit(self) -> StopReason:
        """Runs this attempt. Collective."""
        self._hooks.call_together(lambda callback: callback.on_start(self))
        if self.on_non_finite == "rollback":
            self.checkpoint()  # there has to be one to go back to
        while True:
            reason = self._train()
            self._hooks.raise_error()
            if reason is not StopReason.STOPPED and self.validation is not None and self.progress.best is None:
                # Without any regular validation this one scores the final parameters. It does not enter the
                # records, the best and patience: a run that resumes later equals one that never stopped.
                self.last_scores = self._score("validation", self.validation)
            if self.checkpoint(final=True):
                return reason

    def _train(self) -> StopReason:
        last = self.last_step
        decision = self._decide(None)
        while True:
            if self.reached_target:
                return StopReason.COMPLETED
            if decision is not None and self.progress.step >= decision:
                return StopReason.EARLY_STOPPED
            if self.progress.step >= last:
                return StopReason.COMPLETED
            began = time.monotonic()
            results = self._advance((last, decision))
            if not self._count(results):
                decision = self._decide(None)
                continue
            self.speed.add_seconds(time.monotonic() - began)
            if not results:
                continue
            result = results[-1]
            if result.flags is not NOTHING and result.flags & Flag.FAILED:
                self._hooks.raise_error()
            if self._compares_at(self.progress.step):
                compare_replicas(self.step, self.progress, self.learning_rate)
            if self._record_due() is not None or result.problem is not None:
                decision = self._record(result)
            if result.flags is NOTHING:
                continue
            if result.flags & Flag.CHECKPOINT and not self.checkpoint():
                decision = self._decide(None)
                continue
            if result.flags & Flag.STOP and self.progress.step < last and not self.reached_target:
                early = decision is not None and self.progress.step >= decision
                return StopReason.EARLY_STOPPED if early else StopReason.STOPPED

    def _advance(self, ends: tuple[int | None, ...]) -> list[StepResult]:
        """Begins a step; the results of the steps that have ended: of all of them where one of `ends` is reached."""
        progress, per_epoch = self.progress, self.sampler.steps_per_epoch
        before = self.steps.in_flight
        step = progress.step + before
        self.communicator.set_phase(Phase.STEP, step + 1)
        self.learning_rate = self.schedule.learning_rate(self.step.optimizer.learning_rate, step, per_epoch)
        minibatch = self.sampler.minibatch(step)
        return self.steps.advance(
            StepOrder(step, step // per_epoch, minibatch, self.learning_rate, progress.updates + before),
            self._flags(step + 1),
            want_norm=self._record_due(step + 1) is not None,
            skip=progress.skipped.get(step + 1),
            wait=step + 1 in ends or self.intervals.saves_at(step + 1) or self._compares_at(step + 1),
        )

    def _count(self, results: Sequence[StepResult]) -> bool:
        """Counts the steps that have ended; False where the run goes back to a checkpoint instead. Collective."""
        for result in results:
            if result.problem is not None and self._goes_back(result.problem):
                return False
            self._note(result)
        return True

    def _compares_at(self, step: int) -> bool:
        """Whether the ranks' replicas are compared after this step."""
        return self.check_replicas > 0 and step % self.check_replicas == 0

    def _note(self, result: StepResult) -> None:
        """Counts a step that has ended, and calls the callbacks."""
        progress = self.progress
        if progress.step % self.sampler.steps_per_epoch == 0:
            progress.loss_sum, progress.count = 0.0, 0
        progress.step += 1
        progress.updates += result.problem is None
        progress.loss_sum += result.loss_sum
        progress.count += result.count
        self.speed.add_examples(result.count)
        loss = result.loss_sum / result.count if result.count else math.nan
        if self.communicator.is_root:
            self.communicator.set_phase(Phase.CALLBACK, progress.step)
        self._hooks.attempt(
            lambda: self._hooks.call(lambda callback: callback.on_step(progress.step, loss, result.count))
        )

    def _goes_back(self, found: NonFinite) -> bool:
        """Acts on numbers that aren't finite: raises, skips the minibatch, or goes back first. Collective."""
        progress = self.progress
        if found.step in progress.skipped:
            return False
        back = goes_back(self.on_non_finite, found, progress.skipped, progress.step)
        skipped = {**progress.skipped, found.step: found}
        if back:
            self._go_back(found)
        self.progress.skipped = skipped
        if self.communicator.is_root:
            where = f"going back to step {self.progress.step}, and " if back else ""
            say(f"warning: {found}; {where}its minibatch is left out", sys.stderr)
        return back

    def _go_back(self, found: NonFinite) -> None:
        metadata, checkpoints = self.progress.metadata, []
        self.communicator.set_phase(Phase.CHECKPOINT, self.progress.step)

        def find() -> None:
            checkpoint = self._hooks.newest_checkpoint()
            if checkpoint is None:
                raise found.error("there is no checkpoint to go back to")
            checkpoints.append(checkpoint)

        self.communicator.on_root(find)
        self.restore(checkpoints[0] if checkpoints else None)
        self.step.reset()
        self.progress.metadata, self.last_scores = metadata, {}
        self._hooks.call_together(lambda callback: callback.on_rollback(self.progress.step))

    def _flags(self, step: int) -> Flag:
        """What this rank reports with step number `step`, counted from 1."""
        flags = Flag.STOP if self._stop_asked else NOTHING
        if self._hooks.error is not None:
            flags |= Flag.FAILED
        if self.communicator.is_root:
            now = time.monotonic()
            if self.limits.seconds is not None and now - self.began >= self.limits.seconds:
                flags |= Flag.STOP
            since, per_epoch = now - self._last_checkpoint, self.sampler.steps_per_epoch
            if self.intervals.checkpoint_due(step, per_epoch, since, lambda: self._hooks.writer_is_idle(patience=0.0)):
                flags |= Flag.CHECKPOINT
        return flags

    def _record_due(self, step: int | None = None) -> str | None:
        """Why there is a record at this step (by default the current one): validation, epoch, log, or None."""
        step = self.progress.step if step is None else step
        return self.intervals.record_due(step, self.sampler.steps_per_epoch, self.validation is not None)

    def _record(self, result: StepResult) -> int | None:
        """Scores what is due, decides, records; the step from which the run is over, None as things stand."""
        progress = self.progress
        self.communicator.set_phase(Phase.VALIDATION, progress.step)
        penalty = self.penalty()
        progress.train_loss = progress.loss_sum / progress.count + penalty if progress.count else None
        record: dict[str, Any] = {
            "step": progress.step,
            "epoch": self.epoch,
            "train_loss": progress.train_loss,
            "learning_rate": self.learning_rate,
            "gradient_norm": result.gradient_norm,
        }
        if penalty:
            record["penalty"] = penalty
        if result.problem is not None:
            record["skipped"] = result.problem.record()
        due = self._record_due()
        if self.train is not None and due in ("validation", "epoch"):
            record.update(self._score("train_full", self.train))
        if due == "validation" and self.validation is not None:
            self.last_scores = self._score("validation", self.validation)
            record.update(self.last_scores)
            decision = self._decide(record)
        else:
            decision = self._decide(None)
        seconds = time.monotonic() - self.began
        record["run"] = {"examples_per_second": self.speed.since_last_record(), "seconds": seconds}
        self._hooks.call_together(lambda callback: callback.on_record(record))
        return decision

    def _score(self, prefix: str, evaluator: Evaluator) -> dict[str, Value]:
        return {f"{prefix}_{key}": value for key, value in self.scores_of(evaluator).items()}

    def _decide(self, record: dict[str, Any] | None) -> int | None:
        """Rank 0 looks at a validation (None: at the present state) and broadcasts the decision."""
        if self.rule is None:
            return None
        improved, stop_step = self.communicator.on_root(lambda: self._judge(record))
        if record is not None:
            self.progress.scores = {name: value for name, value in record.items() if isinstance(value, float)}
        if improved and record is not None:
            if self.test is not None and self.test_at_best:
                record.update(self._score("test", self.test))
            self._keep_best(record)
        return stop_step

    def _judge(self, record: Mapping[str, Any] | None) -> tuple[bool, int | None]:
        """(whether the parameters are the best so far, the step to stop at)."""
        assert self.rule is not None
        if record is None:
            return False, self.rule.stop_step()
        improved = self.rule.validated(self.progress.step, record[self.monitor])
        return improved, self.rule.stop_step()

    def _keep_best(self, record: dict[str, Any]) -> None:
        progress = self.progress
        progress.best = {
            key: value
            for key, value in record.items()
            if key in ("step", "epoch", "train_loss") or key.startswith(("validation_", "test_"))
        }
        record["best"] = True
        if self.communicator.is_root:
            progress.best_params = host_copy(self.step.reduction.params)
            progress.best_running = self.step.running.flat.copy()

    def penalty(self) -> float:
        """The L1 and L2 terms of the parameters in place."""
        if not self.step.regularization.penalizes:
            return 0.0
        return self.step.regularization.loss(to_host(self.step.reduction.params), self._segments, BLOCK)

    def checkpoint(self, final: bool = False) -> bool:
        """Saves the run as it is; False where it has to go back instead, for the last update was wrong. Collective.

        The ranks have made their update, and can't make the next one before rank 0 takes part in it: what rank 0
        copies here holds still, while the others are at their next gradients already. The final one is written when
        this returns, others in the background.
        """
        self._last_checkpoint = time.monotonic()
        self.communicator.set_phase(Phase.CHECKPOINT, self.progress.step)
        buffer = final or not self.communicator.is_root or self._hooks.writer_is_idle(PATIENCE)
        ready = self.communicator.allgather_object((self.step.finite, buffer))
        if not all(finite for finite, _ in ready) and self._goes_back(self.step.wrong_update(self.progress.step)):
            return False
        slots = self.step.reduction.gather_slots() if ready[0][1] else None

        def save() -> None:
            if slots is not None and self.callbacks:
                whole, best = take(self.step, self.progress, self.rule, slots)
                self._hooks.call(lambda callback: callback.on_checkpoint(whole, best, self.progress.step, final))

        if final:
            self.communicator.on_root(save)
        else:
            self._hooks.attempt(save)
        return True

    def restore(self, checkpoint: Any) -> None:
        """Continues from rank 0's checkpoint (None elsewhere). Collective."""
        self.progress = restore(self.communicator, self.step, self.rule, checkpoint)

    def finalize(self) -> dict[str, Value]:
        """Puts the best parameters in place (the last where nothing was validated) and scores the test set."""
        best, running = self.progress.best_params, self.step.running
        if self.communicator.broadcast_object(best is not None):
            self.step.reduction.load_params(best)
            if len(running):
                if self.progress.best_running is not None:
                    running.flat[:] = self.progress.best_running
                self.communicator.broadcast(running.flat)
        return {} if self.test is None else self._score("test", self.test)

    def scores_of(self, evaluator: Evaluator) -> dict[str, Value]:
        """Scores with the parameters in place. Collective."""
        return evaluator.run(self.step.params, self.step.model_running(), self._scratch)

    def end(self, summary: Mapping[str, Any]) -> None:
        """Calls the callbacks' `on_end`."""
        self._hooks.call_together(lambda callback: callback.on_end(summary))

    def close(self) -> None:
        """Frees recorded steps and the reduction's communicator; parameters and state stay."""
        self.steps.close()
