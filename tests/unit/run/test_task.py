"""What outputs stand for: all that speaks of labels says the same, against labels made by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd import FunctionObjective, fit
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.metrics import R2, Accuracy, Error, MeanSquaredError, TopK
from distsgd.nn import Dense, Sequential, SoftmaxCrossEntropy, Supervised
from distsgd.run.trained.trained_model import Result

RNG = np.random.default_rng(3)
X = RNG.normal(size=(120, 3)).astype(np.float32)
THREE = np.digitize(X[:, 0], [-0.5, 0.5])
TWO = (X[:, 0] > 0.3).astype(np.int64)
USUAL: dict[str, Any] = {"epochs": 3, "batch_size": 20, "validation_fraction": 0.25}


def scores(outputs: int, value: float = 0.1) -> FunctionObjective:
    """An own function that learns nothing."""

    def nothing(params: Any, grads: Any, batch: Any) -> tuple[float, int]:
        return 1.0 * len(batch), len(batch)

    return FunctionObjective(nothing, {"w": np.full((outputs, 3), value)}, lambda params, batch: params["w"] @ batch.x)


def labels(result: Result) -> Any:
    return result.task.labels(result.predict(X))


def test_one_class_alone_is_refused() -> None:
    """Whose loss would be 0 from the first step."""
    with pytest.raises(DataError, match="labels of a single class, 0: there is nothing"):
        fit("softmax", (X, np.zeros(len(X), int)), **USUAL)
    with pytest.raises(DataError, match="labels of a single class, 2: there is nothing"):
        fit("mlp", (X, np.full(len(X), 2)), **USUAL)
    with pytest.raises(DataError, match="labels of a single class, 1: there is nothing"):
        fit("mlp", (X, np.ones(len(X))), loss="binary-cross-entropy", **USUAL)


def test_one_class_alone_is_refused_under_any_loss() -> None:
    """A squared error on labels, one-hot rows, an own function, the training part alone."""
    ones, rows = np.ones(len(X), int), np.eye(3, dtype=np.float32)[np.ones(len(X), int)]
    for model, y, loss in (("mlp", ones, "squared-error"), ("softmax", rows, "softmax-cross-entropy")):
        with pytest.raises(DataError, match="labels of a single class, 1: there is nothing"):
            fit(model, (X, y), loss=loss, **USUAL)
    with pytest.raises(DataError, match="labels of a single class, 1: there is nothing"):
        fit(scores(1), (X, ones), epochs=1)
    last = np.where(np.arange(len(X)) < 100, 0.0, TWO)
    with pytest.raises(ConfigurationError, match="validation_last: leaves no examples of class 1 to train on"):
        fit("mlp", (X, last), loss="binary-cross-entropy", validation_last=20, epochs=1)
    last_rows = np.eye(2, dtype=np.float32)[last.astype(int)]
    softmax = Supervised(Sequential([Dense(3, 2)]), SoftmaxCrossEntropy(), (3,))
    with pytest.raises(DataError, match="a single class, 0, once the validation examples are split off"):
        fit(softmax, (X, last_rows), validation_last=20, epochs=1)
    soft = rows * 0.7 + 0.1
    soft[::2] = [0.0, 1.0, 0.0]
    fit("softmax", (X, soft), loss="softmax-cross-entropy", **USUAL)


@pytest.mark.parametrize("y", [TWO, TWO.astype(np.float32)])
def test_an_own_function_with_other_outputs_than_classes_is_refused(y: Any) -> None:
    """Its third column would be counted as another class; one output, or one for each class, are right."""
    loss = "auto" if y.dtype.kind == "i" else "binary-cross-entropy"
    for validation in (0.25, 0.0):
        with pytest.raises(
            ConfigurationError, match="the targets have 2 classes, the model has 3 outputs; give it 2, or"
        ):
            fit(scores(3), (X, y), loss=loss, epochs=1, validation_fraction=validation)
    for outputs in (1, 2):
        assert set(labels(fit(scores(outputs), (X, y), loss=loss, epochs=1))) <= {0, 1}


def test_outputs_of_another_shape_are_refused() -> None:
    wrong = FunctionObjective(scores(1).function, {"w": np.zeros((1, 3))}, lambda params, batch: batch.x.T)
    with pytest.raises(ConfigurationError, match="put examples last"):
        fit(wrong, (X, TWO), epochs=1)


def test_a_softmax_over_a_single_column_is_refused() -> None:
    for model in ("softmax", scores(1)):
        with pytest.raises(ConfigurationError, match=r"y.astype\(int\).*binary-cross-entropy takes 0 and 1"):
            fit(model, (X, TWO.astype(np.float32)[:, None]), loss="softmax-cross-entropy", **USUAL)
    with pytest.raises(DataError, match=r"\(y \+ 1\) / 2 makes them of -1 and \+1"):
        fit("mlp", (X, 2.0 * TWO - 1), loss="binary-cross-entropy", **USUAL)


def test_metrics_ask_the_task() -> None:
    """A threshold that is not given is the task's: in one summary, accuracy and error add up to 1."""
    more: dict[str, Any] = {"metrics": [Accuracy(), Error(), R2()], "validation": (X, TWO), "loss": "squared-error"}
    summary = fit("mlp", (X, TWO), epochs=2, batch_size=20, **more).summary
    result = fit("mlp", (X, TWO), epochs=2, batch_size=20, **more | {"metrics": ()})
    assert summary["validation_accuracy"] == np.mean(labels(result) == TWO) == result.summary["validation_accuracy"]
    assert summary["validation_accuracy"] + summary["validation_error"] == pytest.approx(1)
    explicit = fit("mlp", (X, TWO), epochs=2, batch_size=20, **more | {"metrics": [Accuracy(1e9)]}).summary
    assert explicit["validation_accuracy"] == np.mean(TWO == 0)


