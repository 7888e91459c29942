"""Losses that are functions, and intervals of losses that have them, of what fit returns and load reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd.core.errors import ConfigurationError
from distsgd.core.random import normal
from tests.unit.run.trained.test_trained_model import QUICK, VALUES, X


def quartic(found: Any, targets: Any) -> tuple[Any, Any]:
    return ((found - targets) ** 4).sum(axis=0), 4 * (found - targets) ** 3


def test_a_loss_that_is_a_function(tmp_path: Path) -> None:
    result = distsgd.fit("mlp", X, VALUES, loss=quartic, lr=1e-4, out=str(tmp_path / "run"), **QUICK)
    assert result.evaluate(X, VALUES)["loss"] == pytest.approx(np.mean((result.predict(X) - VALUES) ** 4), rel=1e-5)
    with pytest.raises(ConfigurationError, match="give loss="):
        distsgd.load(tmp_path / "run")
    assert distsgd.load(tmp_path / "run", loss=quartic).predict(X).tobytes() == result.predict(X).tobytes()


def test_intervals_hold_their_share_of_the_values(tmp_path: Path) -> None:
    spread = 1.0 + 4.0 * (X[:, 1:2] > 0)
    noisy = VALUES + 0.1 * spread * normal((90, 1), 3, "noise").astype(np.float32)
    options: dict[str, Any] = {"epochs": 40, "batch_size": 10, "optimizer": "adam", "lr": 0.01}
    result = distsgd.fit("mlp", X, noisy, loss="gaussian", standardize_targets=True, out=str(tmp_path / "a"), **options)
    lower, upper = distsgd.load(tmp_path / "a").predict_interval(X, 0.9)
    assert lower.shape == upper.shape == (90, 1)
    assert np.mean((lower <= noisy) & (noisy <= upper)) > 0.75
    np.testing.assert_allclose((lower + upper) / 2, result.predict(X), rtol=1e-4, atol=1e-5)
    narrow = result.predict_interval(X, 0.5)
    assert ((narrow[0] > lower) & (narrow[1] < upper)).all()
    plain = distsgd.fit("mlp", X, noisy, **QUICK)
    for model, coverage, words in ((plain, 0.9, "SquaredError has no intervals"), (result, 1.5, "between 0 and 1")):
        with pytest.raises(ConfigurationError, match=words):
            model.predict_interval(X, coverage)
