"""A network of two layers with its loss and gradients in NumPy, as courses write it: what loops of their own train."""

from __future__ import annotations

from typing import Any

import numpy as np

rng = np.random.default_rng(1)
X = rng.normal(size=(210, 12))
Y = (X[:, :3].argmax(axis=1) + (X[:, 4] > 0)).astype(np.int64)


class TwoLayerNet:
    """Inputs, hidden units with ReLU, and the softmax loss of classes with an L2 penalty."""

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        start = np.random.default_rng(0)
        self.params: Any = {
            "W1": start.normal(size=(inputs, hidden)) * 0.1, "b1": np.zeros(hidden),
            "W2": start.normal(size=(hidden, classes)) * 0.1, "b2": np.zeros(classes),
        }  # fmt: skip

    def scores(self, x: Any) -> tuple[Any, Any]:
        """(hidden units, a score for each class)."""
        hidden = np.maximum(0, x @ self.params["W1"] + self.params["b1"])
        return hidden, hidden @ self.params["W2"] + self.params["b2"]

    def loss(self, x: Any, y: Any, penalty: float = 0.0, total: bool = False) -> tuple[float, dict[str, Any]]:
        """The mean of the losses (their sum where `total`) with the penalty, and the gradients."""
        count = 1 if total else len(x)
        hidden, scores = self.scores(x)
        scores = scores - scores.max(axis=1, keepdims=True)
        probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        rows = np.arange(len(x))
        loss = -np.log(probabilities[rows, y]).sum() / count
        loss += penalty * sum((self.params[name] ** 2).sum() for name in ("W1", "W2"))
        probabilities[rows, y] -= 1
        down = (probabilities / count) @ self.params["W2"].T * (hidden > 0)
        grads = {"W2": hidden.T @ probabilities / count, "b2": probabilities.sum(axis=0) / count,
                 "W1": x.T @ down, "b1": down.sum(axis=0)}  # fmt: skip
        for name in ("W1", "W2"):
            grads[name] = grads[name] + 2 * penalty * self.params[name]
        return float(loss), grads
