"""A search in two processes: run alone or by mpirun, each rank prints its scores."""

from __future__ import annotations

import warnings

from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV

from distsgd.integrations.sklearn import DistributedClassifier


def main() -> None:
    warnings.simplefilter("ignore")  # that it hasn't converged
    x, y = load_iris(return_X_y=True)
    grid = {"learning_rate": [0.001, 0.1]}
    search = GridSearchCV(DistributedClassifier(hidden=(5,), max_iter=5), grid, n_jobs=2, cv=2).fit(x, y)
    print(*search.cv_results_["mean_test_score"], search.best_score_, search.score(x, y), flush=True)


main()
