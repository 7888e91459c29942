"""When a run stops, and how often it validates, records and saves: functions of the step, and of time for saving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from distsgd.run.option_values import Interval

_EPOCH_CHECKPOINT_SECONDS = 10.0


@dataclass(frozen=True)
class Limits:
    """When to stop: whichever comes first. `seconds` count from the start of this attempt, `why` explains them."""

    epochs: int
    max_steps: int | None = None
    seconds: float | None = None
    target: tuple[str, float] | None = None
    why: str = ""

    def steps(self, steps_per_epoch: int) -> int:
        """The last step that the limits allow."""
        steps = self.epochs * steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)


@dataclass(frozen=True)
class Intervals:
    """What happens how often; records come at each epoch's end and each validation, and every log_every steps."""

    validate_steps: int
    checkpoint: Interval
    log_every: int | None = None

    def record_due(self, step: int, steps_per_epoch: int, validates: bool) -> str | None:
        """Why there is a record at this step, counted from 1: validation, epoch, log, or None."""
        if validates and step % self.validate_steps == 0:
            return "validation"
        if step % steps_per_epoch == 0:
            return "epoch"
        return "log" if self.log_every is not None and step % self.log_every == 0 else None

    def saves_at(self, step: int) -> bool:
        """Whether there is a checkpoint after this step, whatever time it is."""
        return self.checkpoint.unit == "steps" and step % int(self.checkpoint.amount) == 0

    def checkpoint_due(
        self, step: int, steps_per_epoch: int, seconds: float, writer_is_idle: Callable[[], bool]
    ) -> bool:
        """Whether to save after this step, `seconds` after the last time; `writer_is_idle`: nobody is still writing."""
        every = self.checkpoint
        if every.unit == "seconds":
            return seconds >= every.amount and writer_is_idle()
        if every.unit == "steps":
            return self.saves_at(step)
        return step % (int(every.amount) * steps_per_epoch) == 0 and seconds >= _EPOCH_CHECKPOINT_SECONDS
