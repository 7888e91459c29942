"""Metrics of counts and of all scores, against loops over single examples and pairs, and with fit on some ranks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from distsgd import fit
from distsgd.core.errors import ConfigurationError
from distsgd.metrics import (
    F1,
    AveragePrecision,
    BalancedAccuracy,
    Matthews,
    MedianAbsoluteError,
    Metric,
    Precision,
    Recall,
    RocAuc,
    RootMeanSquaredError,
    UserMetric,
    per_set,
)
from distsgd.nn.task import Task
from distsgd.training.metrics import METRICS
from tests.threads import run_on_threads

# Three classes: 0 is met twice of three, 1 once of two and missed for 0 once, 2 never predicted.
TRUE = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 0, 1])
OUTPUTS = np.eye(4)[:, PREDICTED]  # a fourth class appears nowhere
TWO_TRUE = np.array([1, 1, 1, 0, 0])
TWO_OUTPUTS = np.array([[0.5, 2.0, -1.0, 0.1, -3.0]])


def of_sums(metric: Metric, outputs: Any, y: Any) -> Any:
    """The value from sums of two parts."""
    cut = 2
    parts = [metric.sums(outputs[:, part], y[..., part]) for part in (slice(cut), slice(cut, None))]
    assert all(part.shape == (metric.width(),) and part.dtype == np.float64 for part in parts)
    return metric.value(parts[0] + parts[1])


def test_precision_recall_and_f1_by_hand() -> None:
    precision, recall = [2 / 3, 1 / 3, 0.0, 0.0], [2 / 3, 1 / 2, 0.0, 0.0]
    f1 = [2 / 3, 2 / 5, 0.0, 0.0]
    for kind, scores in ((Precision, precision), (Recall, recall), (F1, f1)):
        per_class = kind(4, average="per_class")
        assert of_sums(per_class, OUTPUTS, TRUE) == pytest.approx(scores)
        assert (per_class.is_number, per_class.mode) == (False, None)
        assert of_sums(kind(4, average="macro"), OUTPUTS, TRUE) == pytest.approx(sum(scores) / 3)  # classes there are
        assert of_sums(kind(4, average="micro"), OUTPUTS, TRUE) == pytest.approx(0.5)
    assert of_sums(Precision(), TWO_OUTPUTS, TWO_TRUE) == pytest.approx(2 / 3)
    assert of_sums(Recall(), TWO_OUTPUTS, TWO_TRUE) == pytest.approx(2 / 3)
    assert of_sums(F1(threshold=1.0), TWO_OUTPUTS, TWO_TRUE) == pytest.approx(2 * 1 / (1 + 3))


def test_f1_of_answers_by_hand() -> None:
    outputs = np.array([[1.0, -1.0, 1.0], [2.0, 2.0, -2.0]])
    y = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
    each = [2 / 3, 1 / 2]
    assert of_sums(F1(2, 0.0, True, average="per_class"), outputs, y) == pytest.approx(each)
    assert of_sums(F1(2, 0.0, True, average="macro"), outputs, y) == pytest.approx(sum(each) / 2)
    assert of_sums(F1(2, 0.0, True, average="micro"), outputs, y) == pytest.approx(2 * 2 / (4 + 3))


def test_balanced_accuracy_and_matthews_by_hand() -> None:
    assert of_sums(BalancedAccuracy(4), OUTPUTS, TRUE) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    # of two classes: (TP TN - FP FN) / sqrt of the product of the margins
    assert of_sums(Matthews(2), TWO_OUTPUTS, TWO_TRUE) == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))
    assert of_sums(Matthews(2), np.ones((1, 5)), TWO_TRUE) == 0.0
    # the correlation of all entries of the two one-hot matrices, centered in each column
    one, other = (np.eye(3)[labels] - np.eye(3)[labels].mean(axis=0) for labels in (TRUE, PREDICTED))
    expected = (one * other).sum() / math.sqrt((one**2).sum() * (other**2).sum())
    assert of_sums(Matthews(4), OUTPUTS, TRUE) == pytest.approx(expected)


def pairs(scores: Any, positive: Any) -> float:
    """The part of pairs in the right order, by all of them."""
    found = [
        1.0 if above > below else 0.5 if above == below else 0.0
        for above in scores[positive]
        for below in scores[~positive]
    ]
    return sum(found) / len(found)


def areas(scores: Any, positive: Any) -> float:
    """Average precision, threshold by threshold."""
    total, reached = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        taken = scores >= threshold
        recall = (taken & positive).sum() / positive.sum()
        total += (recall - reached) * (taken & positive).sum() / taken.sum()
        reached = recall
    return total


@pytest.mark.parametrize(("metric", "single"), [(RocAuc(), pairs), (AveragePrecision(), areas)])
def test_ranking_against_all_pairs(metric: Any, single: Any) -> None:
    random = np.random.default_rng(0)
    scores, y = random.integers(0, 9, 60) / 4, random.integers(0, 2, 60)  # many ties
    assert metric.of_set(scores[None], y) == pytest.approx(single(scores, y == 1), rel=1e-13)
    two = np.stack([np.zeros(60), scores])
    assert metric.of_set(two, y) == metric.of_set(scores[None], y)
    three, labels = random.integers(0, 5, (3, 60)).astype(float), random.integers(0, 3, 60)
    task = metric.of_task(Task("classification", 3), 3, ())
    p = np.exp(three - three.max(axis=0))
    p /= p.sum(axis=0)
    expected = [single(p[label], labels == label) for label in range(3)]
    assert task.of_set(three, labels) == pytest.approx(sum(expected) / 3, rel=1e-13)
    answers = metric.of_task(Task("multilabel", 2), 2, ())
    right = random.integers(0, 2, (2, 60)).astype(float)
    expected = [single(row, yes > 0.5) for row, yes in zip(three[:2], right, strict=True)]
    assert answers.of_set(three[:2], right) == pytest.approx(sum(expected) / 2, rel=1e-13)
    assert math.isnan(metric.of_set(scores[None], np.ones(60, int)))
    assert math.isnan(metric.of_set(np.array([[np.nan, 1.0]]), np.array([0, 1])))


def test_errors_of_values_by_hand() -> None:
    outputs, y = np.array([[1.0, 2.0, 9.0], [0.0, 0.0, 3.0]]), np.array([[0.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
    expected = (math.sqrt((1 + 4 + 81) / 3) + math.sqrt((16 + 9) / 3)) / 2
    assert of_sums(RootMeanSquaredError(2), outputs, y) == pytest.approx(expected)
    assert MedianAbsoluteError().of_set(outputs, y) == (2.0 + 3.0) / 2


@per_set
def largest(outputs: Any, y: Any) -> float:
    return float(outputs.max())


def spread(outputs: Any, y: Any) -> Any:
    return outputs.std(axis=0)


def trained(y: Any, names: list[str], **options: Any) -> dict[str, Any]:
    """A run's summary, the same on one rank and on three."""
    x = np.random.default_rng(1).standard_normal((1600, 4)).astype(np.float32)
    given = {"epochs": 1, "hidden": (8,), "validation_fraction": 0.4, "metrics": [*names, largest, spread], **options}
    summaries = [
        [
            {**result.summary, "run": None}
            for result in run_on_threads(
                size, lambda communicator: fit("mlp", (x, y(x)), communicator=communicator, **given)
            )
        ]
        for size in (1, 3)
    ]
    assert summaries[1] == summaries[0] * 3
    return summaries[0][0]


