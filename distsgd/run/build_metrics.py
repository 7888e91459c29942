"""What is measured of a model: the usual metrics of its task, and those that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from distsgd.core.errors import ConfigurationError
from distsgd.data.examples import Signature
from distsgd.nn.objective import Objective, Supervised
from distsgd.nn.task import Task
from distsgd.parallel import Communicator
from distsgd.run.build import build_loss, user_code
from distsgd.run.config import TrainConfig
from distsgd.training.metrics import METRICS, standard_metrics
from distsgd.training.metrics.base import Metric, UserMetric, check_names

if TYPE_CHECKING:
    from distsgd.training.metrics.classes import ConfusionMatrix

_CONFUSION_CLASSES = 100
"""Above this many classes a confusion matrix is no longer something to read in a summary."""


def build_metrics(
    communicator: Communicator,
    config: TrainConfig,
    data: Signature,
    objective: Objective,
    task: Task,
    own: Sequence[Metric] = (),
) -> list[Metric]:
    """What is measured besides the loss, with the `own` metrics of a program. Collective."""
    if not objective.has_outputs():
        if config.metric or own:
            raise ConfigurationError(
                "metric: this model gives no outputs to measure; give distsgd.FunctionObjective outputs="
            )
        return []
    loss = objective.loss if isinstance(objective, Supervised) else build_loss(config, data)
    # As many as there are point predictions: a loss may take several outputs for one of them.
    outputs = len(loss.point(np.zeros((loss.output_size(data.target_shape, data.num_classes), 1))))
    standard = standard_metrics(task, outputs, config.top_k, data.target_mean)
    asked = [_metric(communicator, name, data, task, outputs) for name in config.metric]
    own = [_of_task(metric, data, task, outputs) for metric in own]
    # One that a program has made, such as Accuracy with a threshold of its own, is in place of the usual one.
    instead = {type(metric) for metric in own}
    usual = [metric for metric in standard if type(metric) not in instead]
    others = [metric for metric in asked if metric.name not in [known.name for known in standard]]
    found = [*usual, *others, *own]
    check_names([*found, *([confusion] if (confusion := confusion_matrix(task, found)) else [])])
    return list({metric.name: metric for metric in found}.values())


def _metric(communicator: Communicator, name: str, data: Signature, task: Task, outputs: int) -> Metric:
    if name in METRICS:
        metric = METRICS[name](task, outputs, data.target_mean)
        _refuse_of_other_tasks(metric, task, outputs)
        return metric
    return UserMetric(name.rpartition(":")[2], user_code(communicator, name, "metric"))


def _of_task(metric: Metric, data: Signature, task: Task, outputs: int) -> Metric:
    """The metric, with what its maker leaves to the task."""
    if getattr(metric, "threshold", None) is None:
        _refuse_of_other_tasks(metric, task, outputs)
    return metric.of_task(task, outputs, data.target_mean)


def _refuse_of_other_tasks(metric: Metric, task: Task, outputs: int) -> None:
    """Raises ConfigurationError for a metric whose value would mean nothing of this task's outputs."""
    if task.kind == "other" or metric.suits(task, outputs):
        return
    what, remedy = {
        "classification": ("classes", "values are floats (y.astype(float)) under --loss squared-error"),
        "multilabel": ("several answers", "label_accuracy is measured of them"),
        "regression": ("values", "classes are integers (y.astype(int)), or 0 and 1 under --loss binary-cross-entropy"),
    }[task.kind]
    if task.kind in metric.kinds:
        what, remedy = f"classes of which the model has {outputs} outputs", "leave it out"
    raise ConfigurationError(f"metric {metric.name}: would mean nothing, for the targets are {what}; {remedy}")


def confusion_matrix(task: Task, metrics: Sequence[Metric]) -> ConfusionMatrix | None:
    """The confusion matrix for the summary, where classes are measured, and there aren't too many."""
    if task.kind != "classification" or task.num_classes > _CONFUSION_CLASSES or not metrics:
        return None
    from distsgd.training.metrics.classes import ConfusionMatrix

    return ConfusionMatrix(max(task.num_classes, 2), task.output_threshold)
