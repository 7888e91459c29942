"""Metrics for `fit(…, metrics=[…])` and for your own.

Examples
--------
A metric of your own, from the sums of each chunk of examples:

>>> from dataclasses import dataclass
>>> import numpy as np
>>> from distsgd.metrics import Metric, UserMetric
>>> @dataclass(frozen=True)
... class MeanLargestError(Metric):
...     name = "mean_largest_error"
...     mode = "min"
...
...     def sums(self, outputs, y):
...         return np.array([np.abs(outputs - y).max(axis=0).sum(), outputs.shape[1]])
>>> metric = MeanLargestError()
>>> metric.value(metric.sums(np.array([[1.0, 2.0]]), np.array([[1.0, 4.0]])))
1.0

A function that returns one number for each example is enough for a mean:

>>> metric = UserMetric("largest", lambda outputs, y: outputs.max(axis=0))
>>> metric.value(metric.sums(np.array([[1.0, 2.0], [3.0, 0.0]]), np.array([0, 1])))
2.5
"""

from distsgd.core.lazy import lazily, names_in

NAMES: dict[str, tuple[str, ...]] = {
    "training.metrics.base": ("GatheringMetric", "Metric", "Mode", "UserMetric", "Value", "per_set"),
    "training.metrics.classes": ("Accuracy", "ConfusionMatrix", "Error", "LabelAccuracy", "TopK"),
    "training.metrics.counts": ("F1", "BalancedAccuracy", "Matthews", "Precision", "Recall"),
    "training.metrics.ranking": ("AveragePrecision", "RocAuc"),
    "training.metrics.regression": ("R2", "MeanAbsoluteError", "MeanSquaredError", "MedianAbsoluteError",
                                    "RootMeanSquaredError"),
    "nn.task": ("predicted_classes", "true_classes"),
}  # fmt: skip

__all__ = names_in(NAMES)
__getattr__, __dir__ = lazily(__name__, NAMES)