@pytest.mark.parametrize(
    ("metrics", "y", "loss", "remedy"),
    [
        (("accuracy", Accuracy()), TWO.astype(float), "auto", "y.astype\\(int\\)"),
        (("accuracy", Error()), np.stack([TWO, 1.0 - TWO], 1), "binary-cross-entropy", "label_accuracy"),
        (("mean_squared_error", MeanSquaredError()), TWO.astype(float), "binary-cross-entropy", "y.astype\\(float\\)"),
        (("r2", R2()), THREE, "auto", "y.astype\\(float\\)"),
        (("top_5_accuracy", TopK(1)), X[:, 0], "auto", "y.astype\\(int\\)"),
    ],
)
def test_metrics_of_other_tasks_are_refused(metrics: tuple[str, Any], y: Any, loss: str, remedy: str) -> None:
    name, one = metrics
    with pytest.raises(ConfigurationError, match=f"metric {name}: would mean nothing.*{remedy}"):
        fit("mlp", (X, y), loss=loss, metric=(name,), epochs=1, validation_fraction=0.1)
    with pytest.raises(ConfigurationError, match=f"would mean nothing.*{remedy}"):
        fit("mlp", (X, y), loss=loss, metrics=[one], epochs=1, validation_fraction=0.1)


def test_r2_of_a_program_is_that_of_every_run() -> None:
    """With the mean of the training targets, far from which its sums would lose their digits."""
    y = 1e6 + 1e-3 * X[:, 0].astype(np.float64)
    usual: dict[str, Any] = {"dtype": "float64", "epochs": 1, "standardize_targets": True, "validation": (X, y)}
    summary = fit("mlp", (X, y), **usual).summary
    assert fit("mlp", (X, y), metrics=[R2()], **usual).summary["validation_r2"] == summary["validation_r2"]
    with pytest.raises(ConfigurationError, match=r"expected R2\(2\) for 2 values"):
        fit("mlp", (X, X[:, :2]), metrics=[R2()], epochs=1, validation_fraction=0.1)


def test_one_prediction_for_all_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """Of more classes than a matrix shows, of several answers, and of one of several values."""
    still: dict[str, Any] = {"epochs": 1, "learning_rate": 0.0}
    many = np.arange(len(X)) % 103
    fit("softmax", (X, many), validation=(X, many), classes="103", **still)
    assert "all validation examples are taken for class 0;" in capsys.readouterr().err
    answers = (X[:, :2] > 0).astype(np.float32)
    fit("softmax", (X, answers), loss="binary-cross-entropy", validation=(X, answers), **still)
    assert "all validation examples get the same answers, 0 0;" in capsys.readouterr().err
    x = X.astype(np.float64)
    values = np.stack([x @ [1.0, 2.0, 0.5], 3 + X[:, 1]], 1)
    fit("softmax", (x, values), validation=(x, values), bias=False, epochs=50, batch_size=20, dtype="float64")
    assert "predicts the validation targets of output 1 no better than their mean" in capsys.readouterr().err


