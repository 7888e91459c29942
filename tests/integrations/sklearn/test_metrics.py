"""Metrics have scikit-learn's values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn import metrics as theirs

from distsgd.nn.task import Kind, Task
from distsgd.training.metrics import METRICS

RANDOM = np.random.default_rng(0)
AVERAGES: list[tuple[str, dict[str, Any]]] = [
    ("_macro", {"average": "macro"}), ("_micro", {"average": "micro"}), ("_per_class", {"average": None}),
]  # fmt: skip
SCORES = {"precision": theirs.precision_score, "recall": theirs.recall_score, "f1": theirs.f1_score}


def value(name: str, kind: Kind, outputs: Any, y: Any, classes: int = 0) -> Any:
    metric = METRICS[name](Task(kind, classes), len(outputs), ())
    if metric.gathers:
        return metric.of_set(outputs, y)
    cuts = [metric.sums(outputs[:, part], y[..., part]) for part in (slice(0, 37), slice(37, None))]
    return metric.value(cuts[0] + cuts[1])


def probabilities(outputs: Any) -> Any:
    p = np.exp(outputs - outputs.max(axis=0))
    return (p / p.sum(axis=0)).T


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("ties", [False, True])
def test_metrics_of_classes(classes: int, ties: bool) -> None:
    y = RANDOM.integers(0, classes, 200)
    outputs = RANDOM.standard_normal((classes, 200)) + 1.5 * np.eye(classes)[:, y]
    outputs = outputs.round() if ties else outputs
    predicted = outputs.argmax(axis=0)
    for name, function in SCORES.items():
        cases = [*AVERAGES, ("", {"average": "binary"})] if classes == 2 else AVERAGES
        for suffix, options in cases:
            found = value(name + suffix, "classification", outputs, y, classes)
            np.testing.assert_allclose(found, function(y, predicted, **options), rtol=1e-13, err_msg=name + suffix)
    for name, function in (
        ("balanced_accuracy", theirs.balanced_accuracy_score), ("matthews_correlation", theirs.matthews_corrcoef),
    ):  # fmt: skip
        assert value(name, "classification", outputs, y, classes) == pytest.approx(function(y, predicted), rel=1e-12)
    p = probabilities(outputs)
    roc = value("roc_auc", "classification", outputs, y, classes)
    precision = value("average_precision", "classification", outputs, y, classes)
    if classes == 2:
        difference = outputs[1] - outputs[0]
        assert roc == pytest.approx(theirs.roc_auc_score(y, difference), rel=1e-12)
        assert precision == pytest.approx(theirs.average_precision_score(y, difference), rel=1e-12)
        single = difference[None]
        assert value("roc_auc", "classification", single, y, 2) == roc
        assert value("f1", "classification", single, y, 2) == pytest.approx(theirs.f1_score(y, difference > 0))
        return
    assert roc == pytest.approx(theirs.roc_auc_score(y, p, multi_class="ovr", average="macro"), rel=1e-12)
    assert precision == pytest.approx(theirs.average_precision_score(y, p, average="macro"), rel=1e-12)


def test_classes_that_appear_nowhere_are_no_part_of_a_mean() -> None:
    y, predicted = np.array([0, 0, 1, 1, 3] * 20), np.array([0, 1, 1, 0, 1] * 20)
    outputs = np.eye(6)[:, predicted]
    for name, function in SCORES.items():
        expected = function(y, predicted, average="macro", zero_division=0)
        assert value(f"{name}_macro", "classification", outputs, y, 6) == pytest.approx(expected, rel=1e-13)
    expected = theirs.matthews_corrcoef(y, predicted)
    assert value("matthews_correlation", "classification", outputs, y, 6) == pytest.approx(expected, rel=1e-12)


def test_metrics_of_several_answers() -> None:
    y = RANDOM.integers(0, 2, (4, 150)).astype(float)
    outputs = (RANDOM.standard_normal((4, 150)) + y).round(1)
    for name, function in SCORES.items():
        for suffix, options in AVERAGES:
            found = value(name + suffix, "multilabel", outputs, y, 4)
            np.testing.assert_allclose(found, function(y.T, outputs.T > 0, **options), rtol=1e-13)
    assert value("roc_auc", "multilabel", outputs, y, 4) == pytest.approx(theirs.roc_auc_score(y.T, outputs.T))
    expected = theirs.average_precision_score(y.T, outputs.T, average="macro")
    assert value("average_precision", "multilabel", outputs, y, 4) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("outputs", [1, 3])
def test_metrics_of_values(outputs: int) -> None:
    y = RANDOM.standard_normal((outputs, 101)) * np.array([[1.0], [10.0], [0.1]])[:outputs]
    predicted = y + RANDOM.standard_normal((outputs, 101))
    for name, function in (
        ("root_mean_squared_error", theirs.root_mean_squared_error), ("r2", theirs.r2_score),
        ("median_absolute_error", theirs.median_absolute_error),
        ("mean_absolute_error", theirs.mean_absolute_error), ("mean_squared_error", theirs.mean_squared_error),
    ):  # fmt: skip
        assert value(name, "regression", predicted, y) == pytest.approx(function(y.T, predicted.T), rel=1e-12)


def test_pinball_loss_and_poisson_deviance() -> None:
    """The losses of quantiles and counts, up to what no parameter changes."""
    from distsgd.nn import Poisson, Quantile

    y, z = RANDOM.standard_normal((1, 90)), RANDOM.standard_normal((1, 90))
    for tau in (0.1, 0.5, 0.8):
        expected = theirs.mean_pinball_loss(y[0], z[0], alpha=tau)
        assert Quantile((tau,)).per_example(z, y).mean() == pytest.approx(expected, rel=1e-12)
    counts = RANDOM.poisson(2.0, (1, 90)).astype(float)
    least = [count - count * math.log(count) if count else 0.0 for count in counts[0]]
    found = 2 * (Poisson().per_example(z, counts) - least).mean()
    assert found == pytest.approx(theirs.mean_poisson_deviance(counts[0], np.exp(z[0])), rel=1e-10)
