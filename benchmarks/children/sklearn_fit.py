"""Fits scikit-learn's own network and distsgd's to a toy data set, one after the other, and reports their scores on
what was held out."""

from __future__ import annotations

import time
import warnings
from typing import Any

from benchmarks.children.protocol import report_result, settings

wanted = settings()

import joblib  # noqa: E402
import numpy  # noqa: E402
import sklearn  # noqa: E402
from sklearn import datasets  # noqa: E402
from sklearn.compose import TransformedTargetRegressor  # noqa: E402
from sklearn.model_selection import train_test_split  # noqa: E402
from sklearn.neural_network import MLPClassifier, MLPRegressor  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402

import distsgd  # noqa: E402
from distsgd.integrations.sklearn import DistributedClassifier, DistributedRegressor  # noqa: E402


def fitted(network: Any, sets: list[Any], classes: bool) -> dict[str, float]:
    """The score, the seconds of the fit, and its epochs."""
    train_x, test_x, train_y, test_y = sets
    if not classes:
        network = TransformedTargetRegressor(network, transformer=StandardScaler())
    pipeline = make_pipeline(StandardScaler(), network)
    began = time.perf_counter()
    pipeline.fit(train_x, train_y)
    seconds = time.perf_counter() - began
    epochs = (pipeline[-1] if classes else pipeline[-1].regressor_).n_iter_
    return {"score": pipeline.score(test_x, test_y), "fit_seconds": seconds, "epochs": epochs}


def main() -> None:
    x, y = getattr(datasets, f"load_{wanted['data']}")(return_X_y=True)
    classes, seed = wanted["data"] != "diabetes", wanted["seed"]
    sets = train_test_split(x, y, test_size=0.3, random_state=seed, stratify=y if classes else None)
    shared = {"random_state": seed, "max_iter": wanted["epochs"]}
    theirs, ours = (MLPClassifier, DistributedClassifier) if classes else (MLPRegressor, DistributedRegressor)
    warnings.simplefilter("ignore")  # that it hasn't converged
    fitted(ours(**shared | {"max_iter": 1}), sets, classes)  # imports what a first fit imports
    found = {}
    with threadpool_limits(1):
        for name, microbatches in wanted["networks"].items():
            network = theirs(**shared) if microbatches is None else ours(**shared, microbatches=microbatches)
            found[name] = fitted(network, sets, classes)
    versions = {module.__name__: module.__version__ for module in (sklearn, numpy, joblib, distsgd)}
    if distsgd.is_root():
        report_result({"networks": found, "metadata": versions})


main()
