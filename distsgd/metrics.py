"""Metrics for `fit(…, metrics=[…])` and for your own."""

from distsgd.training.metrics import (
    R2,
    Accuracy,
    ConfusionMatrix,
    Error,
    MeanAbsoluteError,
    MeanSquaredError,
    Metric,
    TopK,
)

__all__ = ["R2", "Accuracy", "ConfusionMatrix", "Error", "MeanAbsoluteError", "MeanSquaredError", "Metric", "TopK"]