def test_a_score_of_ones_own_is_not_compared_with_the_mean(capsys: pytest.CaptureFixture[str]) -> None:
    """What an own loss takes needn't be the targets' values."""
    fit(scores(1, 5.0), (X, TWO.astype(np.float32)), epochs=1)
    assert "no better than" not in capsys.readouterr().err


def test_values_like_identifiers_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    fit("softmax", (X, np.arange(len(X))), epochs=1, validation_fraction=0)
    assert "120 training examples are of 120 classes; values are floats (y.astype(float))" in capsys.readouterr().err


def test_a_number_of_classes_is_a_number() -> None:
    assert fit("softmax", (X, THREE), classes=5, **USUAL).predict(X).shape == (120, 5)


def test_classes_without_examples_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """Labels from 1, as other languages count them, make a class 0 that no example has."""
    assert fit("softmax", (X, THREE + 1), **USUAL).predict(X).shape == (120, 4)
    assert "1 of 4 classes have no examples: 0; number the classes from 0" in capsys.readouterr().err
    fit("softmax", (X, THREE + 1), classes="4", **USUAL)
    fit("softmax", (X, THREE), **USUAL)
    assert capsys.readouterr().err == ""


def test_a_fold_without_some_classes_is_trained_with_all() -> None:
    few = THREE < 2
    result = fit("softmax", (X[few], THREE[few]), validation=(X, THREE), classes="3", epochs=2)
    assert result.predict(X).shape == (120, 3)
    assert np.shape(result.summary["confusion_matrix"]["validation"]) == (3, 3)
    alone = fit("softmax", (X, np.zeros(len(X), int)), classes=("4",), **USUAL)
    assert alone.predict(X).shape == (120, 4)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("1",), "a number from 2"),
        (("many",), "got 'many'"),
        (("a", "b", "a"), "different names"),
        (("a", "b"), "expected labels from 0 to 1, example"),
    ],
)
def test_classes_that_cannot_be_are_refused(classes: tuple[str, ...], words: str) -> None:
    with pytest.raises((ConfigurationError, DataError), match=words):
        fit("softmax", (X, THREE), classes=classes, **USUAL)


def test_names_of_values_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="the targets are values"):
        fit("mlp", (X, X[:, 0]), classes=("low", "high"), **USUAL)


def test_whole_numbers_under_a_squared_error_are_values() -> None:
    """Counts, also below 0: no labels, no confusion, the same bits as floats."""
    counts = np.round(2 * X[:, 0]).astype(np.int64)
    as_ints = fit("mlp", (X, counts), loss="squared-error", **USUAL)
    as_floats = fit("mlp", (X, counts.astype(np.float32)), loss="squared-error", **USUAL)
    assert as_ints.summary["parameters_sha256"] == as_floats.summary["parameters_sha256"]
    assert labels(as_ints) is None
    assert as_ints.summary["confusion_matrix"] is None
    assert as_ints.summary["validation_r2"] == as_floats.summary["validation_r2"]


def test_one_hot_targets_are_classes() -> None:
    result = fit("softmax", (X, np.eye(3, dtype=np.float32)[THREE]), loss="softmax-cross-entropy", **USUAL)
    assert np.array_equal(labels(result), result.predict(X).argmax(axis=1))
    assert np.sum(result.summary["confusion_matrix"]["validation"]) == 30


def test_0_and_1_as_floats_are_classes_of_a_cross_entropy() -> None:
    result = fit("mlp", (X, TWO.astype(np.float32)), loss="binary-cross-entropy", **USUAL)
    assert np.array_equal(labels(result), result.predict(X)[:, 0] > 0.5)


