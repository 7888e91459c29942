"""What predictions say: labels, and probabilities of classes."""

from __future__ import annotations

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError
from distsgd.nn.task import Task

_SUM = 1e-3
"""How far the probabilities of an example's classes may be from 1 together."""


def labels_of(predictions: Array, task: Task) -> Array:
    """The labels that predictions stand for, by name where names are known. Raises ConfigurationError for values."""
    found = task.labels(predictions)
    if found is None:
        raise ConfigurationError("labels: the model predicts values and not classes; predict gives them")
    if not task.names or task.kind != "classification":
        return found
    return np.array([*task.names, ""])[found]


def probabilities(predictions: Array, task: Task) -> Array:
    """Predictions (n, k) as one probability for each class. Raises ConfigurationError where they are none."""
    if task.kind not in ("classification", "multilabel"):
        raise ConfigurationError("predict_proba: the model predicts values and not classes; predict gives them")
    single = task.kind == "classification" and predictions.shape[1] == 1
    total = predictions.sum(axis=1, keepdims=True)
    wrong = (predictions < 0) | (predictions > 1)
    if task.kind == "classification" and not single:
        wrong |= abs(total - 1) > _SUM
    if wrong.any() or (single and task.answer == "score"):
        raise ConfigurationError(
            "predict_proba: this model's predictions are scores and no probabilities, which the losses "
            "softmax-cross-entropy and binary-cross-entropy give; predict returns them as they are"
        )
    return np.concatenate([1 - predictions, predictions], axis=1) if single else predictions
