"""Metrics of values."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError
from distsgd.nn.task import Kind, Task
from distsgd.training.metrics.base import GatheringMetric, Metric, Mode, Value, positive


class ValueMetric(Metric):
    """A metric of values, and of the probability that is the single output of two classes under a squared error."""

    mode: Mode | None = "min"
    kinds: tuple[Kind, ...] = ("regression",)

    def suits(self, task: Task, outputs: int) -> bool:
        return super().suits(task, outputs) or task.answer == "probability"


@final
@dataclass(frozen=True)
class MeanAbsoluteError(ValueMetric):
    """Σ|y - t| / (n K) over n examples with K outputs y and targets t."""

    name = "mean_absolute_error"

    def sums(self, outputs: Array, y: Array) -> Array:
        """(Σ|y - t|, n K)."""
        difference = _difference(outputs, y)
        return np.array([np.abs(difference).sum(), difference.size], np.float64)


@final
@dataclass(frozen=True)
class MeanSquaredError(ValueMetric):
    """Σ(y - t)² / (n K) over n examples with K outputs y and targets t."""

    name = "mean_squared_error"

    def sums(self, outputs: Array, y: Array) -> Array:
        """(Σ(y - t)², n K)."""
        difference = _difference(outputs, y)
        return np.array([np.square(difference).sum(), difference.size], np.float64)


@final
@dataclass(frozen=True)
class RootMeanSquaredError(ValueMetric):
    """√(Σ(y - t)² / n) of each of the K outputs, averaged over the outputs.

    scikit-learn's root_mean_squared_error with multioutput="uniform_average".

    Parameters
    ----------
    num_outputs : int, optional
        K, from 1. By default fit takes the task's, and 1 counts elsewhere.
    """

    name = "root_mean_squared_error"
    num_outputs: int | None = None

    def __post_init__(self) -> None:
        positive("root_mean_squared_error: num_outputs", 1 if self.num_outputs is None else self.num_outputs)

    def of_task(self, task: Task, outputs: int, center: tuple[float, ...]) -> Metric:
        return replace(self, num_outputs=outputs) if self.num_outputs is None else self

    def width(self) -> int:
        """1 + K."""
        return 1 + (self.num_outputs or 1)

    def sums(self, outputs: Array, y: Array) -> Array:
        """(n, Σ(y - t)² of each output)."""
        difference = _difference(outputs, y)
        return np.concatenate([[difference.shape[1]], np.square(difference).sum(axis=1)])

    def value(self, sums: Array) -> Value:
        """The mean of the outputs' roots."""
        count, *squares = sums.tolist()
        return math.fsum(math.sqrt(each / count) for each in squares) / len(squares) if count else math.nan


@final
@dataclass(frozen=True)
class MedianAbsoluteError(ValueMetric, GatheringMetric):
    """The median of |y - t| of each of the K outputs, averaged over the outputs.

    scikit-learn's median_absolute_error with multioutput="uniform_average". It gathers all outputs on rank 0.
    """

    name = "median_absolute_error"

    def of_set(self, outputs: Array, y: Array) -> Value:
        """The mean of the outputs' medians; NaN where there are no examples."""
        distance = np.abs(_difference(outputs, y))
        return float(np.median(distance, axis=1).mean()) if distance.size else math.nan


@final
@dataclass(frozen=True)
class R2(ValueMetric):
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
        positive("r2: num_outputs", self.num_outputs)

    def of_task(self, task: Task, outputs: int, center: tuple[float, ...]) -> Metric:
        if self.center or task.kind != "regression":
            return self
        if self.num_outputs != outputs:
            raise ConfigurationError(f"metric r2: expected R2({outputs}) for {outputs} values, got {self}")
        return replace(self, center=center)

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
