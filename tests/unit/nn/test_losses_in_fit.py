"""Losses train by name, with the same bits on one rank and on three, and are refused where they mean nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distsgd import fit
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.nn import Dense, Huber, Sequential
from tests.threads import run_on_threads

X = np.random.default_rng(0).standard_normal((240, 3)).astype(np.float32)
VALUES = 2 * X[:, :2] + 1 + 0.3 * np.random.default_rng(2).standard_normal((240, 2)).astype(np.float32)
LABELS = np.digitize(X[:, 0], (-0.5, 0.5))
ANSWERS = (X[:, :2] > 0).astype(np.float32)
COUNTS = np.random.default_rng(1).poisson(np.exp(X[:, 0] / 2)).astype(np.float32)

# name: (targets, options, what gets smaller or larger than at the start)
CASES: dict[str, tuple[Any, dict[str, Any], str, float]] = {
    "l1": (VALUES, {}, "mean_absolute_error", 1.0),
    "huber": (VALUES, {"huber_delta": 0.3}, "mean_absolute_error", 1.0),
    "poisson": (COUNTS, {"epochs": 30, "hidden": ()}, "r2", -0.1),
    "gaussian": (VALUES, {"standardize_targets": True, "epochs": 30}, "mean_absolute_error", 1.0),
    "quantile": (VALUES, {"quantiles": (0.25, 0.5, 0.75)}, "mean_absolute_error", 1.0),
    "focal": (LABELS, {"focal_gamma": 1.0, "class_weights": (1.0, 2.0, 1.0)}, "error", 0.4),
    "binary-focal": (ANSWERS, {"focal_alpha": 0.4}, "label_accuracy", -0.8),
    "binary-cross-entropy": (ANSWERS, {"pos_weight": (2.0, 1.0), "label_smoothing": 0.1}, "label_accuracy", -0.8),
}


def cubic(outputs: Any, y: Any) -> Any:
    return (np.abs(outputs - y) ** 3).sum(axis=0), 3 * (outputs - y) * np.abs(outputs - y)


@pytest.mark.parametrize("name", [*CASES, "a function"])
def test_a_loss_trains_with_the_same_bits_on_any_number_of_ranks(name: str) -> None:
    y, options, metric, most = CASES.get(name, (VALUES, {"clip_norm": 1.0}, "mean_absolute_error", 1.5))
    given: dict[str, Any] = {"epochs": 8, "batch_size": 24, "optimizer": "adam", "lr": 0.02}
    given |= {"hidden": (8,), "validation_fraction": 0.25, **options}
    loss: Any = cubic if name == "a function" else name
    found = [
        run_on_threads(size, lambda communicator: fit("mlp", X, y, loss=loss, communicator=communicator, **given))
        for size in (1, 3)
    ]
    one, *others = [{**result.summary, "run": None} for results in found for result in results]
    assert others == [one] * 3
    value = one[f"validation_{metric}"]
    assert value < most if most > 0 else value > -most


def test_a_loss_as_an_object_is_the_loss_by_its_name() -> None:
    options: dict[str, Any] = {"epochs": 1, "batch_size": 24}
    by_name = fit("softmax", X, VALUES, loss="huber", huber_delta=0.3, **options)
    by_object = fit("softmax", X, VALUES, loss=Huber(0.3), **options)
    with_layer = fit(Sequential([Dense(3, 2)]), X, VALUES, loss=Huber(0.3), **options)
    assert by_name.summary["parameters_sha256"] == by_object.summary["parameters_sha256"]
    assert with_layer.predict(X).shape == (240, 2)


@pytest.mark.parametrize(
    ("y", "options", "kind", "words"),
    [
        (COUNTS, {"loss": "poisson", "standardize_targets": True}, ConfigurationError, "leave it out"),
        (VALUES, {"loss": "poisson"}, DataError, "counts of at least 0"),
        (VALUES, {"loss": "binary-focal"}, DataError, "probabilities from 0 to 1"),
        (VALUES, {"loss": "focal"}, ConfigurationError, "integer labels"),
        (LABELS, {"loss": "binary-focal"}, ConfigurationError, "use focal"),
        (VALUES, {"loss": "l1", "huber_delta": 2.0}, ConfigurationError, "huber_delta needs huber, the loss is l1"),
        (VALUES, {"quantiles": (0.5,)}, ConfigurationError, "quantiles needs quantile"),
        (VALUES, {"loss": "quantile", "quantiles": (0.5, 0.1)}, ConfigurationError, "in rising order"),
        (LABELS, {"focal_gamma": 1.0}, ConfigurationError, "needs focal or binary-focal"),
        (LABELS, {"pos_weight": (1.0,)}, ConfigurationError, "needs binary-cross-entropy"),
    ],
)
def test_what_a_loss_cannot_take_is_refused(y: Any, options: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        fit("softmax", X, y, epochs=1, **options)
