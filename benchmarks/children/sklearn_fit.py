"""Fits scikit-learn's own network or distsgd's to a toy data set, and reports its score on what was held out."""

from __future__ import annotations

import time
import warnings
from typing import Any

from benchmarks.children.protocol import report_result, settings

wanted = settings()

from sklearn import datasets  # noqa: E402
from sklearn.compose import TransformedTargetRegressor  # noqa: E402
from sklearn.model_selection import train_test_split  # noqa: E402
from sklearn.neural_network import MLPClassifier, MLPRegressor  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402

import distsgd  # noqa: E402
from distsgd.integrations.sklearn import DistributedClassifier, DistributedRegressor  # noqa: E402


def main() -> None:
    x, y = getattr(datasets, f"load_{wanted['data']}")(return_X_y=True)
    classes, seed, epochs = wanted["data"] != "diabetes", wanted["seed"], wanted["epochs"]
    train_x, test_x, train_y, test_y = train_test_split(
        x, y, test_size=0.3, random_state=seed, stratify=y if classes else None
    )
    own: dict[str, Any] = {"microbatches": wanted["microbatches"]} if wanted["microbatches"] else {}
    kinds = (DistributedClassifier, DistributedRegressor) if own else (MLPClassifier, MLPRegressor)
    network = kinds[not classes](random_state=seed, max_iter=epochs, **own)
    if not classes:
        network = TransformedTargetRegressor(network, transformer=StandardScaler())
    pipeline = make_pipeline(StandardScaler(), network)
    warnings.simplefilter("ignore")  # that it hasn't converged
    with threadpool_limits(wanted["threads"]):
        began = time.perf_counter()
        pipeline.fit(train_x, train_y)
        seconds = time.perf_counter() - began
        score = pipeline.score(test_x, test_y)
    fitted = pipeline[-1] if classes else pipeline[-1].regressor_
    if distsgd.is_root():
        report_result({"score": score, "fit_seconds": seconds, "epochs": fitted.n_iter_})


main()
