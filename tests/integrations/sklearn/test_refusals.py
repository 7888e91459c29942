"""What the estimators refuse, and what they warn of: by scikit-learn's classes, and under mpirun once for all ranks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parallel.launch import find_mpirun, run_command

pytest.importorskip("sklearn", reason="scikit-learn is missing: make test-integrations installs it")

from sklearn.datasets import load_iris

from distsgd.integrations.sklearn import DistributedClassifier, DistributedRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, LABELS = load_iris(return_X_y=True)
QUICK: dict[str, Any] = {"hidden": (5,), "max_iter": 2}

WRONG = [
    ({"hidden": (5,), "model": "softmax"}, "hidden"),
    ({"hidden": (0,)}, "hidden"),
    ({"activation": "logistic"}, "activation: expected 'sigmoid'"),
    ({"optimizer": "adm"}, "optimizer"),
    ({"learning_rate": "adaptive"}, "learning_rate: .*schedule"),
    ({"max_iter": 0}, "max_iter: expected a whole number, at least 1, got 0"),
    ({"max_iter": 2.5}, "max_iter"),
    ({"max_iter": None}, "max_iter"),
    ({"n_iter_no_change": 0}, "n_iter_no_change"),
    ({"tol": "small"}, "tol"),
    ({"alpha": -1.0}, "alpha"),
    ({"alpha": None}, "alpha"),
    ({"batch_size": "all"}, "batch_size"),
    ({"batch_size": 0}, "batch_size"),
    ({"early_stopping": "yes"}, "early_stopping"),
    ({"early_stopping": True, "validation_fraction": 1.5}, "validation_fraction"),
    ({"class_weight": "even"}, "class_weight"),
    ({"random_state": -1}, "[Ss]eed"),
    ({"model": 3}, "model"),
    ({"communicator": "all"}, "communicator"),
    ({"fit_options": {"epochz": 3}}, "epochz"),
    ({"fit_options": {"epochs": 3}}, "max_iter"),
    ({"fit_options": "fast"}, "fit_options"),
]  # fmt: skip


@pytest.mark.parametrize(("parameters", "named"), WRONG, ids=lambda one: one if isinstance(one, str) else "")
def test_a_wrong_parameter_is_a_value_error_that_names_it(parameters: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        DistributedClassifier(**parameters).fit(X, LABELS)


def test_an_infinite_patience_is_right() -> None:
    assert DistributedClassifier(**QUICK, n_iter_no_change=np.inf).fit(X, LABELS).n_iter_ == 2


def test_predictions_of_other_shapes_are_value_errors() -> None:
    classifier = DistributedClassifier(**QUICK).fit(np.ones((10, 1, 4, 4)), np.arange(10) % 2)
    with pytest.raises(ValueError, match=r"\(1, 5, 5\)"):
        classifier.predict(np.ones((2, 1, 5, 5)))


def test_warm_start_with_another_model() -> None:
    classifier = DistributedClassifier(**QUICK, warm_start=True).fit(X, LABELS)
    with pytest.raises(ValueError, match=r"warm_start: .*another model"):
        classifier.set_params(hidden=(3,)).fit(X, LABELS)


def test_classes_of_a_later_call() -> None:
    classifier = DistributedClassifier(**QUICK).partial_fit(X, LABELS, classes=[2, 1, 0])
    assert classifier.partial_fit(X[:50], LABELS[:50], classes=[0, 1, 2]).classes_.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"classes: expected .*as in the first call"):
        classifier.partial_fit(X[:50], LABELS[:50], classes=[0, 1])


def test_columns_that_are_no_numbers_are_named() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is missing: make test-integrations installs it")
    frame = pandas.DataFrame(X, columns=["a", "b", "c", "d"])
    colours = pandas.Series(np.where(LABELS == 0, "red", "blue"))
    for column in (colours, colours.astype("category"), pandas.Timestamp("2020-01-01")):
        with pytest.raises(ValueError, match="X: expected numbers, got other values in the column colour; encode"):
            DistributedClassifier(**QUICK).fit(frame.assign(colour=column), LABELS)
    digits = pandas.Series(LABELS).astype("category")
    assert DistributedClassifier(**QUICK).fit(frame.assign(digit=digits), LABELS).n_features_in_ == 5


def test_a_quiet_fit_prints_nothing_and_warns(capfd: pytest.CaptureFixture[str]) -> None:
    DistributedRegressor(**QUICK).fit(X, (LABELS == 0).astype(float))
    with pytest.warns(UserWarning, match="input 0 .* not scaled; a StandardScaler gives"):
        DistributedClassifier(**QUICK).fit(X * 1e4, LABELS)
    assert capfd.readouterr() == ("", "")


def test_refusals_and_warnings_under_mpirun(tmp_path: Path) -> None:
    """Caught, each is a ValueError or TypeError on all ranks; not caught, rank 0 prints one sentence and all end."""
    if find_mpirun()[0] is None:
        pytest.skip(find_mpirun()[1])
    done = run_command(2, [sys.executable, str(Path(__file__).with_name("refuse_on_ranks.py"))], tmp_path)
    ranks = dict(json.loads(line) for line in done.out.splitlines() if line.startswith("["))
    assert set(ranks) == {0, 1}, done.text
    assert ranks[0] == ranks[1]
    found = ranks[0]
    assert found["shapes"].startswith("ValueError: Found input variables with inconsistent numbers of samples")
    assert found["NaN"].startswith("ValueError: Input X contains NaN.")
    assert found["NaN on rank 1"].startswith("ValueError: on rank 1: Input X contains NaN.")
    assert found["sparse"].startswith("TypeError: Sparse data was passed")
    assert found["own check"] == "ValueError: max_iter: expected a whole number, at least 1, got 'many'"
    assert "'adm'; did you mean adam?" in found["check of fit"]
    assert found["one class"].startswith("ValueError: y: expected labels of at least two classes")
    assert {text.partition(":")[0] for name, text in found.items() if name != "accuracy"} == {"ValueError", "TypeError"}
    assert done.err.count("ConvergenceWarning:") == done.err.count("DataConversionWarning:") == 1, done.err
    assert done.err.count("distsgd: error: Input X contains NaN.") == 1, done.err
    assert "Traceback" not in done.err
    assert done.status != 0
    assert 0 not in done.statuses.values()
