"""Metrics as sums: each chunk of examples gives float64 sums, sums of chunks are added, and a value comes out once.

So that a value doesn't depend on who computed which chunk, and nothing is a mean of means. Every example counts the
same: sample weights enter the loss, not the metrics.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, final

import numpy as np

from distsgd.core.components import Component
from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError
from distsgd.nn.task import Task, predicted_classes, true_classes

Mode: TypeAlias = Literal["min", "max"]
Value: TypeAlias = "float | list[list[int]]"


class Metric(Component, ABC):
    """What every metric is: a frozen dataclass with a name, `width` float64 sums, and a value made from them.

    A subclass sets `name` and `mode`, and overrides `sums`, and `width` and `value` where the value isn't a mean.
    `outputs` are (K, n), batch-last, after the output activation where the model has one. `y` are labels (n,), or
    values or class probabilities (K, n).
    """

    name: str
    """The value's name in records, after `validation_` or `test_`."""

    mode: Mode | None = None
    """Which way is better; None where the value isn't a number."""

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


@final
@dataclass(frozen=True)
class Accuracy(Metric):
    """The part of the examples whose predicted class is the true one; see `predicted_classes`.

    Parameters
    ----------
    threshold : float, optional
        Where class 1 begins, if there is one output. By default fit takes the task's, and 0 counts elsewhere.
    """

    name = "accuracy"
    mode = "max"
    threshold: float | None = None

    def sums(self, outputs: Array, y: Array) -> Array:
        """(right, examples)."""
        right = predicted_classes(outputs, self.threshold or 0.0) == true_classes(y)
        return np.array([np.count_nonzero(right), right.size], np.float64)


@final
@dataclass(frozen=True)
class Error(Metric):
    """The part of the examples whose predicted class is not the true one: 1 - accuracy.

    Parameters
    ----------
    threshold : float, optional
        Where class 1 begins, if there is one output. By default fit takes the task's, and 0 counts elsewhere.
    """

    name = "error"
    mode = "min"
    threshold: float | None = None

    def sums(self, outputs: Array, y: Array) -> Array:
        """(wrong, examples)."""
        wrong = predicted_classes(outputs, self.threshold or 0.0) != true_classes(y)
        return np.array([np.count_nonzero(wrong), wrong.size], np.float64)


@final
@dataclass(frozen=True)
class LabelAccuracy(Metric):
    """The part of all yes-or-no answers that are right, of several an example: 1 - the Hamming loss.

    Parameters
    ----------
    threshold : float, optional
        Where yes begins in an output. By default fit takes the task's, and 0 counts elsewhere.
    """

    name = "label_accuracy"
    mode = "max"
    threshold: float | None = None

    def sums(self, outputs: Array, y: Array) -> Array:
        """(right, answers). A NaN is wrong."""
        right = ((outputs > (self.threshold or 0.0)) == (y > 0.5)) & ~np.isnan(outputs)
        return np.array([np.count_nonzero(right), right.size], np.float64)


@final
@dataclass(frozen=True)
class TopK(Metric):
    """The part of the examples whose true class is among the k largest outputs; the lower class wins a tie.

    Parameters
    ----------
    k : int, default 5
        From 1.
    """

    mode = "max"
    k: int = 5
    name: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _positive("top-k: k", self.k)
        object.__setattr__(self, "name", f"top_{self.k}_accuracy")

    def sums(self, outputs: Array, y: Array) -> Array:
        """(right, examples). An example with a NaN among its outputs is wrong."""
        labels = true_classes(y)
        if labels.size and labels.max() >= len(outputs):
            raise ConfigurationError(
                f"{self.name}: expected one output for each class, got {len(outputs)} and the label {labels.max()}"
            )
        own = outputs[labels, np.arange(labels.size)]
        earlier = np.arange(len(outputs))[:, None] < labels
        ahead = np.count_nonzero((outputs > own) | ((outputs == own) & earlier), axis=0)
        right = (ahead < self.k) & ~np.isnan(outputs).any(axis=0)
        return np.array([np.count_nonzero(right), right.size], np.float64)


