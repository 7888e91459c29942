"""What a metric is: float64 sums of each chunk of examples, which are added, and a value that comes out once.

So that a value doesn't depend on who computed which chunk, and nothing is a mean of means. Every example counts the
same: sample weights enter the loss, not the metrics.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar, final

import numpy as np

from distsgd.core.components import Component
from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError
from distsgd.nn.task import Kind, Task

Mode: TypeAlias = Literal["min", "max"]
Function = TypeVar("Function", bound=Callable[..., Any])
Value: TypeAlias = "float | list[float] | list[list[int]]"


class Metric(Component, ABC):
    """What every metric is: a frozen dataclass with a name, `width` float64 sums, and a value made from them.

    A subclass sets `name` and `mode`, and overrides `sums`, and `width` and `value` where the value isn't a mean.
    `outputs` are (K, n), batch-last, after the output activation where the model has one. `y` are labels (n,), or
    values or class probabilities (K, n).
    """

    name: str
    """The value's name in records, after `validation_` or `test_`."""

    mode: Mode | None = None
    """Which way is better; None where that isn't known, or the value isn't a number."""

    kinds: tuple[Kind, ...] = ()
    """The kinds of tasks that it means something for; all where there are none."""

    is_number: bool = True
    """Whether the value is one number, which early stopping can watch."""

    gathers: bool = False
    """Whether the value takes the outputs and targets of all examples at once, by `of_set`, instead of sums.

    Rank 0 holds both then, of all examples, for as long as it computes the value."""

    def of_task(self, task: Task, outputs: int, center: tuple[float, ...]) -> Metric:
        """This metric, with what its maker leaves to the task.

        Parameters
        ----------
        task : Task
            What the outputs stand for.
        outputs : int
            K, the number of outputs that it measures.
        center : tuple of float
            The mean of the training targets, where they are values.

        Returns
        -------
        Metric
            Itself by default.

        Raises
        ------
        ConfigurationError
            Where it doesn't fit.
        """
        return self

    def suits(self, task: Task, outputs: int) -> bool:
        """Whether the value means something.

        Parameters
        ----------
        task, outputs
            See `of_task`.

        Returns
        -------
        bool
            By default whether the task is of one of the `kinds`.
        """
        return not self.kinds or task.kind in self.kinds

    def width(self) -> int:
        """How many sums there are.

        Returns
        -------
        int
            2 by default.
        """
        return 2

    @abstractmethod
    def sums(self, outputs: Array, y: Array) -> Array:
        """The sums of one chunk of examples; sums of chunks are added.

        Parameters
        ----------
        outputs : array
            The model's outputs (K, n); n may be 0.
        y : array
            The targets: labels (n,), or values or class probabilities (K, n).

        Returns
        -------
        array
            float64 (width,).
        """

    def value(self, sums: Array) -> Value:
        """The value of added-up sums.

        Parameters
        ----------
        sums : array
            float64 (width,), over all examples.

        Returns
        -------
        float or list of list of int
            The mean, sums[0] / sums[1], by default; NaN where there were no examples.
        """
        return float(sums[0] / sums[1]) if sums[1] else math.nan

    def of_set(self, outputs: Array, y: Array) -> Value:
        """The value of a whole set of examples, of a metric that `gathers`.

        Parameters
        ----------
        outputs, y : array
            See `sums`: of all examples in their order, whatever ranks scored them.

        Returns
        -------
        float or list of float
            The value.
        """
        raise NotImplementedError(f"{type(self).__name__} gathers, and has no of_set")


class GatheringMetric(Metric):
    """A metric of all examples at once: it overrides `of_set`."""

    gathers = True

    def width(self) -> int:
        """None."""
        return 0

    def sums(self, outputs: Array, y: Array) -> Array:
        """None."""
        return np.zeros(0)