def test_metrics_have_the_same_bits_on_any_number_of_ranks() -> None:
    ranking, averaged = (
        ["roc_auc", "average_precision"],
        ["f1_macro", "f1_micro", "precision_macro", "recall_per_class"],
    )
    names = [*ranking, *averaged, "balanced_accuracy", "matthews_correlation"]
    classes = trained(lambda x: np.digitize(x[:, 0], (-0.5, 0.5)), names, monitor="validation_roc_auc", epochs=2)
    assert 0.5 < classes["validation_roc_auc"] < 1
    assert len(classes["validation_recall_per_class"]) == 3
    assert all(isinstance(classes[f"validation_{name}"], float) for name in names if "per_class" not in name)
    values = trained(
        lambda x: np.stack([x[:, 0], 3 * x[:, 1]], 1), ["root_mean_squared_error", "median_absolute_error"],
        loss="quantile", standardize_targets=True, monitor="validation_median_absolute_error",
    )  # fmt: skip
    assert values["validation_root_mean_squared_error"] > values["validation_median_absolute_error"] > 0
    assert values["validation_largest"] > 0


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="of class 1 of two, the targets have 3 classes; take f1_macro"):
        METRICS["f1"](Task("classification", 3), 3, ())
    with pytest.raises(ConfigurationError, match="average must be one of"):
        F1(average="all")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="per must be one of"):
        UserMetric("one", spread, per="chunk")  # type: ignore[arg-type]
    whole = UserMetric("one", spread, per="set")
    with pytest.raises(ConfigurationError, match="expected one number of the whole set"):
        whole.of_set(np.ones((1, 3)), np.ones(3))
    x = np.random.default_rng(0).standard_normal((80, 3)).astype(np.float32)
    with pytest.raises(ConfigurationError, match=r"monitor.*recall_per_class"):
        fit(
            "mlp", (x, (x[:, 0] > 0).astype(int)), epochs=1, validation_fraction=0.2, patience=1,
            metrics=["recall_per_class"], monitor="validation_recall_per_class",
        )  # fmt: skip


def test_answers_of_which_none_is_yes_or_predicted_score_zero() -> None:
    """As in scikit-learn with zero_division=0; NaN is for no examples at all."""
    task, none = Task("multilabel", 2), np.full((2, 5), -1.0)
    for name in ("precision", "recall", "f1"):
        for average, expected in (("macro", 0.0), ("micro", 0.0), ("per_class", [0.0, 0.0])):
            metric = METRICS[f"{name}_{average}"](task, 2, ())
            assert metric.value(metric.sums(none, np.zeros((2, 5)))) == expected
            empty = metric.value(metric.sums(none[:, :0], np.zeros((2, 0))))
            assert np.isnan(empty).all()
            assert np.shape(empty) == np.shape(expected)
