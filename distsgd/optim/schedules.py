"""Learning-rate schedules: pure functions of the step number, in Python floats, computed on rank 0.

Symbols: η₀ the optimizer's learning rate, `step` counts from 0 and is never reset, epoch = step / steps_per_epoch (a
fraction), and t = epoch / decay_epochs, rounded down where `staircase` is set.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import final

from distsgd.core.components import build, field_names
from distsgd.core.errors import ConfigurationError
from distsgd.core.ranges import check_fields

_LATE = 10**300
"""Larger times are no floats any more, and nothing is different after this one."""
_INTERVALS = {"decay_rate": "[0, inf)", "decay_epochs": "(0, inf)", "factor": "(0, 1]", "epochs": "(0, inf)"}


class Schedule(ABC):
    """The base class: a frozen dataclass; a subclass overrides `multiplier`, by which η₀ is multiplied at a step.

    Examples
    --------
    >>> class Halves(Schedule):
    ...     def multiplier(self, step, steps_per_epoch):
    ...         return 0.5 ** (step // steps_per_epoch)
    >>> Halves().learning_rate(0.8, step=20, steps_per_epoch=10)
    0.2
    """

    @abstractmethod
    def multiplier(self, step: int, steps_per_epoch: int) -> float:
        """η / η₀ at a step.

        Parameters
        ----------
        step : int
            Steps made before this one, in all epochs.
        steps_per_epoch : int
            Steps of one epoch; step / steps_per_epoch is the epoch as a fraction.

        Returns
        -------
        float
            From 0 to 1.
        """

    def learning_rate(self, base: float, step: int, steps_per_epoch: int) -> float:
        """η of the step that comes after `step` steps.

        Parameters
        ----------
        base : float
            η₀, the optimizer's learning rate.
        step, steps_per_epoch : int
            See `multiplier`.

        Returns
        -------
        float
            η₀ times the multiplier.
        """
        return float(base) * self.multiplier(step, steps_per_epoch)


class _Checked(Schedule):
    """A schedule of this module with fields to check; a user's schedule checks its own."""

    def __post_init__(self) -> None:
        check_fields(self, _INTERVALS)


@final
@dataclass(frozen=True)
class Constant(Schedule):
    """η = η₀."""

    def multiplier(self, step: int, steps_per_epoch: int) -> float:
        """1."""
        return 1.0


@final
@dataclass(frozen=True)
class InverseTime(_Checked):
    """η = η₀ / (1 + decay_rate t), with t = epoch / decay_epochs.

    Parameters
    ----------
    decay_rate, decay_epochs : float, default 1.0
        The decay in one unit of time, and the epochs that make one.
    staircase : bool, default False
        Whether t is rounded down, so that η changes at whole units of time alone.

    References
    ----------
    .. [1] Robbins & Monro, "A stochastic approximation method", 1951.
    """

    decay_rate: float = 1.0
    decay_epochs: float = 1.0
    staircase: bool = False

    def multiplier(self, step: int, steps_per_epoch: int) -> float:
        """1 / (1 + decay_rate t)."""
        return 1.0 / (1.0 + self.decay_rate * _time(step, steps_per_epoch, self.decay_epochs, self.staircase))


@final
@dataclass(frozen=True)
class InverseSqrt(_Checked):
    """η = η₀ / √(1 + decay_rate t), with t = epoch / decay_epochs.

    Parameters
    ----------
    decay_rate, decay_epochs : float, default 1.0
        The decay in one unit of time, and the epochs that make one.
    staircase : bool, default False
        Whether t is rounded down, so that η changes at whole units of time alone.

    References
    ----------
    .. [1] Zinkevich, "Online convex programming", 2003, whose step sizes are 1/√t.
    """

    decay_rate: float = 1.0
    decay_epochs: float = 1.0
    staircase: bool = False

    def multiplier(self, step: int, steps_per_epoch: int) -> float:
        """1 / √(1 + decay_rate t)."""
        t = _time(step, steps_per_epoch, self.decay_epochs, self.staircase)
        return 1.0 / math.sqrt(1.0 + self.decay_rate * t)


@final
@dataclass(frozen=True)
class Step(_Checked):
    """η = η₀ factor^⌊epoch / decay_epochs⌋: drops to `factor` of itself every `decay_epochs` epochs.

    Parameters
    ----------
    factor : float, default 0.1
        Of η at each drop, above 0 and at most 1.
    decay_epochs : float, default 10.0
        Epochs between two drops.
    """

    factor: float = 0.1
    decay_epochs: float = 10.0

    def multiplier(self, step: int, steps_per_epoch: int) -> float:
        """factor^⌊t⌋."""
        return float(self.factor ** _time(step, steps_per_epoch, self.decay_epochs, staircase=True))


@final
@dataclass(frozen=True)
class Exponential(_Checked):
    """η = η₀ factor^t, with t = epoch / decay_epochs; factor = exp(-k) is the form η₀ exp(-k t).

    Parameters
    ----------
    factor : float, default 0.95
        Of η in one unit of time, above 0 and at most 1.
    decay_epochs : float, default 1.0
        Epochs that make one unit of time.
    staircase : bool, default False
        Whether t is rounded down, so that η changes at whole units of time alone.
    """

    factor: float = 0.95
    decay_epochs: float = 1.0
    staircase: bool = False

    def multiplier(self, step: int, steps_per_epoch: int) -> float:
        """factor^t."""
        return float(self.factor ** _time(step, steps_per_epoch, self.decay_epochs, self.staircase))


@final
@dataclass(frozen=True)
class Cosine(_Checked):
    """η = η₀ (1 + cos(π min(epoch / epochs, 1))) / 2: half a cosine down to 0 at `epochs`, and 0 after it.

    Parameters
    ----------
    epochs : float
        The horizon in epochs.

    References
    ----------
    .. [1] Loshchilov & Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017, without the restarts.
    """

    epochs: float

    def multiplier(self, step: int, steps_per_epoch: int) -> float:
        """(1 + cos(π min(epoch / epochs, 1))) / 2."""
        return 0.5 * (1.0 + math.cos(math.pi * min(_time(step, steps_per_epoch, self.epochs, staircase=False), 1.0)))


@final
@dataclass(frozen=True)
class Warmup(Schedule):
    """Linear warm-up of another schedule: its learning rate times min((step + 1) / warmup_steps, 1).

    The inner schedule starts at step 0, not after the warm-up, so there is no jump at its end.

    Parameters
    ----------
    schedule : Schedule
        The schedule that is warmed up.
    warmup_steps : int
        The number of steps up to the schedule's own learning rate, from 1.

    References
    ----------
    .. [1] Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour", 2017.
    """

    schedule: Schedule
    warmup_steps: int

    def __post_init__(self) -> None:
        if not isinstance(self.warmup_steps, int) or self.warmup_steps < 1:
            raise ConfigurationError(
                f"warmup_steps must be a whole number, 0 for none and at least 1 in Warmup, got {self.warmup_steps!r}"
            )

    def multiplier(self, step: int, steps_per_epoch: int) -> float:
        """min((step + 1) / warmup_steps, 1) times the inner schedule's."""
        return min((step + 1) / self.warmup_steps, 1.0) * self.schedule.multiplier(step, steps_per_epoch)


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "inverse-time": InverseTime,
    "inverse-sqrt": InverseSqrt,
    "step": Step,
    "exponential": Exponential,
    "cosine": Cosine,
}