@final
@dataclass(frozen=True)
class UserMetric(Metric):
    """The mean over all examples of a function's values, or a function's value of all examples at once.

    Parameters
    ----------
    name : str
        The value's name in records, after `validation_` or `test_`.
    function : function
        `function(outputs, y)` returns one number for each example, (n,); or one number of the whole set.
    mode : Mode, optional
        Which way is better, where that is known. By default the function's attribute `mode`, where it has one.
    thread_safe : bool, default False
        Whether several threads may call the function; one thread does otherwise.
    per : str, optional
        "example", or "set" for one number of the whole set, whose outputs and targets rank 0 gathers in their order.
        By default the function's attribute `per`, else "example".
    """

    name: str
    function: Callable[[Array, Array], Array | float]
    mode: Mode | None = None
    thread_safe: bool = False
    per: Literal["example", "set"] | None = None

    def __post_init__(self) -> None:
        per, mode = self.per or getattr(self.function, "per", None), self.mode or getattr(self.function, "mode", None)
        for what, value, known in (("per", per, ("example", "set")), ("mode", mode, ("min", "max"))):
            if value is not None and value not in known:
                raise ConfigurationError(f"metric {self.name}: {what} must be one of {', '.join(known)}, got {value!r}")
        object.__setattr__(self, "mode", mode)

    @property
    def gathers(self) -> bool:  # type: ignore[override]
        """Whether the function takes all examples at once."""
        return (self.per or getattr(self.function, "per", None)) == "set"

    def user_functions(self) -> tuple[Callable[..., Any], ...]:
        return (self.function,)

    def sums(self, outputs: Array, y: Array) -> Array:
        """(Σ of the function's values, examples)."""
        if self.gathers:
            return np.zeros(2)
        values = np.asarray(self.function(outputs, y))
        if values.shape != outputs.shape[-1:] or values.dtype.kind not in "biuf":
            raise ConfigurationError(
                f"metric {self.name}: expected one value for each of {outputs.shape[-1]} examples, got {_got(values)}; "
                "return per-example values, not their mean, or mark the function with distsgd.metrics.per_set"
            )
        return np.array([np.ascontiguousarray(values, np.float64).sum(), values.size], np.float64)

    def of_set(self, outputs: Array, y: Array) -> Value:
        """The function's number."""
        value = np.asarray(self.function(outputs, y))
        if value.shape != () or value.dtype.kind not in "biuf":
            raise ConfigurationError(
                f"metric {self.name}: expected one number of the whole set, got {_got(value)}; return a float"
            )
        return float(value)


def per_set(function: Function) -> Function:
    """Mark a function as a metric of the whole set: it gets all outputs and targets at once, and returns one number.

    Parameters
    ----------
    function : function
        `function(outputs, y) -> float`.

    Returns
    -------
    function
        The same, with the attribute `per`.

    Examples
    --------
    >>> @per_set
    ... def range_of_outputs(outputs, y):
    ...     return outputs.max() - outputs.min()
    >>> UserMetric("range", range_of_outputs).of_set(np.array([[1.0, 4.0]]), np.array([0, 1]))
    3.0
    """
    try:
        vars(function)["per"] = "set"
    except TypeError:
        raise ConfigurationError(
            f"per_set: {type(function).__name__} takes no attribute; give UserMetric(name, function, per='set')"
        ) from None
    return function


def checked_sums(metric: Metric, sums: Any) -> Array:
    """What a metric returned as its sums. Raises ConfigurationError where it is something else."""
    found = np.asarray(sums)
    if found.shape != (metric.width(),) or found.dtype.kind not in "biuf":
        raise ConfigurationError(
            f"metric {metric.name}: expected {metric.width()} sums, as its width says, got {_got(found)}; return an "
            f"array ({metric.width()},), or override width"
        )
    return found


def checked_value(metric: Metric, value: Any) -> Value:
    """A metric's value in Python's own numbers. Raises ConfigurationError for what is neither a number nor a list."""
    if isinstance(value, float | list):
        return value
    found = np.asarray(value)
    if found.dtype.kind not in "biuf":
        raise ConfigurationError(f"metric {metric.name}: expected a number or a list of some, got {_got(found)}")
    plain: Value = found.tolist() if found.ndim else float(found)
    return plain


def check_names(metrics: Sequence[Metric]) -> None:
    """Raises ConfigurationError for a name that can't stand in the records, for two metrics by one name, and for the
    name of another score."""
    found: dict[str, Metric] = {}
    for metric in metrics:
        name = getattr(metric, "name", None)
        if not isinstance(name, str) or not name or not name.isprintable():
            raise ConfigurationError(
                f"metric {type(metric).__name__}: expected a name for the records, printable text, got {name!r}"
            )
        other = found.setdefault(name, metric)
        if other != metric or name == "loss":
            whose = "the loss has this name" if name == "loss" else f"{type(other).__name__} has this name, too"
            raise ConfigurationError(f"metric {name}: {whose}, and one would hide the other; give it another name")


def _got(value: Array) -> str:
    """What an array is, for messages."""
    if value.dtype.kind in "biufc":
        return f"an array of shape {value.shape}" + (" of complex numbers" if value.dtype.kind == "c" else "")
    return type(value.item()).__name__ if not value.shape else f"an array of {value.dtype} of shape {value.shape}"


def positive(what: str, given: int) -> None:
    """Raise ConfigurationError for what is no whole number from 1."""
    if not isinstance(given, int) or given < 1:
        raise ConfigurationError(f"{what} must be a whole number at least 1, got {given!r}")
