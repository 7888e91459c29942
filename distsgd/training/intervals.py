"""When a run stops, and how often it validates, records and saves: functions of the step, and of time for saving."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from distsgd.core.errors import ConfigurationError

_EPOCH_CHECKPOINT_SECONDS = 10.0


@dataclass(frozen=True)
class Interval:
    """How often something happens: `amount` steps, epochs or seconds."""

    amount: float
    unit: Literal["steps", "epochs", "seconds"]


@dataclass(frozen=True)
class Limits:
    """When to stop: whichever comes first. `seconds` count from the start of this attempt, `why` explains them."""

    epochs: int
    max_steps: int | None = None
    seconds: float | None = None
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

    def next_after(self, step: int, steps_per_epoch: int, validates: bool, comparisons: int) -> int:
        """The first step after this one with a record, a checkpoint by number or one of the comparisons, which come
        every so many steps; 0 for none."""
        saves = int(self.checkpoint.amount) if self.checkpoint.unit == "steps" else 0
        periods = (steps_per_epoch, self.validate_steps if validates else 0, self.log_every or 0, saves, comparisons)
        return min(step - step % period + period for period in periods if period)

    def saves_at(self, step: int) -> bool:
        """Whether there is a checkpoint after this step, whatever time it is."""
        return self.checkpoint.unit == "steps" and step % int(self.checkpoint.amount) == 0

    def checkpoint_due(
        self, step: int, steps_per_epoch: int, seconds: float, writer_is_idle: Callable[[], bool]
    ) -> bool:
        """Whether to save after this step, `seconds` after the last time, if `writer_is_idle`."""
        every = self.checkpoint
        if every.unit == "seconds":
            return seconds >= every.amount and writer_is_idle()
        if every.unit == "steps":
            return self.saves_at(step)
        return step % (int(every.amount) * steps_per_epoch) == 0 and seconds >= _EPOCH_CHECKPOINT_SECONDS


def parse_interval(text: str, option: str, *, seconds: bool = True) -> Interval:
    """`500` steps, `2epoch`, or a duration such as `30s` or `5m`."""
    found = re.fullmatch(r"(\d{1,18})\s*(epochs?|steps?)?", text.strip())
    if found is not None and int(found[1]) >= 1:
        return Interval(int(found[1]), "epochs" if (found[2] or "").startswith("epoch") else "steps")
    duration = _seconds(text) if seconds and found is None else None
    if not duration:
        forms = "steps (500), epochs (1epoch)" + (" or a time (30s, 5m)" if seconds else "")
        raise ConfigurationError(f"{option}: expected {forms}, got {text!r}")
    return Interval(duration, "seconds")


def parse_duration(text: str, option: str) -> float:
    """Seconds of `90`, `90s`, `10m`, `3h50m`, `3h50` or `1d`: a number after a unit is in the next smaller one."""
    seconds = _seconds(text)
    if seconds is None:
        raise ConfigurationError(f"{option}: expected a time such as 90s, 10m or 3h50m, got {text!r}")
    return seconds


def _seconds(text: str) -> float | None:
    """The seconds of a duration, None for any other text."""
    text = text.strip()
    units = re.findall("[dhm]", text)
    if units and text[-1].isdigit():
        text += {"d": "h", "h": "m", "m": "s"}[units[-1]]
    found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", text)
    if not text or found is None:
        return None
    days, hours, minutes, rest = (float(part or 0) for part in found.groups())
    seconds = ((days * 24 + hours) * 60 + minutes) * 60 + rest
    return seconds if math.isfinite(seconds) else None


def parse_target(text: str, option: str = "target") -> tuple[str, float]:
    """(metric, value) of `validation_accuracy=0.98`."""
    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not name or not math.isfinite(number):
        raise ConfigurationError(f"{option}: expected METRIC=NUMBER such as validation_accuracy=0.98, got {text!r}")
    return name, number
