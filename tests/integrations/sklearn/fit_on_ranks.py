"""What the estimators compute, as hashes: run alone or by mpirun, it prints one JSON object on rank 0."""

from __future__ import annotations

import hashlib
import json
import warnings
from typing import Any

import numpy as np
from sklearn.datasets import load_diabetes, load_iris
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import distsgd
from distsgd.integrations.sklearn import DistributedClassifier, DistributedRegressor

warnings.simplefilter("ignore")  # that it hasn't converged


def digest(*arrays: Any) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def main() -> None:
    x, labels = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[labels]
    values_x, values = load_diabetes(return_X_y=True)
    small: dict[str, Any] = {"hidden": (10,), "max_iter": 6, "batch_size": 32}
    found = {}

    classifier = DistributedClassifier(**small, random_state=1).fit(x, names)
    found["classifier"] = digest(*classifier.model_.params.values(), classifier.predict_proba(x))
    found["loss curve"] = digest(classifier.loss_curve_)
    plateau = DistributedClassifier(hidden=(10,), tol=0.05, n_iter_no_change=2, batch_size=50).fit(x, names)
    found["converged"] = [plateau.n_iter_, digest(*plateau.model_.params.values())]
    stopped = DistributedClassifier(**small, early_stopping=True, class_weight="balanced").fit(x, names)
    found["early stopping"] = digest(*stopped.model_.params.values(), stopped.validation_scores_)
    answers = np.stack([labels == 0, x[:, 0] > 5.8], axis=1).astype(int)
    several = DistributedClassifier("dense 8, batch-norm, relu, dropout 0.2, dense", max_iter=4).fit(x, answers)
    found["several answers"] = digest(several.predict_proba(x))
    weights = np.random.default_rng(0).random(len(values))
    regressor = DistributedRegressor(**small, random_state=np.random.RandomState(3))
    regressor.fit(values_x, values, sample_weight=weights).partial_fit(values_x[:100], values[:100])
    found["regressor"] = digest(*regressor.model_.params.values(), regressor.predict(values_x))
    pipeline = make_pipeline(StandardScaler(), DistributedClassifier(**small))
    search = GridSearchCV(pipeline, {"distributedclassifier__learning_rate": [0.001, 0.1]}, cv=2).fit(x, names)
    found["search"] = digest(search.cv_results_["mean_test_score"])
    found["scores"] = digest(cross_val_score(DistributedRegressor(**small), values_x, values, cv=2))
    curves = [classifier.loss_curve_, plateau.loss_curve_, stopped.validation_scores_]
    assert [len(curve) for curve in curves] == [6, plateau.n_iter_, 6], "on every rank"
    if distsgd.is_root():
        print(json.dumps(found))


main()
