"""Metrics: what is measured of a model's outputs besides the loss."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from distsgd.core.errors import ConfigurationError
from distsgd.core.lazy import lazily, names_in

if TYPE_CHECKING:
    from distsgd.nn.task import Task
    from distsgd.training.metrics.base import Metric

NAMES: dict[str, tuple[str, ...]] = {
    "training.metrics.base": ("GatheringMetric", "Metric", "Mode", "UserMetric", "Value", "per_set"),
    "training.metrics.classes": ("Accuracy", "ConfusionMatrix", "Error", "LabelAccuracy", "TopK"),
    "training.metrics.counts": ("BalancedAccuracy", "CountingMetric", "F1", "Matthews", "Precision", "Recall"),
    "training.metrics.ranking": ("AveragePrecision", "RankingMetric", "RocAuc"),
    "training.metrics.regression": (
        "MeanAbsoluteError", "MeanSquaredError", "MedianAbsoluteError", "R2", "RootMeanSquaredError",
    ),
}  # fmt: skip


def _made(module: str, kind: str, **options: Any) -> Callable[[Task, int, tuple[float, ...]], Metric]:
    """What makes a metric of the task, the number of outputs, and the mean of the training targets."""

    def make(task: Task, outputs: int, center: tuple[float, ...]) -> Metric:
        found = getattr(import_module(f"distsgd.training.metrics.{module}"), kind)
        values = {"num_outputs": outputs, "center": center} if kind == "R2" else options
        metric: Metric = found(**values)
        return metric.of_task(task, outputs, center) if metric.suits(task, outputs) else metric

    return make


METRICS: dict[str, Callable[[Task, int, tuple[float, ...]], Metric]] = {
    "accuracy": _made("classes", "Accuracy"),
    "error": _made("classes", "Error"),
    "top_5_accuracy": _made("classes", "TopK"),
    **{
        name.lower() + suffix: _made("counts", name, average=suffix.removeprefix("_") or "binary")
        for name in ("Precision", "Recall", "F1")
        for suffix in ("", "_macro", "_micro", "_per_class")
    },
    "balanced_accuracy": _made("counts", "BalancedAccuracy"),
    "matthews_correlation": _made("counts", "Matthews"),
    "roc_auc": _made("ranking", "RocAuc"),
    "average_precision": _made("ranking", "AveragePrecision"),
    "mean_absolute_error": _made("regression", "MeanAbsoluteError"),
    "mean_squared_error": _made("regression", "MeanSquaredError"),
    "root_mean_squared_error": _made("regression", "RootMeanSquaredError"),
    "median_absolute_error": _made("regression", "MedianAbsoluteError"),
    "r2": _made("regression", "R2"),
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
        from distsgd.training.metrics.regression import R2, MeanAbsoluteError, MeanSquaredError

        return (MeanSquaredError(), MeanAbsoluteError(), R2(num_outputs, center))
    from distsgd.training.metrics.classes import Accuracy, Error, LabelAccuracy, TopK

    threshold = task.output_threshold
    if task.kind == "multilabel":
        return (LabelAccuracy(threshold),)
    return (Accuracy(threshold), Error(threshold), *(() if top_k is None else (TopK(top_k),)))


__all__ = [*names_in(NAMES), "METRICS", "standard_metrics"]
__getattr__, __dir__ = lazily(__name__, NAMES)
