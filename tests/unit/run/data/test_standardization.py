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
from distsgd.nn import BinaryCrossEntropy, Dense, Sequential, Supervised

RNG = np.random.default_rng(2)
YEARS = RNG.integers(1950, 2020, 300).astype(np.float64)
X = np.column_stack([YEARS, RNG.normal(size=300), np.full(300, 7.0)])
Y = 1e4 * (0.02 * (YEARS - 1985) + X[:, 1])
CLASSES = (Y > 0).astype(np.int64)
TWO = np.column_stack([RNG.random(300), 1000 * RNG.random(300)])
RARE = RNG.poisson(0.02, (300, 200)).astype(np.float64)
ONE_HOT = np.eye(20)[RNG.integers(0, 20, 300)]
PIXELS = RNG.integers(0, 256, (300, 30)) / 255
USUAL: dict[str, Any] = {"epochs": 8, "batch_size": 50, "validation_fraction": 0.2}


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(1e5, 1e5 + 1)), min_size=1, max_size=50))
def test_mean_and_spread_are_numpys(rows: list[tuple[float, float]]) -> None:
    array = np.array(rows)
    found = Standardization.of(array)
    assert np.allclose(found.mean, array.mean(axis=0), rtol=1e-12)
    expected = array.std(axis=0)
    assert np.allclose(found.spread, np.where(np.array(found.spread) == 1.0, found.spread, expected), rtol=1e-6)
    assert np.allclose(found.undo(found.apply(array, np.dtype(np.float64)).T).T, array, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("value", [0.1, 0.2, 1 / 3, 1e6 + 0.1, -7e-9, 1e15 + 0.3])
def test_a_constant_feature_keeps_its_value_and_has_no_spread(value: float) -> None:
    """The rounded mean of equal numbers is another number."""
    found = Standardization.of(np.full((300, 1), value))
    assert (found.mean, found.spread) == ((value,), (1.0,))


def test_a_constant_feature_does_no_harm_as_float32_either() -> None:
    x = np.column_stack([X[:, 1], np.full(300, 0.1)])
    labels = (X[:, 1] > 0).astype(np.int64)
    result = fit("mlp", (x, labels), standardize=True, **USUAL)
    assert np.mean(result.task.labels(result.predict(x.astype(np.float32))) == labels) > 0.9


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("factor", [1e-200, 1e-160, 1e200])
def test_the_square_of_a_spread_may_overflow(factor: float) -> None:
    usual, found = (Standardization.of(X[:, 1:2] * one) for one in (1.0, factor))
    assert found.spread[0] == pytest.approx(usual.spread[0] * factor, rel=1e-12)


def test_values_a_few_roundings_apart_are_standardized() -> None:
    steps = RNG.integers(0, 9, 300).astype(np.float64)
    values = (1e6 + 1e-9 * steps)[:, None]
    found = Standardization.of(values).apply(values, np.dtype(np.float64))
    assert (found.mean(), found.std()) == (pytest.approx(0, abs=0.05), pytest.approx(1, abs=0.05))


def test_the_type_that_values_are_stored_in_changes_no_bit() -> None:
    values = RNG.normal(size=(70_000, 4)).astype(np.float32)
    assert Standardization.of(values) == Standardization.of(values.astype(np.float64))


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


@pytest.mark.parametrize(
    ("y", "loss"),
    [
        (CLASSES, "auto"),
        (np.eye(2)[CLASSES], "softmax-cross-entropy"),
        (CLASSES.astype(float), "binary-cross-entropy"),
        (np.column_stack([CLASSES, 1 - CLASSES]).astype(float), "binary-cross-entropy"),
    ],
)
def test_classes_have_no_units(y: Any, loss: str) -> None:
    with pytest.raises(ConfigurationError, match="standardize_targets: the targets are classes"):
        fit("mlp", (X, y), loss=loss, standardize_targets=True, **USUAL)


def test_classes_by_the_loss_of_an_own_model_have_no_units() -> None:
    model = Supervised(Sequential([Dense(3, 1)]), BinaryCrossEntropy(), (3,))
    with pytest.raises(ConfigurationError, match="standardize_targets: the targets are classes"):
        fit(model, (X, CLASSES.astype(float)), standardize_targets=True, **USUAL)


def test_outputs_of_a_sigmoid_cannot_reach_standardized_targets() -> None:
    options = {"loss": "squared-error", "output_activation": "sigmoid", "standardize_targets": True}
    with pytest.raises(ConfigurationError, match="outputs of a sigmoid can't reach"):
        fit("mlp", (X, CLASSES.astype(float)), **USUAL | options)


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
        (1.7e9 + X[:, :1], {}, "float32 rounds to steps of .*; --dtype float64, or --standardize"),
        (np.tile(255 * (X[:, 1:2] > 0), 1200).astype(np.float32), {}, "some inputs lie between 0 and 255"),
        (np.tile(255 * (X[:, 1:2] > 0), 1200).astype(np.uint8), {}, None),
        ((X[:, 1:2] > 0).astype(np.uint8), {}, "bytes of at most 1, and are divided by 255; --scale 1 leaves"),
        ((X[:, 1:2] > 0).astype(np.uint8), {"scale": 1.0}, None),
        (255 * (X[:, 1:2] > 0).astype(np.uint8), {"scale": 1.0}, "input 0 lies between 0 and 255, and is not scaled"),
        (np.column_stack([X[:, 1], np.full(300, 100.0)]), {}, "input 1 is always 100, and is not scaled"),
        (np.column_stack([X[:, 1], np.full(300, 0.1)]), {}, None),
        (np.column_stack([X[:, 1], 1e-6 * X[:, 1]]), {}, "input 1 lies between .*, which is little"),
        (1e-6 * X[:, 1:2], {"standardize": True}, None),
        (2**60 + np.arange(300)[:, None], {}, "and float64 rounds to steps of .*; subtract the least value first"),
        (2**60 + np.arange(300)[:, None], {"standardize": True}, "subtract the least value first"),
        (48 + 1e-9 * X[:, 1:2], {}, r"lies between 4\d\.\d+ and 48\.\d+, and float32 rounds"),
        (ONE_HOT, {}, None),
        (RARE, {}, None),
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


@pytest.mark.parametrize(
    ("x", "other"),
    [
        (TWO, TWO * [255, 1]),
        (TWO, TWO / [1000, 1]),
        (TWO, TWO / [1, 1000]),
        (TWO, TWO[:, ::-1]),
        (TWO, -TWO),
        (RARE, RARE * 255),
        (RARE, RARE / 255),
        (TWO, (TWO * [255, 1])[4:5]),
    ],
)
def test_other_units_of_one_input_are_reported(x: Any, other: Any) -> None:
    result = fit("softmax", (x, CLASSES), epochs=1, learning_rate=0.0)
    with pytest.warns(UserWarning, match="in the same units"):
        result.predict(other)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "x", [TWO, RARE, ONE_HOT, X[:, 1:2], PIXELS], ids=["two", "rare", "one-hot", "normal", "pixels"]
)
def test_the_same_units_are_not_reported(x: Any) -> None:
    result = fit("softmax", (x[:200], CLASSES[:200]), epochs=1, learning_rate=0.0)
    for rows in (x[:200], x[200:], x[200:220], *x[150:250, None]):
        result.predict(rows)
    result.predict(np.zeros((50, x.shape[1])))


