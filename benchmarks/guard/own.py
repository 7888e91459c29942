"""A user's own model, function and metric, for the table of configurations and for `--model FILE:machine`."""

from __future__ import annotations

from typing import Any

import numpy as np


def hinge(params: Any, grads: Any, batch: Any) -> tuple[float, int]:
    """max(0, 1 - t f(x)) with f(x) = w·x + b and t = -1 or 1: a support vector machine, without outputs."""
    t = 2.0 * batch.y - 1.0
    margin = 1.0 - t * (params["w"] @ batch.x + params["b"])
    pull = np.where(margin > 0, -t, 0.0).astype(batch.x.dtype)
    grads["w"][...] = batch.x @ pull
    grads["b"][...] = pull.sum()
    return float(np.maximum(margin, 0.0).sum(dtype=np.float64)), len(batch)


def machine(input_shape: tuple[int, ...], outputs: int = 2) -> Any:
    """The function with its initial values."""
    import distsgd

    return distsgd.Custom(hinge, {"w": np.zeros(input_shape[0]), "b": np.zeros(())})


def outputs(params: Any, batch: Any) -> Any:
    """Wx + b, batch-last."""
    return params["W"] @ batch.x + params["b"]


def squares(params: Any, grads: Any, batch: Any) -> tuple[float, int]:
    """½|Wx + b - y|²."""
    error = outputs(params, batch) - batch.y
    grads["W"][...] = error @ batch.x.T
    grads["b"][...] = error.sum(axis=1, keepdims=True)
    return 0.5 * float(np.square(error, dtype=np.float64).sum()), len(batch)


def linear(features: int, targets: int) -> Any:
    """A linear model as a function with outputs."""
    import distsgd

    initial = {"W": np.zeros((targets, features)), "b": np.zeros((targets, 1))}
    return distsgd.Custom(squares, initial, outputs=outputs)


def layers(features: int, classes: int) -> Any:
    """Layers put together by hand."""
    import distsgd

    return distsgd.Sequential([
        distsgd.Dense(features, 30), distsgd.BatchNormalization(30), distsgd.Activation("gelu"),
        distsgd.Dropout(0.2), distsgd.Dense(30, classes),
    ])  # fmt: skip


def funnel(input_shape: tuple[int, ...], outputs: int) -> Any:
    """Layers for the command line."""
    return layers(int(np.prod(input_shape)), outputs)


def confidence(outputs: Any, labels: Any) -> Any:
    """A metric: the largest probability of each example."""
    p = np.exp(outputs - outputs.max(axis=0))
    return p.max(axis=0) / p.sum(axis=0)