@final
@dataclass(frozen=True)
class ConfusionMatrix(Metric):
    """Counts of examples, (classes, classes): the row is the true class, the column the predicted one.

    An example with a NaN among its outputs has no predicted class and is in no cell.

    Parameters
    ----------
    num_classes : int
        The number of classes, from 1.
    threshold : float, optional
        Where class 1 begins, if there is one output. By default fit takes the task's, and 0 counts elsewhere.
    """

    name = "confusion_matrix"

    num_classes: int
    threshold: float | None = None

    def __post_init__(self) -> None:
        _positive("confusion matrix: num_classes", self.num_classes)

    def width(self) -> int:
        """classes²."""
        return self.num_classes * self.num_classes

    def sums(self, outputs: Array, y: Array) -> Array:
        """The counts, row after row."""
        predicted, true = predicted_classes(outputs, self.threshold or 0.0), true_classes(y)
        if max(predicted.max(initial=0), true.max(initial=0)) >= self.num_classes:
            raise ConfigurationError(
                f"confusion matrix: expected {self.num_classes} classes, got {len(outputs)} outputs"
            )
        cells = (true * self.num_classes + predicted)[predicted >= 0]
        return np.bincount(cells, minlength=self.width()).astype(np.float64)

    def value(self, sums: Array) -> Value:
        """The matrix as a list of rows."""
        rows: list[list[int]] = sums.reshape(self.num_classes, self.num_classes).astype(np.int64).tolist()
        return rows


@final
@dataclass(frozen=True)
class MeanAbsoluteError(Metric):
    """Σ|y - t| / (n K) over n examples with K outputs y and targets t."""

    name = "mean_absolute_error"
    mode = "min"

    def sums(self, outputs: Array, y: Array) -> Array:
        """(Σ|y - t|, n K)."""
        difference = _difference(outputs, y)
        return np.array([np.abs(difference).sum(), difference.size], np.float64)


@final
@dataclass(frozen=True)
class MeanSquaredError(Metric):
    """Σ(y - t)² / (n K) over n examples with K outputs y and targets t."""

    name = "mean_squared_error"
    mode = "min"

    def sums(self, outputs: Array, y: Array) -> Array:
        """(Σ(y - t)², n K)."""
        difference = _difference(outputs, y)
        return np.array([np.square(difference).sum(), difference.size], np.float64)


@final
@dataclass(frozen=True)
class R2(Metric):
    """1 - Σ(y - t)² / Σ(t - mean of t)² of each of the K outputs, averaged over the outputs.

    scikit-learn's r2_score with multioutput="uniform_average". Targets that are all equal have no spread to explain:
    such an output counts as 1 where it is met exactly, and as 0 elsewhere. Σ(t - mean)² is Σ(t - c)² - (Σ(t - c))²/n in
    float64 with a number c near the mean, `center`: about the mean of the training targets, lest digits are lost where
    it is far larger than the spread. 10⁻¹³ of Σ(t - c)² and less is taken for none.

    Parameters
    ----------
    num_outputs : int, default 1
        K, from 1.
    center : tuple of float, optional
        c for each output. By default fit takes the mean of the training targets, and 0 counts elsewhere.
    """

    name = "r2"
    mode = "max"
    num_outputs: int = 1
    center: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _positive("r2: num_outputs", self.num_outputs)

    def width(self) -> int:
        """1 + 3K."""
        return 1 + 3 * self.num_outputs

    def sums(self, outputs: Array, y: Array) -> Array:
        """(n, Σt of each output, Σt² of each, Σ(y - t)² of each)."""
        difference = _difference(outputs, y)
        targets = np.array(y.reshape(difference.shape), dtype=np.float64, order="C")
        if self.center:
            targets -= np.array(self.center)[:, None]
        columns = (targets, np.square(targets), np.square(difference))
        return np.concatenate([[difference.shape[1]], *(column.sum(axis=1) for column in columns)])

    def value(self, sums: Array) -> Value:
        """The mean over the outputs; NaN where there are fewer than two examples, as in scikit-learn."""
        count = float(sums[0])
        if count < 2:
            return math.nan
        scores = []
        for total, squares, residual in sums[1:].reshape(3, self.num_outputs).T.tolist():
            spread = squares - total * total / count
            if math.isnan(residual):
                scores.append(math.nan)
            elif spread > 1e-13 * squares:
                scores.append(1.0 - residual / spread)
            else:
                scores.append(1.0 if residual == 0.0 else 0.0)
        return math.fsum(scores) / self.num_outputs


