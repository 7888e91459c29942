"""Metrics of predicted classes and answers, from counts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import final

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError
from distsgd.nn.task import Task, predicted_classes, true_classes
from distsgd.training.metrics.base import Metric, Value, positive


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
    kinds = ("classification",)
    threshold: float | None = None

    def of_task(self, task: Task, outputs: int, center: tuple[float, ...]) -> Metric:
        return replace(self, threshold=task.output_threshold) if self.threshold is None else self

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
    kinds = ("classification",)
    threshold: float | None = None

    def of_task(self, task: Task, outputs: int, center: tuple[float, ...]) -> Metric:
        return replace(self, threshold=task.output_threshold) if self.threshold is None else self

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
    kinds = ("multilabel",)
    threshold: float | None = None

    def suits(self, task: Task, outputs: int) -> bool:
        return super().suits(task, outputs) or (task.kind == "classification" and outputs == 1)

    def of_task(self, task: Task, outputs: int, center: tuple[float, ...]) -> Metric:
        return replace(self, threshold=task.output_threshold) if self.threshold is None else self

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
    kinds = ("classification",)
    k: int = 5
    name: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        positive("top-k: k", self.k)
        object.__setattr__(self, "name", f"top_{self.k}_accuracy")

    def suits(self, task: Task, outputs: int) -> bool:
        return super().suits(task, outputs) and outputs >= max(self.k, 2)

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
    kinds = ("classification",)
    is_number = False

    num_classes: int
    threshold: float | None = None

    def __post_init__(self) -> None:
        positive("confusion matrix: num_classes", self.num_classes)

    def of_task(self, task: Task, outputs: int, center: tuple[float, ...]) -> Metric:
        return replace(self, threshold=task.output_threshold) if self.threshold is None else self

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
