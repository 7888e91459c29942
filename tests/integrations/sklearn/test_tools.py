"""The estimators in scikit-learn's tools: routing, calibration, stacking, inspection, curves, files."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is missing: make test-integrations installs it")

import joblib
import sklearn
from scipy.sparse import csr_matrix
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.datasets import load_diabetes, load_iris, make_multilabel_classification
from sklearn.ensemble import StackingClassifier
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, learning_curve
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import distsgd
from distsgd.integrations.sklearn import DistributedClassifier, DistributedRegressor

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:.* a StandardScaler.*:UserWarning"),
]

X, LABELS = load_iris(return_X_y=True)
X = StandardScaler().fit_transform(X)
NAMES = np.array(["setosa", "versicolor", "virginica"])[LABELS]
QUICK: dict[str, Any] = {"hidden": (8,), "learning_rate": 0.05, "max_iter": 30}


@pytest.mark.parametrize("kind", [DistributedClassifier, DistributedRegressor])
def test_every_parameter_is_documented(kind: Any) -> None:
    listed = re.findall(r"^(\w+) : ", kind.__doc__.partition("Attributes\n")[0], re.MULTILINE)
    assert sorted(listed) == sorted(kind().get_params())
    assert "{" not in kind.__doc__.replace('{"schedule"', "")


def test_weights_are_routed_through_a_pipeline_and_a_search() -> None:
    weights = np.where(LABELS == 0, 0.0, 1.0)
    with sklearn.config_context(enable_metadata_routing=True):
        network = DistributedClassifier(**QUICK).set_fit_request(sample_weight=True)
        network = network.set_score_request(sample_weight=True)
        pipeline = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), network)
        folds = StratifiedKFold(3, shuffle=True, random_state=0)
        search = GridSearchCV(pipeline, {"distributedclassifier__alpha": [1e-4, 1e-2]}, cv=folds, error_score="raise")
        search.fit(X, NAMES, sample_weight=weights)
    assert set(search.predict(X)) == {"versicolor", "virginica"}
    assert search.best_score_ > 0.85


def test_calibration_and_stacking() -> None:
    calibrated = CalibratedClassifierCV(DistributedClassifier(**QUICK), cv=2, method="isotonic").fit(X, NAMES)
    assert calibrated.score(X, NAMES) > 0.85
    members = [("network", DistributedClassifier(**QUICK)), ("linear", LogisticRegression())]
    assert StackingClassifier(members, cv=2).fit(X, NAMES).score(X, NAMES) > 0.9
    target = TransformedTargetRegressor(DistributedRegressor(**QUICK), transformer=StandardScaler())
    assert target.fit(*load_diabetes(return_X_y=True)).score(*load_diabetes(return_X_y=True)) > 0.2


def test_inspection_and_curves() -> None:
    x = np.c_[X[:, 2:], np.random.default_rng(0).random((150, 1))]
    fitted = DistributedClassifier(**QUICK).fit(x, NAMES)
    importance = permutation_importance(fitted, x, NAMES, n_repeats=3, random_state=0).importances_mean
    assert importance.argmin() == 2
    for increments in (False, True):
        _, _, scores = learning_curve(
            DistributedClassifier(**QUICK), X, NAMES, cv=3, train_sizes=[0.3, 1.0], shuffle=True, random_state=0,
            exploit_incremental_learning=increments, error_score="raise",
        )  # fmt: skip
        assert scores.shape == (2, 3)


def test_a_table_with_columns_of_text() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is missing: make test-integrations installs it")
    frame = pandas.DataFrame(X, columns=["a", "b", "c", "d"]).assign(colour=np.where(LABELS == 0, "red", "blue"))
    columns = make_column_transformer((OneHotEncoder(sparse_output=False), ["colour"]), remainder="passthrough")
    pipeline = make_pipeline(columns.set_output(transform="pandas"), DistributedClassifier(**QUICK)).fit(frame, NAMES)
    assert pipeline.score(frame, NAMES) > 0.85
    assert pipeline[-1].feature_names_in_[0] == "onehotencoder__colour_blue"


def test_several_answers_in_a_sparse_matrix_and_with_early_stopping() -> None:
    x, y = make_multilabel_classification(120, n_classes=3, random_state=0)
    dense, sparse = (DistributedClassifier(**QUICK).fit(x, answers) for answers in (y, csr_matrix(y)))
    np.testing.assert_array_equal(sparse.predict_proba(x), dense.predict_proba(x))
    stopped = DistributedClassifier(**QUICK, early_stopping=True, validation_fraction=0.25).fit(x, y)
    assert stopped.validation_scores_ is not None
    assert len(stopped.validation_scores_) == stopped.n_iter_
    right = np.array(stopped.validation_scores_) * 90  # 30 examples with 3 answers
    np.testing.assert_allclose(right, right.round(), atol=1e-9)


def test_a_fitted_pipeline_in_a_file_of_joblibs(tmp_path: Path) -> None:
    pipeline = make_pipeline(StandardScaler(), DistributedClassifier(**QUICK)).fit(X, NAMES)
    joblib.dump((pipeline, X), tmp_path / "model.joblib")
    code = "import joblib, sys; model, x = joblib.load(sys.argv[1]); print(model.predict_proba(x).tobytes().hex())"
    command = [sys.executable, "-c", code, str(tmp_path / "model.joblib")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(distsgd.__file__).parents[1])
    assert bytes.fromhex(done.stdout.strip()) == pipeline.predict_proba(X).tobytes()
    again = copy.deepcopy(pipeline)
    np.testing.assert_array_equal(again.predict(X), pipeline.predict(X))
