"""Standardized inputs and targets: the same as standardizing by hand, everywhere, and kept in the checkpoint."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsgd import fit
from distsgd.core.errors import ConfigurationError
from distsgd.data.features import Standardization

RNG = np.random.default_rng(2)
YEARS = RNG.integers(1950, 2020, 300).astype(np.float64)
X = np.column_stack([YEARS, RNG.normal(size=300), np.full(300, 7.0)])
Y = 1e4 * (0.02 * (YEARS - 1985) + X[:, 1])
CLASSES = (Y > 0).astype(np.int64)
USUAL: dict[str, Any] = {"epochs": 8, "batch_size": 50, "validation_fraction": 0.2}


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(1e5, 1e5 + 1)), min_size=1, max_size=50))
def test_mean_and_spread_are_numpys(rows: list[tuple[float, float]]) -> None:
    array = np.array(rows)
    found = Standardization.of(array)
    assert np.allclose(found.mean, array.mean(axis=0), rtol=1e-12)
    expected = array.std(axis=0)
    assert np.allclose(found.spread, np.where(np.array(found.spread) == 1.0, found.spread, expected), rtol=1e-6)
    assert np.allclose(found.undo(found.apply(array, np.dtype(np.float64)).T).T, array, rtol=1e-9, atol=1e-9)


def test_it_is_what_one_does_by_hand() -> None:
    result = fit("mlp", (X, CLASSES), standardize=True, **USUAL)
    rows = np.setdiff1d(np.arange(300), result.validation_rows)
    spread = X[rows].std(axis=0)
    spread[2] = 1.0  # it doesn't vary
    by_hand = ((X - X[rows].mean(axis=0)) / spread).astype(np.float32)
    other = fit("mlp", (by_hand, CLASSES), **USUAL)
    assert result.summary["validation_loss"] == pytest.approx(other.summary["validation_loss"], rel=1e-4)
    assert np.allclose(result.predict(X), other.predict(by_hand), atol=1e-4)
    assert result.summary["validation_accuracy"] > 0.9
    assert fit("mlp", (X, CLASSES), **USUAL).summary["validation_accuracy"] < 0.7, "what it is for"


def test_what_float32_would_round_away_is_kept() -> None:
    """Time stamps a second apart: float32 holds 2 of 300."""
    stamps = (1_700_000_000 + np.arange(300.0))[:, None]
    result = fit("softmax", (stamps, (np.arange(300) >= 150).astype(int)), standardize=True, **USUAL | {"epochs": 60})
    assert result.summary["validation_accuracy"] > 0.95


def test_targets_are_undone_in_scores_and_predictions() -> None:
    result = fit("mlp", (X, Y), standardize=True, standardize_targets=True, **USUAL | {"epochs": 60})
    rows = result.validation_rows
    predicted = result.predict(X[rows])[:, 0]
    assert result.summary["validation_mean_absolute_error"] == pytest.approx(np.abs(predicted - Y[rows]).mean())
    assert result.summary["validation_r2"] > 0.9
    assert np.std(predicted) > 1e3, "in the units of the targets"


def test_evaluate_and_predict_apply_it_and_a_resumed_run_has_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=Y)

    def command(module: str, *arguments: str) -> str:
        line = [sys.executable, "-m", f"distsgd.{module}", *arguments]
        return subprocess.run(line, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60).stdout

    both = ["--dataset", "d.npz", "--standardize", "--standardize-targets", "--batch-size", "64"]
    command("train", *both, "--epochs", "3", "--out", "run")
    command("train", *both, "--epochs", "6", "--out", "run")
    command("train", *both, "--epochs", "6", "--out", "at-once")
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("run", "at-once")]
    assert summaries[0]["parameters_sha256"] == summaries[1]["parameters_sha256"]
    scores = json.loads(command("evaluate", "run", "--dataset", "d.npz"))
    assert scores["mean_squared_error"] == pytest.approx(summaries[0]["validation_mean_squared_error"], rel=1e-12)
    command("predict", "run", "d.npz", "-o", "o.npz")
    rows = np.load(tmp_path / "run" / "validation_rows.npy")
    with np.load(tmp_path / "o.npz") as found:
        predicted = found["predictions"][rows, 0]
    assert np.square(predicted - Y[rows]).mean() == pytest.approx(scores["mean_squared_error"], rel=1e-6)


def test_classes_have_no_units() -> None:
    with pytest.raises(ConfigurationError, match="standardize_targets: the targets are classes"):
        fit("mlp", (X, CLASSES), standardize_targets=True, **USUAL)


@pytest.mark.parametrize(("factor", "doubted"), [(1.0, False), (0.5, False), (1 / 255, True), (255.0, True)])
def test_inputs_of_another_range_are_reported(factor: float, doubted: bool) -> None:
    pixels = RNG.integers(0, 256, (60, 4)).astype(np.float32)
    result = fit("softmax", (pixels, np.arange(60) % 2), epochs=1, scale=255.0)
    if doubted:
        with pytest.warns(UserWarning, match=r"of training lay between [01] and 25\d; give them in the same units"):
            result.predict(pixels * factor)
    else:
        result.predict(pixels * factor)


@pytest.mark.parametrize(
    ("x", "options", "words"),
    [
        (X, {}, "input 0 lies between 19.* and is not scaled; --standardize"),
        (X, {"standardize": True}, None),
        (X[:, 1:], {}, None),
        (1.7e9 + X[:, :1], {}, "float32 rounds it to steps of .*; --dtype float64, or --standardize"),
        (np.tile(255 * (X[:, 1:2] > 0), 1200).astype(np.float32), {}, "some inputs lie between 0 and 255"),
        (np.tile(255 * (X[:, 1:2] > 0), 1200).astype(np.uint8), {}, None),
    ],
)
def test_unusual_inputs_are_reported_at_load(
    x: Any, options: dict[str, Any], words: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    fit("softmax", (x, CLASSES), **USUAL | {"epochs": 1} | options)
    printed = capsys.readouterr().err
    if words is None:
        assert "lies" not in printed
        assert "lie " not in printed
    else:
        assert re.search(words, printed)


def test_one_answer_for_all_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    fit("mlp", (X, CLASSES), learning_rate=0.0, weight_initializer="zeros", **USUAL)
    assert "all validation examples are taken for class 0; --standardize" in capsys.readouterr().err
    fit("mlp", (X[:, 1:], Y), learning_rate=0.0, **USUAL)
    assert "no better than their mean" in capsys.readouterr().err
    fit("mlp", (X[:, 1:2], (X[:, 1] > 0).astype(int)), **USUAL)
    assert not capsys.readouterr().err
