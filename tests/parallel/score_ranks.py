"""The program of test_scores.py: small trainings, each with another loss and its metrics.

python score_ranks.py [NAME …] prints one line of JSON a rank: by name, the hash of the parameters and every score.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

import distsgd
from distsgd import nn
from distsgd.metrics import per_set

rng = np.random.default_rng(0)
X = rng.normal(size=(700, 4)).astype(np.float32)
V = (X @ rng.normal(size=(4, 2))).astype(np.float32)
LABELS = np.digitize(X[:, 0], [-0.5, 0.5])
TWO = (X[:, 1] > 0).astype(np.int64)
ANSWERS = (V > 0).astype(np.float32)
AVERAGES = [f"{name}_{kind}" for name in ("precision", "recall", "f1") for kind in ("macro", "micro", "per_class")]
RANKING = ["roc_auc", "average_precision"]
VALUES = ["root_mean_squared_error", "median_absolute_error"]


def spread_of_losses(outputs: Any, y: Any) -> Any:
    return np.abs(outputs - y).sum(axis=0)


@per_set
def correlation(outputs: Any, y: Any) -> float:
    return float(np.corrcoef(outputs[0], y[0])[0, 1])


def quartic(outputs: Any, y: Any) -> Any:
    return ((outputs - y) ** 4).sum(axis=0), 4 * (outputs - y) ** 3


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "focal": (LABELS, {"loss": "focal", "metrics": [*AVERAGES, *RANKING, "balanced_accuracy", "matthews_correlation"]}),
    "quantile": (V, {"loss": "quantile", "metrics": [*VALUES, spread_of_losses, correlation]}),
    "gaussian": (V, {"loss": "gaussian", "metrics": VALUES, "standardize_targets": True}),
    "l1": (V, {"loss": "l1", "metrics": VALUES}),
    "huber": (V, {"loss": nn.Huber(0.3), "metrics": VALUES, "dtype": "float64"}),
    "poisson": (np.abs(V).round(), {"loss": "poisson", "metrics": VALUES}),
    "binary focal": (TWO, {"loss": nn.BinaryFocal(2.0, 0.3), "metrics": ["f1", *RANKING]}),
    "answers": (ANSWERS, {"loss": nn.BinaryCrossEntropy((2.0, 0.5), 0.1), "metrics": [*AVERAGES, *RANKING]}),
    "function": (V, {"loss": quartic, "lr": 1e-4, "metrics": [correlation]}),
    "weights": (LABELS, {"weights": np.linspace(0.0, 2.0, 700)[:, None], "metrics": RANKING}),
}


def main(names: list[str]) -> tuple[int, dict[str, Any]]:
    """By the case's name."""
    found: dict[str, Any] = {}
    for name in names or CASES:
        y, options = CASES[name]
        sets = {"validation": (X[:600], y[:600]), "test": (X[50:], y[50:])}  # of several chunks
        given: dict[str, Any] = {
            "epochs": 2,
            "lr": 1e-3,
            "batch_size": 64,
            "hidden": (6,),
            "microbatches": 4,
            **sets,
            **options,
        }
        result = distsgd.fit("mlp", X, y, **given)
        scores = {key: one for key, one in result.summary.items() if key.startswith(("validation_", "test_", "train_"))}
        found[name] = [result.summary["parameters_sha256"], scores, result.history[-1]["validation_loss"]]
    return distsgd.rank(), found


if __name__ == "__main__":
    line = json.dumps(main(sys.argv[1:])) + "\n"
    sys.stdout.write(line)
    sys.stdout.flush()