def build_schedule(
    name: str,
    *,
    warmup_steps: int = 0,
    decay_rate: float | None = None,
    decay_epochs: float | None = None,
    factor: float | None = None,
    staircase: bool = False,
    epochs: float | None = None,
) -> Schedule:
    """The schedule called `name`, with linear warm-up. None and False keep the schedule's defaults.

    Parameters
    ----------
    name : str
        A name in SCHEDULES.
    warmup_steps : int, default 0
        Steps of linear warm-up; 0 for none.
    decay_rate, decay_epochs, factor, staircase
        Fields of the schedule.
    epochs : float, optional
        The horizon: the cosine schedule needs it, the others don't use it.

    Returns
    -------
    Schedule
        The schedule, in a `Warmup` where there are warm-up steps.

    Raises
    ------
    ConfigurationError
        For an unknown name, a setting that the schedule doesn't have, or a bad value.

    Examples
    --------
    >>> build_schedule("step", decay_epochs=30).learning_rate(0.5, step=6000, steps_per_epoch=100)
    0.005000000000000001
    """
    given = {"decay_rate": decay_rate, "decay_epochs": decay_epochs, "factor": factor, "staircase": staircase or None}
    if has_horizon(name):
        if epochs is None:
            raise ConfigurationError(f"schedule {name}: needs its horizon in epochs; set the schedule's epochs")
        given["epochs"] = epochs
    schedule = build("schedule", SCHEDULES, name, given)
    return schedule if warmup_steps == 0 else Warmup(schedule, warmup_steps)


def has_horizon(name: str) -> bool:
    """Whether the schedule called `name` depends on how many epochs there will be."""
    return name in SCHEDULES and "epochs" in field_names(SCHEDULES[name])


def _time(step: int, steps_per_epoch: int, decay_epochs: float, staircase: bool) -> float:
    """t = step / (steps_per_epoch decay_epochs): one division, so that whole numbers come out whole."""
    if staircase:  # 1.1 epochs of 100 steps are 110 steps, and not the 110.00000000000001 of floats
        return float(min(step // (steps_per_epoch * Fraction(repr(decay_epochs))), _LATE))
    return min(step / (steps_per_epoch * decay_epochs), float(_LATE))
