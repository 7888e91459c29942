"""When training stops because validation no longer improves: two rules, state machines that rank 0 keeps.

A rule gets each validation's value and decides at which step the run ends; its state is part of the
checkpoint. Steps count the updates made since the run's beginning.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal, TypeAlias, final

from distsgd.core.errors import ConfigurationError

Mode: TypeAlias = Literal["min", "max"]
State: TypeAlias = dict[str, float | None]


class StoppingRule(ABC):
    """What a rule is. `best` is the best value so far and `best_step` its step, both None before the first.

    A value that is NaN or infinite never improves. An equal value doesn't either: which parameters are kept of two
    with equal values is `Selection`'s decision, and doesn't change how long training continues.
    """

    mode: Mode = "min"
    """Whether less or more is better."""

    best: float | None = None
    best_step: int | None = None

    learned: ClassVar[Mapping[str, type]] = {"best": float, "best_step": int}
    """The attributes that `state` holds, and what they are where they aren't as they began."""

    @abstractmethod
    def validated(self, step: int, value: float) -> bool:
        """Takes in `value`, measured after `step` steps; whether it improved on the best."""

    @abstractmethod
    def stop_step(self) -> int | None:
        """The run stops as soon as the steps made are at least this many; None: not as things stand."""

    @abstractmethod
    def explain(self, monitor: str, unit: str) -> str | None:
        """Why it ends a run that watches `monitor`, in words; None where it never does.

        `unit` is what lies between two validations, in the plural: epochs, validations.
        """

    def state(self) -> State:
        """All that the rule has learned, for JSON; every value is finite or None."""
        return {name: getattr(self, name) for name in self.learned}

    def restore(self, state: Mapping[str, float | None]) -> None:
        """Continues from an earlier rule's `state()`.

        Settings are not in it, and it need not come from the same kind of rule, if that watched the same value: what
        the other didn't know begins anew.
        """
        for name, kind in self.learned.items():
            value = state.get(name)
            setattr(self, name, getattr(type(self), name) if value is None else kind(value))


@final
class EpochsRule(StoppingRule):
    """Stops at the `patience`-th validation in a row without improvement; patience 0 never stops.

    value < best - min_delta is an improvement where less is better (`mode` "min"), and value > best + min_delta where
    more is ("max").
    """

    learned: ClassVar[Mapping[str, type]] = {**StoppingRule.learned, "without_improvement": int, "last_step": int}
    without_improvement = 0
    last_step: int | None = None

    def __init__(self, patience: int, min_delta: float = 0.0, mode: Mode = "min") -> None:
        self.patience, self.min_delta, self.mode = patience, min_delta, mode

    def validated(self, step: int, value: float) -> bool:
        """Counts the validation; see StoppingRule."""
        value, sign = float(value), 1.0 if self.mode == "min" else -1.0
        best = math.inf if self.best is None else sign * self.best
        improved = math.isfinite(value) and sign * value < best - self.min_delta
        self.last_step = step
        if improved:
            self.best, self.best_step, self.without_improvement = value, step, 0
        else:
            self.without_improvement += 1
        return improved

    def stop_step(self) -> int | None:
        """The last validation's step where patience has run out, else None."""
        return self.last_step if 0 < self.patience <= self.without_improvement else None

    def explain(self, monitor: str, unit: str) -> str | None:
        """See StoppingRule."""
        if self.patience == 0:
            return None
        better = f"no {monitor} better by more than {self.min_delta:g}" if self.min_delta else f"no better {monitor}"
        return f"{better} in {self.patience} {unit}; --patience 0 turns this off"


@final
class PatienceRule(StoppingRule):
    """The rule of Theano's deep-learning tutorials (deeplearning.net): patience in minibatches, extended by success.

    With i = step - 1, the number of the last minibatch counted from 0: a value below the best is the new best, and if
    it is even below best · improvement_threshold, patience := max(patience, i · patience_increase). The run stops
    after the first minibatch with i >= patience. Less is better: watch the error, not the accuracy; of a negative best
    every improvement counts as a large one.
    """

    def __init__(self, patience: int, patience_increase: float = 2, improvement_threshold: float = 0.995) -> None:
        self.patience: float = patience
        self.patience_increase, self.improvement_threshold = patience_increase, improvement_threshold
        self._initial_patience = patience

    def validation_frequency(self, batches_per_epoch: int) -> int:
        """Minibatches from one validation to the next: min(batches_per_epoch, patience // 2), at least 1.

        From the patience that was set, not from what it has grown to. A validation is due where step is a multiple.
        """
        return max(1, min(batches_per_epoch, self._initial_patience // 2))

    def validated(self, step: int, value: float) -> bool:
        """Takes in the value, and extends patience where it is much better than the best; see StoppingRule."""
        value = float(value)
        best = math.inf if self.best is None else self.best
        if not (math.isfinite(value) and value < best):
            return False
        if value < best * self.improvement_threshold:
            self.patience = max(self.patience, (step - 1) * self.patience_increase)
        self.best, self.best_step = value, step
        return True

    def stop_step(self) -> int:
        """The first step with step - 1 >= patience."""
        return math.ceil(self.patience) + 1

    def explain(self, monitor: str, unit: str) -> str:
        """See StoppingRule."""
        return f"no much better {monitor} within the patience of {math.ceil(self.patience)} steps"

    def state(self) -> State:
        """See StoppingRule."""
        return super().state() | {"patience": self.patience}

    def restore(self, state: Mapping[str, float | None]) -> None:
        """See StoppingRule. Patience is what it had grown to, or what is set now if that is more."""
        super().restore(state)
        self.patience = max(self._initial_patience, state.get("patience") or 0)


_LESS_IS_BETTER = ("loss", "error")
_MORE_IS_BETTER = ("accuracy", "r2")
_SCORES = {
    *(f"{name}{average}" for name in ("precision", "recall", "f1") for average in ("", "_macro", "_micro")),
    "matthews_correlation", "roc_auc", "average_precision",
}  # fmt: skip
"""distsgd's own metrics of which more is better, and whose names end otherwise."""


def monitor_mode(name: str) -> Mode:
    """Which way the metric called `name` gets better, by how its name ends: loss, error: min; accuracy, r2: max.

    `validation_loss`, `mean_squared_error`, `validation_top_5_accuracy`; other metrics of distsgd's are known by their
    names. Raises ConfigurationError for all others, for a wrong guess would keep the worst parameters.
    """
    last = name.rsplit("_", 1)[-1]
    if last in _LESS_IS_BETTER:
        return "min"
    if last in _MORE_IS_BETTER or name in _SCORES or name.partition("_")[2] in _SCORES:
        return "max"
    endings = ", ".join(_LESS_IS_BETTER + _MORE_IS_BETTER)
    raise ConfigurationError(
        f"monitor {name!r}: expected a name that ends in one of {endings}, which says whether less or more is better"
    )


def reaches(target: tuple[str, float], scores: Mapping[str, float]) -> bool:
    """Whether the score called target[0] is as good as target[1] or better; see monitor_mode."""
    name, wanted = target
    value = scores.get(name, math.nan)
    return value >= wanted if monitor_mode(name) == "max" else value <= wanted
