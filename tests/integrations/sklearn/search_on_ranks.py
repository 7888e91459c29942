"""A search in two processes or threads, as the argument says: run alone or by mpirun, each rank prints its scores."""

from __future__ import annotations

import sys
import warnings

import joblib
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from distsgd.integrations.sklearn import DistributedClassifier


def main() -> None:
    warnings.simplefilter("ignore")  # that it hasn't converged
    x, y = load_iris(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), DistributedClassifier(hidden=(5,), max_iter=5))
    grid = {"distributedclassifier__learning_rate": [0.001, 0.1]}
    with joblib.parallel_config(sys.argv[1]):
        search = GridSearchCV(pipeline, grid, n_jobs=2, cv=2, error_score="raise").fit(x, y)
    scores = [*search.cv_results_["mean_test_score"], *cross_val_score(pipeline, x, y, cv=2, error_score="raise")]
    line = " ".join(map(str, [*scores, search.best_score_, search.score(x, y)]))
    print(line + "\n", end="", flush=True)  # in one write: ranks print at the same time


main()