def test_validation_and_test_data_in_other_units_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    pixels = RNG.integers(0, 256, (300, 6)).astype(np.float64)
    data = (pixels / 255, CLASSES)
    fit("mlp", data, validation=(pixels, CLASSES), test=(pixels, CLASSES), epochs=1)
    printed = capsys.readouterr().err
    assert re.search("warning: validation: the inputs lie between 0 and 255", printed)
    assert re.search("warning: test: the inputs lie between 0 and 255", printed)
    fit("mlp", data, validation=data, test=data, epochs=1)
    assert not capsys.readouterr().err


def test_scores_are_of_the_targets_as_they_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    """float32 makes one value of them, and would give an R² of 0."""
    y = 1e6 + 0.01 * X[:, 1]
    result = fit("mlp", (X[:, 1:2], y), learning_rate=0.0, **USUAL)
    rows = result.validation_rows
    expected = (
        1 - np.square(result.predict(X[rows, 1:2])[:, 0] - y[rows]).sum() / np.square(y[rows] - y[rows].mean()).sum()
    )
    assert result.summary["validation_r2"] == pytest.approx(expected, rel=1e-5)
    printed = capsys.readouterr().err
    assert "float32 rounds to steps of 0.1; --dtype float64, or --standardize-targets" in printed
    assert "no better than their mean" in printed


def test_parameters_of_a_run_in_other_units_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, other = (X[:, 1:2], CLASSES), (X[:, 1:2] + 0.5, CLASSES)
    fit("mlp", data, out=str(tmp_path / "plain"), epochs=1)
    fit("mlp", data, out=str(tmp_path / "standardized"), standardize=True, epochs=1)

    def printed(begun: str, **options: Any) -> str:
        fit("mlp", options.pop("data", data), init_from=str(tmp_path / begun), epochs=1, **options)
        return capsys.readouterr().err

    assert "took inputs standardized, this run takes them as they are" in printed("standardized")
    assert "took inputs as they were, this run takes them standardized" in printed("plain", standardize=True)
    assert "by other means and spreads" in printed("standardized", standardize=True, data=other)
    assert "took inputs divided by 1, this run divides by 3" in printed("plain", scale=3.0)
    assert not printed("standardized", standardize=True)
    assert not printed("plain")


def test_one_answer_for_all_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    fit("mlp", (X, CLASSES), learning_rate=0.0, weight_initializer="zeros", **USUAL)
    assert "all validation examples are taken for class 0; --standardize" in capsys.readouterr().err
    fit("mlp", (X[:, 1:], Y), learning_rate=0.0, **USUAL)
    assert "no better than their mean" in capsys.readouterr().err
    fit("mlp", (X[:, 1:2], (X[:, 1] > 0).astype(int)), **USUAL)
    assert not capsys.readouterr().err
