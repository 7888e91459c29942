"""Precision, recall and what else comes of how often each class is predicted, true, and both."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, final

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError
from distsgd.nn.task import Kind, Task, predicted_classes, true_classes
from distsgd.training.metrics.base import Metric, Value, positive

_BOTH: tuple[Kind, ...] = ("classification", "multilabel")
Average: TypeAlias = Literal["binary", "macro", "micro", "per_class"]


@dataclass(frozen=True)
class CountingMetric(Metric):
    """A metric of the number of examples, and three counts of each class: both predicted and true, predicted, true.

    An example with a NaN among its outputs has a true class and no predicted one.

    Parameters
    ----------
    num_classes : int, optional
        The number of classes, or of answers. By default fit takes the task's, and 2 counts elsewhere.
    threshold : float, optional
        Where class 1 begins, if there is one output, and yes in an answer. By default fit takes the task's, and 0
        counts elsewhere.
    answers : bool, optional
        Whether outputs are answers, several an example. By default fit takes the task's.
    """

    mode = "max"
    kinds = _BOTH
    num_classes: int | None = None
    threshold: float | None = None
    answers: bool | None = None

    def __post_init__(self) -> None:
        positive(f"{self.name}: num_classes", 2 if self.num_classes is None else self.num_classes)

    def of_task(self, task: Task, outputs: int, center: tuple[float, ...]) -> Metric:
        return replace(
            self,
            num_classes=max(task.num_classes, outputs, 2) if self.num_classes is None else self.num_classes,
            threshold=task.output_threshold if self.threshold is None else self.threshold,
            answers=task.kind == "multilabel" if self.answers is None else self.answers,
        )

    def width(self) -> int:
        """1 + 3 · classes."""
        return 1 + 3 * (self.num_classes or 2)

    def sums(self, outputs: Array, y: Array) -> Array:
        """(examples; both, predicted, true, each of all classes)."""
        classes, threshold = self.num_classes or 2, self.threshold or 0.0
        if self.answers:
            yes, right = (outputs > threshold) & ~np.isnan(outputs), y > 0.5
            counts = [np.count_nonzero(one, axis=1) for one in (yes & right, yes, right)]
            return np.concatenate([[outputs.shape[1]], *counts]).astype(np.float64)
        predicted, true = predicted_classes(outputs, threshold), true_classes(y)
        if max(predicted.max(initial=0), true.max(initial=0)) >= classes:
            raise ConfigurationError(f"{self.name}: expected {classes} classes, got {len(outputs)} outputs")
        found = true[predicted == true], predicted[predicted >= 0], true
        counts = [np.bincount(one, minlength=classes) for one in found]
        return np.concatenate([[outputs.shape[-1]], *counts]).astype(np.float64)


@dataclass(frozen=True)
class _Averaged(CountingMetric):
    """A score of each class, and how those become one value, as in scikit-learn."""

    average: Average = "binary"
    name: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        stem = type(self).__name__.lower()
        known = ("binary", "macro", "micro", "per_class")
        if self.average not in known:
            raise ConfigurationError(f"{stem}: average must be one of {', '.join(known)}, got {self.average!r}")
        object.__setattr__(self, "name", stem if self.average == "binary" else f"{stem}_{self.average}")
        object.__setattr__(self, "is_number", self.average != "per_class")
        object.__setattr__(self, "mode", "max" if self.average != "per_class" else None)
        super().__post_init__()

    def of_task(self, task: Task, outputs: int, center: tuple[float, ...]) -> Metric:
        if self.average == "binary" and (task.kind == "multilabel" or task.num_classes > 2):
            what = "answers" if task.kind == "multilabel" else "classes"
            raise ConfigurationError(
                f"metric {self.name}: is that of class 1 of two, the targets have {task.num_classes} {what}; take "
                f"{self.name}_macro, {self.name}_micro or {self.name}_per_class"
            )
        return super().of_task(task, outputs, center)

    def score(self, both: Array, predicted: Array, true: Array) -> Array:
        """The score of each class, (classes,)."""
        raise NotImplementedError

    def value(self, sums: Array) -> Value:
        """The score, or the list of them; NaN where there were no examples."""
        counts = sums[1:].reshape(3, -1)
        if not sums[0]:
            return [math.nan] * len(counts[0]) if self.average == "per_class" else math.nan
        if self.average == "micro":
            return float(self.score(*counts.sum(axis=1, keepdims=True))[0])
        scores = self.score(*counts)
        if self.average == "binary":
            return float(scores[1])
        if self.average == "per_class":
            found: list[float] = scores.tolist()
            return found
        present = scores if self.answers else scores[counts[1:].any(axis=0)]
        return math.fsum(present.tolist()) / len(present)


@final
@dataclass(frozen=True)
class Precision(_Averaged):
    """Of the examples that are taken for a class, the part that is of it; scikit-learn's precision_score.

    Parameters
    ----------
    num_classes : int, optional
        The number of classes, or of answers. By default fit takes the task's, and 2 counts elsewhere.
    threshold : float, optional
        Where class 1 begins, if there is one output, and yes in an answer. By default fit takes the task's, and 0
        counts elsewhere.
    answers : bool, optional
        Whether outputs are answers, several an example. By default fit takes the task's.
    average : str, default "binary"
        "binary": that of class 1 of two; "macro": the mean over the classes that are true or predicted of some example,
        over all of several answers; "micro": that of the counts' sums; "per_class": a list, of all classes. A score
        without examples, 0/0, is 0.
    """

    def score(self, both: Array, predicted: Array, true: Array) -> Array:
        return both / np.maximum(predicted, 1.0)


@final
@dataclass(frozen=True)
class Recall(_Averaged):
    """Of the examples of a class, the part that is taken for it; scikit-learn's recall_score.

    Parameters
    ----------
    num_classes : int, optional
        The number of classes, or of answers. By default fit takes the task's, and 2 counts elsewhere.
    threshold : float, optional
        Where class 1 begins, if there is one output, and yes in an answer. By default fit takes the task's, and 0
        counts elsewhere.
    answers : bool, optional
        Whether outputs are answers, several an example. By default fit takes the task's.
    average : str, default "binary"
        "binary": that of class 1 of two; "macro": the mean over the classes that are true or predicted of some example,
        over all of several answers; "micro": that of the counts' sums; "per_class": a list, of all classes. A score
        without examples, 0/0, is 0.
    """

    def score(self, both: Array, predicted: Array, true: Array) -> Array:
        return both / np.maximum(true, 1.0)


@final
@dataclass(frozen=True)
class F1(_Averaged):
    """2 both / (predicted + true), the harmonic mean of precision and recall; scikit-learn's f1_score.

    Parameters
    ----------
    num_classes : int, optional
        The number of classes, or of answers. By default fit takes the task's, and 2 counts elsewhere.
    threshold : float, optional
        Where class 1 begins, if there is one output, and yes in an answer. By default fit takes the task's, and 0
        counts elsewhere.
    answers : bool, optional
        Whether outputs are answers, several an example. By default fit takes the task's.
    average : str, default "binary"
        "binary": that of class 1 of two; "macro": the mean over the classes that are true or predicted of some example,
        over all of several answers; "micro": that of the counts' sums; "per_class": a list, of all classes. A score
        without examples, 0/0, is 0.
    """

    def score(self, both: Array, predicted: Array, true: Array) -> Array:
        scores: Array = 2.0 * both / np.maximum(predicted + true, 1.0)
        return scores


@final
@dataclass(frozen=True)
class BalancedAccuracy(CountingMetric):
    """The mean of the recalls of all classes that have examples; scikit-learn's balanced_accuracy_score.

    Parameters
    ----------
    num_classes : int, optional
        The number of classes, or of answers. By default fit takes the task's, and 2 counts elsewhere.
    threshold : float, optional
        Where class 1 begins, if there is one output, and yes in an answer. By default fit takes the task's, and 0
        counts elsewhere.
    answers : bool, optional
        Whether outputs are answers, several an example. By default fit takes the task's.
    """

    name = "balanced_accuracy"
    kinds = ("classification",)

    def value(self, sums: Array) -> Value:
        """The mean; NaN where there were no examples."""
        both, _, true = sums[1:].reshape(3, -1)
        recalls = (both[true > 0] / true[true > 0]).tolist()
        return math.fsum(recalls) / len(recalls) if recalls else math.nan


@final
@dataclass(frozen=True)
class Matthews(CountingMetric):
    """(c s - Σ p t) / √((s² - Σ p²)(s² - Σ t²)) of s examples, c of them right, and p predicted, t true of each class.

    The correlation of predicted and true classes, scikit-learn's matthews_corrcoef; 0 where one of them is constant.

    Parameters
    ----------
    num_classes : int, optional
        The number of classes, or of answers. By default fit takes the task's, and 2 counts elsewhere.
    threshold : float, optional
        Where class 1 begins, if there is one output, and yes in an answer. By default fit takes the task's, and 0
        counts elsewhere.
    answers : bool, optional
        Whether outputs are answers, several an example. By default fit takes the task's.

    References
    ----------
    .. [1] Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", Computational
       Biology and Chemistry 28 (2004).
    """

    name = "matthews_correlation"
    kinds = ("classification",)

    def value(self, sums: Array) -> Value:
        """The correlation; NaN where there were no examples."""
        both, predicted, true = (
            [int(one) for one in row] for row in sums[1:].reshape(3, -1)
        )  # exact, whatever the size
        examples = sum(true)
        if not examples:
            return math.nan
        above = sum(both) * examples - sum(p * t for p, t in zip(predicted, true, strict=True))
        spreads = [examples**2 - sum(one * one for one in row) for row in (predicted, true)]
        return above / math.sqrt(spreads[0]) / math.sqrt(spreads[1]) if all(spreads) else 0.0
