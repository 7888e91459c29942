"""What the table in unlike.py gives to fit: models, functions and metrics that can be made to differ in one thing."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import distsgd
from distsgd.optim import schedules
from distsgd.optim.optimizers import Optimizer
from distsgd.training.metrics import Metric


def network(units: int, activation: str = "relu") -> distsgd.Layer:
    return distsgd.Sequential([distsgd.Dense(4, units), distsgd.Activation(activation), distsgd.Dense(units, 2)])


def line(params: Any, grads: Any, batch: Any) -> tuple[float, int]:
    return pull(params, grads, batch, 1.0)


def steep_line(params: Any, grads: Any, batch: Any) -> tuple[float, int]:
    return pull(params, grads, batch, 2.0)


def pull(params: Any, grads: Any, batch: Any, factor: float) -> tuple[float, int]:
    """The loss of a straight line, times a factor: what the functions of this table have in common."""
    error = params["w"] @ batch.x - batch.y
    grads["w"][...] = factor * (batch.x @ error)
    return 0.5 * factor * float(error @ error), len(batch)


def remembered(factor: Any) -> Any:
    def loss(params: Any, grads: Any, batch: Any) -> tuple[float, int]:
        return pull(params, grads, batch, float(np.sum(factor)))

    return loss


def preset(factor: float) -> Any:
    def loss(params: Any, grads: Any, batch: Any, factor: float = factor) -> tuple[float, int]:
        return pull(params, grads, batch, factor)

    return loss


def preset_by_name(factor: float) -> Any:
    def loss(params: Any, grads: Any, batch: Any, *, factor: float = factor) -> tuple[float, int]:
        return pull(params, grads, batch, factor)

    return loss


def by_global(factor: float) -> Any:
    """A function of a module of its own, whose global it reads."""
    names = {"pull": pull, "factor": factor, "__name__": "written"}
    exec("def loss(params, grads, batch):\n    return pull(params, grads, batch, factor)", names)
    return names["loss"]


def by_helper(factor: float) -> Any:
    """A function that calls another one, whose code differs."""
    names = {"pull": pull, "__name__": "written"}
    exec(
        f"def inner(*arguments):\n    return pull(*arguments, {factor})\n"
        "def loss(params, grads, batch):\n    return inner(params, grads, batch)",
        names,
    )
    return names["loss"]


def scaled(factor: float, params: Any, grads: Any, batch: Any) -> tuple[float, int]:
    return pull(params, grads, batch, factor)


@dataclass(frozen=True)
class Pull:
    factor: float
    cache: dict[int, int] = field(default_factory=dict, compare=False)

    def __call__(self, params: Any, grads: Any, batch: Any) -> tuple[float, int]:
        self.cache[len(batch)] = self.cache.get(len(batch), 0) + 1
        return pull(params, grads, batch, self.factor)

    def loss(self, params: Any, grads: Any, batch: Any) -> tuple[float, int]:
        return self(params, grads, batch)


class Plain:
    """As Pull, without declaring anything."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, params: Any, grads: Any, batch: Any) -> tuple[float, int]:
        return pull(params, grads, batch, self.factor)


class Color(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Share(Metric):
    """A metric with a setting of any kind."""

    setting: Any = None
    name: str = "share"

    def sums(self, outputs: Any, y: Any) -> Any:
        return np.array([float(np.count_nonzero(y)), float(y.size)])


class Signs(Optimizer):
    """w := w - factor η sign(g); not a dataclass, so that its repr holds its address."""

    learning_rate = 0.0
    weight_decay = 0.0

    def __init__(self, learning_rate: float, factor: float) -> None:
        self.learning_rate, self.factor = learning_rate, factor

    def step(self, params: Any, grads: Any, state: Any, scalars: Any, spare: Any) -> None:
        np.sign(grads, out=grads)
        np.multiply(grads, self.factor * scalars[0], out=grads)
        np.subtract(params, grads, out=params)


def share_with(offset: float) -> Metric:
    """An instance of a class that is made anew, with another body for another offset."""

    class Own(Metric):
        name = "own"

        def sums(self, outputs: Any, y: Any) -> Any:
            return np.array([offset, 1.0])

    return Own()


@dataclass(frozen=True)
class Half(schedules.Schedule):
    factor: float = 0.5

    def multiplier(self, step: int, steps_per_epoch: int) -> float:
        return self.factor


class Raising:
    """Raises as it becomes an array."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise self.error("in the user's own class")


@dataclass(frozen=True)
class Unfinished(distsgd.Layer):
    """A layer that can't say its shapes."""

    def parameter_shapes(self) -> Mapping[str, Any]:
        raise LookupError("no shapes yet")

    initialize = output_shape = forward = None  # type: ignore[assignment]


def first_lambda() -> Any:
    return lambda p, g, b: pull(p, g, b, 1.0)


def second_lambda() -> Any:
    def around() -> Any:
        return lambda p, g, b: pull(p, g, b, 1.0)

    return around()
