"""Scores and intervals of several models as one, beside what NumPy says of their mean predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd import ConfigurationError, DataError
from distsgd.core.random import normal
from distsgd.metrics import per_set

X = normal((700, 3), 1, "x").astype(np.float32)
LABELS = (X[:, 0] > 0.3).astype(np.int64)
VALUES = (5.0 + 2.0 * X[:, 0] + 0.1 * normal((700,), 1, "noise")).astype(np.float32)


def ensemble_of(folder: Path, y: Any, **options: Any) -> distsgd.Ensemble:
    given: dict[str, Any] = {"epochs": 2, "batch_size": 50, "hidden": (5,), "lr": 0.01, **options}
    for seed in (1, 2):
        distsgd.fit("mlp", X, y, seed=seed, out=folder / str(seed), **given)
    return distsgd.load([folder / "1", folder / "2"])


def test_scores_of_classes_are_those_of_the_mean_probability(tmp_path: Path) -> None:
    ensemble = ensemble_of(tmp_path, LABELS)
    found = ensemble.evaluate(X, LABELS, metrics=["f1"])
    predicted = ensemble.predict(X).argmax(axis=1)
    both = np.count_nonzero(predicted & LABELS)
    assert found["accuracy"] == np.mean(predicted == LABELS)
    assert found["f1"] == pytest.approx(2 * both / (predicted.sum() + LABELS.sum()))
    assert np.sum(found["confusion_matrix"]) == len(X)
    assert "loss" not in found


def test_a_single_output_is_yes_above_one_half(tmp_path: Path) -> None:
    ensemble = ensemble_of(tmp_path, LABELS, loss="binary-cross-entropy")
    yes = ensemble.predict(X)[:, 0] > 0.5
    assert ensemble.evaluate(X, LABELS)["accuracy"] == np.mean(yes == LABELS)


@pytest.mark.parametrize("options", [{"loss": "quantile", "standardize_targets": True}, {"loss": "gaussian"}])
def test_scores_and_intervals_of_values(tmp_path: Path, options: dict[str, Any]) -> None:
    @per_set
    def largest(outputs: Any, y: Any) -> float:
        return float(abs(outputs - y).max())

    ensemble = ensemble_of(tmp_path, VALUES, **options)
    found = ensemble.evaluate(X, VALUES, metrics=[largest])
    error = ensemble.predict(X)[:, 0] - VALUES
    assert found["mean_squared_error"] == pytest.approx(np.mean(np.square(error)), rel=1e-6)
    assert found["largest"] == pytest.approx(abs(error).max(), rel=1e-6)
    ends = [np.mean([one.predict_interval(X, 0.9)[side] for one in ensemble.members], axis=0) for side in (0, 1)]
    assert np.allclose(ensemble.predict_interval(X, 0.9), ends, rtol=1e-6)
    assert np.array_equal(ensemble.predict_interval(X, np.float32(0.9))[0].shape, (700, 1))


def test_what_members_cannot_say_is_refused(tmp_path: Path) -> None:
    ensemble = ensemble_of(tmp_path, LABELS)
    with pytest.raises(ConfigurationError, match="has no intervals"):
        ensemble.predict_interval(X)
    with pytest.raises(DataError, match="the model was trained on integer labels from 0 to 1, example 0 has 2"):
        ensemble.evaluate(X, LABELS + 2)