@final
@dataclass(frozen=True)
class UserMetric(Metric):
    """The mean over all examples of a function's values.

    Parameters
    ----------
    name : str
        The value's name in records, after `validation_` or `test_`.
    function : function
        `function(outputs, y)` returns one number for each example, (n,).
    mode : Mode, optional
        Which way is better, where that is known.
    thread_safe : bool, default False
        Whether several threads may call the function; one thread does otherwise.
    """

    name: str
    function: Callable[[Array, Array], Array]
    mode: Mode | None = None
    thread_safe: bool = False

    def user_functions(self) -> tuple[Callable[..., Any], ...]:
        return (self.function,)

    def sums(self, outputs: Array, y: Array) -> Array:
        """(Σ of the function's values, examples)."""
        values = np.asarray(self.function(outputs, y), dtype=np.float64)
        if values.shape != outputs.shape[-1:]:
            raise ConfigurationError(
                f"metric {self.name}: expected one value for each of {outputs.shape[-1]} examples, got an array of "
                f"shape {values.shape}; return per-example values, not their mean"
            )
        return np.array([np.ascontiguousarray(values).sum(), values.size], np.float64)


METRICS: dict[str, Callable[[Task, int, tuple[float, ...]], Metric]] = {
    "accuracy": lambda task, outputs, center: Accuracy(task.output_threshold),
    "error": lambda task, outputs, center: Error(task.output_threshold),
    "top_5_accuracy": lambda task, outputs, center: TopK(5),
    "mean_absolute_error": lambda task, outputs, center: MeanAbsoluteError(),
    "mean_squared_error": lambda task, outputs, center: MeanSquaredError(),
    "r2": lambda task, outputs, center: R2(outputs, center),
}
"""What `--metric NAME` measures, made of the task, the number of outputs, and the mean of the training targets."""


def standard_metrics(
    task: Task, num_outputs: int, top_k: int | None = None, center: tuple[float, ...] = ()
) -> tuple[Metric, ...]:
    """What is measured of a task besides the loss, by a model with K = num_outputs outputs; `center` is R2's.

    Raises ConfigurationError for a top_k that doesn't fit.
    """
    if top_k is not None and (task.kind != "classification" or num_outputs == 1 or not 1 <= top_k <= num_outputs):
        raise ConfigurationError(
            f"top_k: expected classes, a model with at least 2 outputs, and a k up to their number, got k = {top_k} "
            f"for a {task.kind} with {num_outputs} outputs"
        )
    if task.kind == "other":
        return ()
    if task.kind == "regression":
        return (MeanSquaredError(), MeanAbsoluteError(), R2(num_outputs, center))
    threshold = task.output_threshold
    if task.kind == "multilabel":
        return (LabelAccuracy(threshold),)
    return (Accuracy(threshold), Error(threshold), *(() if top_k is None else (TopK(top_k),)))


def _difference(outputs: Array, y: Array) -> Array:
    """outputs - y, float64, C-ordered (K, n), whatever the memory order of the two."""
    targets = y[None] if y.ndim == 1 else y
    if outputs.shape != targets.shape:
        raise ConfigurationError(
            f"the targets have shape {targets.shape}, the model's outputs {outputs.shape}; "
            "give the model as many outputs as there are target values"
        )
    difference: Array = np.subtract(outputs, targets, dtype=np.float64, order="C")
    return difference


def _positive(what: str, given: int) -> None:
    if not isinstance(given, int) or given < 1:
        raise ConfigurationError(f"{what} must be a whole number at least 1, got {given!r}")
