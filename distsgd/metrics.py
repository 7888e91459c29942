"""Metrics for `fit(…, metrics=[…])` and for your own."""

from distsgd.training.metrics import (
    R2,
    Accuracy,
    ConfusionMatrix,
    Error,
    MeanAbsoluteError,
    MeanSquaredError,
    Metric,
    Mode,
    TopK,
    UserMetric,
    Value,
    predicted_classes,
    true_classes,
)

__all__ = [
    "R2", "Accuracy", "ConfusionMatrix", "Error", "MeanAbsoluteError", "MeanSquaredError", "Metric", "Mode", "TopK",
    "UserMetric", "Value", "predicted_classes", "true_classes",
]  # fmt: skip