def test_several_answers_are_labels_each() -> None:
    y = (X[:, :2] > 0).astype(np.float32)
    result = fit("mlp", (X, y), loss="binary-cross-entropy", **USUAL | {"epochs": 30})
    right = np.mean(labels(result) == y)
    assert right > 0.9
    scores = fit("mlp", (X, y), loss="binary-cross-entropy", validation=(X, y), epochs=30, batch_size=20)
    best = scores.task.labels(scores.predict(X))
    assert scores.summary["validation_label_accuracy"] == pytest.approx(np.mean(best == y))


def test_a_single_score_is_class_1_above_0_everywhere(tmp_path: Path) -> None:
    """Of an own function, as a support vector machine's: training, predictions, evaluate and predict agree."""
    code = """
import numpy as np
from distsgd import FunctionObjective

def hinge(params, grads, batch):
    t = 2.0 * batch.y - 1.0
    margin = 1.0 - t * (params["w"] @ batch.x)
    grads["w"] = batch.x @ np.where(margin > 0, -t, 0).astype(batch.x.dtype)
    return float(np.maximum(margin, 0).sum(dtype=np.float64)), len(batch)

def svm(input_shape, outputs):
    return FunctionObjective(hinge, {"w": np.zeros(3)}, lambda params, batch: (params["w"] @ batch.x)[None])
"""
    (tmp_path / "svm.py").write_text(code)
    np.savez(tmp_path / "d.npz", x=X, y=TWO)
    np.savez(tmp_path / "n.npz", x=X)

    def run(module: str, *arguments: str) -> str:
        command = [sys.executable, "-m", f"distsgd.{module}", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60).stdout

    run("train", "--dataset", "d.npz", "--model", "svm.py:svm", "--out", "run", "--lr", "0.01", "--epochs", "2")
    scores = json.loads(run("evaluate", "run", "--dataset", "d.npz", "--model", "svm.py:svm", "--split", "all"))
    run("predict", "run", "n.npz", "--model", "svm.py:svm", "-o", "o.npz")
    with np.load(tmp_path / "o.npz") as found:
        predictions, predicted = found["predictions"], found["labels"]
    assert np.any((predictions > 0) & (predictions < 0.5)), "where two thresholds would differ"
    assert np.array_equal(predicted, predictions[:, 0] > 0)
    assert scores["accuracy"] == np.mean(predicted == TWO)
    assert scores["confusion_matrix"][1][1] == np.sum((predicted == 1) & (TWO == 1))


def test_names_come_back_with_predictions(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=THREE)
    usual = [sys.executable, "-m"]
    for line in (
        ["distsgd.train", "--dataset", "d.npz", "--classes", "low", "middle", "high", "--epochs", "1", "--out", "run"],
        ["distsgd.predict", "run", "d.npz", "-o", "o.npz"],
    ):
        subprocess.run([*usual, *line], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    with np.load(tmp_path / "o.npz") as found:
        assert found["names"].tolist() == ["low", "middle", "high"]
        assert np.array_equal(found["labels"], found["predictions"].argmax(axis=1))


def test_an_own_function_of_unused_labels_is_no_classifier() -> None:
    """Its labels may be a column of zeros; nothing is measured of them."""

    def mean(params: Any, grads: Any, batch: Any) -> tuple[float, int]:
        error = params["m"][:, None] - batch.x
        grads["m"] = error.sum(axis=1)
        return 0.5 * float(np.square(error).sum(dtype=np.float64)), len(batch)

    objective = FunctionObjective(mean, {"m": np.zeros(3)})
    result = fit(objective, (X, np.zeros(len(X), int)), optimizer=distsgd.SGD(0.5), epochs=20, validation_fraction=0)
    assert np.allclose(result.params["m"], X.mean(axis=0), atol=1e-2)


def test_evaluate_knows_data_that_a_seed_makes(tmp_path: Path) -> None:
    """They are the run's own, of the run's own seed: its validation part by default."""

    def run(module: str, *arguments: str) -> str:
        command = [sys.executable, "-m", f"distsgd.{module}", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60).stdout

    run("train", "--dataset", "moons", "--seed", "3", "--epochs", "1", "--out", "run")
    scores = json.loads(run("evaluate", "run", "--dataset", "moons"))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert scores["split"] == "validation"
    assert scores["loss"] == summary["validation_loss"]
