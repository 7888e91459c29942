"""Metrics against values worked out by hand and by loops over single examples, however the examples are cut."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsgd.core.errors import ConfigurationError
from distsgd.nn.task import Task, predicted_classes
from distsgd.training.metrics import (
    METRICS,
    R2,
    Accuracy,
    ConfusionMatrix,
    Error,
    MeanAbsoluteError,
    MeanSquaredError,
    Metric,
    TopK,
    UserMetric,
    standard_metrics,
)

NAN = math.nan
CLASSIFIERS: list[Metric] = [Accuracy(), Error(), TopK(2), ConfusionMatrix(3)]
REGRESSORS: list[Metric] = [MeanSquaredError(), MeanAbsoluteError(), R2(3)]

# four examples of three classes, in columns: right, second best, a tie of all, NaN at the true class
OUTPUTS = np.array([[3.0, 1.0, 2.0, 0.0], [1.0, 2.0, 2.0, 0.0], [2.0, 0.0, 2.0, NAN]], np.float32)
LABELS = np.array([0, 0, 1, 2])


def value(metric: Metric, outputs: Any, y: Any) -> Any:
    sums = metric.sums(np.asarray(outputs), np.asarray(y))
    assert sums.shape == (metric.width(),)
    assert sums.dtype == np.float64
    return metric.value(sums)


def test_classification_by_hand() -> None:
    assert predicted_classes(OUTPUTS).tolist() == [0, 1, 0, -1]
    assert value(Accuracy(), OUTPUTS, LABELS) == 0.25
    assert value(Error(), OUTPUTS, LABELS) == 0.75
    assert value(TopK(1), OUTPUTS, LABELS) == 0.25
    assert value(TopK(2), OUTPUTS, LABELS) == 0.75
    assert value(TopK(3), OUTPUTS, LABELS) == 0.75
    assert value(ConfusionMatrix(3), OUTPUTS, LABELS) == [[1, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_nan_anywhere_in_the_outputs_counts_as_wrong() -> None:
    for row in range(3):
        outputs = np.array([[5.0], [1.0], [0.0]])
        outputs[row] = NAN
        assert [value(Accuracy(), outputs, [k]) for k in range(3)] == [0, 0, 0]
        assert [value(Error(), outputs, [k]) for k in range(3)] == [1, 1, 1]
        assert [value(TopK(3), outputs, [k]) for k in range(3)] == [0, 0, 0]


def test_one_logit() -> None:
    outputs, labels = np.array([[-1.0, 2.0, 0.0, 0.1, NAN]]), np.array([0, 1, 1, 0, 1])
    assert value(Accuracy(), outputs, labels) == pytest.approx(2 / 5)
    assert value(ConfusionMatrix(2), outputs, labels) == [[1, 1], [1, 1]]
    assert value(Accuracy(), outputs, labels[None].astype(np.float32)) == pytest.approx(2 / 5)
    assert value(Accuracy(threshold=0.5), [[0.4, 0.6]], [0, 1]) == 1.0


def test_probability_targets() -> None:
    targets = np.array([[0.8, 0.9, 0.1, 0.2], [0.1, 0.0, 0.7, 0.2], [0.1, 0.1, 0.2, 0.6]])
    for metric in CLASSIFIERS:
        assert value(metric, OUTPUTS, targets) == value(metric, OUTPUTS, LABELS)


@given(st.data())
def test_top_k_against_sorting(data: st.DataObject) -> None:
    classes, n = data.draw(st.integers(2, 6)), data.draw(st.integers(1, 8))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    outputs = rng.integers(0, 4, (classes, n)).astype(np.float32)  # many ties
    labels = rng.integers(0, classes, n)
    for k in range(1, classes + 1):
        hits = 0
        for j in range(n):
            ranking = sorted(range(classes), key=lambda c, j=j: (-outputs[c, j], c))
            hits += labels[j] in ranking[:k]
        assert value(TopK(k), outputs, labels) == pytest.approx(hits / n)
    assert value(TopK(1), outputs, labels) == value(Accuracy(), outputs, labels)


def test_regression_by_hand() -> None:
    outputs, targets = [[1.0, 2.0, 5.0]], [[1.0, 3.0, 2.0]]
    assert value(MeanSquaredError(), outputs, targets) == pytest.approx(10 / 3)
    assert value(MeanAbsoluteError(), outputs, targets) == pytest.approx(4 / 3)
    assert value(R2(), outputs, targets) == pytest.approx(1 - 10 / 2)
    assert value(R2(), outputs, targets[0]) == pytest.approx(1 - 10 / 2)


def test_r2_is_averaged_over_outputs() -> None:
    targets = np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    outputs = np.array([[1.0, 2.0, 3.0], [20.0, 20.0, 20.0]])
    assert value(R2(2), outputs, targets) == pytest.approx((1.0 + 0.0) / 2)


@pytest.mark.parametrize(
    ("outputs", "targets", "expected"),
    [
        ([[0.1, 0.1, 0.1]], [[0.1, 0.1, 0.1]], 1.0),
        ([[0.1, 0.2, 0.1]], [[0.1, 0.1, 0.1]], 0.0),
        ([[0.1] * 9 + [0.2]], [[0.1] * 10], 0.0),
        ([[0.3] * 9 + [0.2]], [[0.3] * 10], 0.0),
        ([[0.0, 0.0]], [[0.0, 0.0]], 1.0),
        ([[NAN, 1.0]], [[0.0, 1.0]], NAN),
        ([[NAN, 1.0]], [[1.0, 1.0]], NAN),
        ([[1.0]], [[1.0]], NAN),
    ],
)
def test_r2_at_the_edges(outputs: Any, targets: Any, expected: float) -> None:
    assert value(R2(), outputs, targets) == pytest.approx(expected, nan_ok=True)


def test_regression_agrees_with_scikit_learn() -> None:
    reference = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(3)
    targets = rng.standard_normal((3, 200)) * [[1.0], [5.0], [0.1]] + [[0.0], [100.0], [-1.0]]
    outputs = targets + rng.standard_normal((3, 200)) * 0.3
    assert value(R2(3), outputs, targets) == pytest.approx(reference.r2_score(targets.T, outputs.T), rel=1e-9)
    ours = value(MeanSquaredError(), outputs, targets)
    assert ours == pytest.approx(reference.mean_squared_error(targets.T, outputs.T), rel=1e-12)
    ours = value(MeanAbsoluteError(), outputs, targets)
    assert ours == pytest.approx(reference.mean_absolute_error(targets.T, outputs.T), rel=1e-12)


@given(data=st.data())
@settings(max_examples=30)
@pytest.mark.parametrize("metric", CLASSIFIERS + REGRESSORS, ids=lambda metric: metric.name)
def test_chunks_add_up(metric: Metric, data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 40))
    cuts = sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=5))})
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    outputs = rng.standard_normal((3, n)).astype(np.float32)
    y = rng.standard_normal((3, n)) if metric in REGRESSORS else rng.integers(0, 3, n)
    total = np.zeros(metric.width())
    for begin, end in pairwise(cuts):
        total += metric.sums(outputs[:, begin:end], y[..., begin:end])
    np.testing.assert_allclose(metric.value(total), value(metric, outputs, y), rtol=1e-9)


@pytest.mark.parametrize("metric", CLASSIFIERS + REGRESSORS, ids=lambda metric: metric.name)
def test_memory_order_and_empty_chunks(metric: Metric) -> None:
    rng = np.random.default_rng(5)
    outputs = rng.standard_normal((3, 777)).astype(np.float32)
    y = rng.standard_normal((3, 777)).astype(np.float32) if metric in REGRESSORS else rng.integers(0, 3, 777)
    sums = metric.sums(outputs, y)
    other = metric.sums(np.asfortranarray(outputs), np.asfortranarray(y))
    assert sums.tobytes() == other.tobytes()
    nothing = metric.sums(outputs[:, :0], y[..., :0])
    assert nothing.shape == (metric.width(),)
    assert not nothing.any()
    if metric.width() != 9:
        assert math.isnan(metric.value(nothing))  # type: ignore[arg-type]


def test_float32_outputs_are_summed_in_float64() -> None:
    outputs, targets = np.full((1, 10), 1.0, np.float32), np.full((1, 10), 1.0 - 1e-12)
    assert value(MeanAbsoluteError(), outputs, targets) == pytest.approx(1e-12, rel=1e-3)


def test_user_metric() -> None:
    within_one = UserMetric("within_one", lambda outputs, y: np.abs(outputs[0] - y[0]) <= 1, mode="max")
    assert value(within_one, [[1.0, 5.0, 3.0]], [[1.5, 2.0, 4.0]]) == pytest.approx(2 / 3)
    assert (within_one.name, within_one.mode, within_one.width()) == ("within_one", "max", 2)
    mean = UserMetric("mean", lambda outputs, y: outputs.mean())
    with pytest.raises(ConfigurationError, match="metric mean: expected one value for each of 3 examples"):
        value(mean, [[1.0, 5.0, 3.0]], [0, 0, 0])


def test_standard_metrics() -> None:
    classes = Task("classification", 10)

    def names(*args: Any, **options: Any) -> list[str]:
        return [metric.name for metric in standard_metrics(*args, **options)]

    assert names(classes, 10) == ["accuracy", "error"]
    assert names(classes, 10, 5) == ["accuracy", "error", "top_5_accuracy"]
    assert names(Task("regression"), 3) == ["mean_squared_error", "mean_absolute_error", "r2"]
    assert [metric.width() for metric in standard_metrics(Task("regression"), 3)] == [2, 2, 10]
    assert standard_metrics(Task("classification", 2, answer="probability"), 1) == (Accuracy(0.5), Error(0.5))


def test_registry_names_are_the_metrics_names() -> None:
    for name, make in METRICS.items():
        classes = 2 if name in ("precision", "recall", "f1") else 10
        metric = make(Task("classification", classes), classes, ())
        assert metric.name == name
        with pytest.raises(dataclasses.FrozenInstanceError):
            metric.name = "other"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TopK(0), "k must be a whole number at least 1"),
        (lambda: ConfusionMatrix(0), "num_classes must be"),
        (lambda: R2(1.5), "num_outputs must be"),  # type: ignore[arg-type]
        (lambda: standard_metrics(Task("classification", 3), 3, 4), "got k = 4 for a classification with 3 outputs"),
        (lambda: standard_metrics(Task("classification", 2), 1, 1), "at least 2 outputs"),
        (lambda: standard_metrics(Task("regression"), 3, 2), "expected classes"),
        (lambda: value(MeanSquaredError(), np.ones((2, 4)), np.ones((1, 4))), "as many outputs as"),
        (lambda: value(MeanSquaredError(), np.ones((2, 4)), np.ones(4)), "as many outputs as"),
    ],
)
def test_misuse_is_refused(make: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make()
