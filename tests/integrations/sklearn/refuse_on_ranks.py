"""What the estimators refuse under mpirun: each rank prints what it has caught, and the last error nothing catches."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.preprocessing import StandardScaler

import distsgd
from distsgd.integrations.sklearn import DistributedClassifier


def kind_of_refusal(call: Callable[[], Any]) -> str:
    try:
        call()
    except ValueError as error:
        return f"ValueError: {error}"
    except TypeError as error:
        return f"TypeError: {error}"
    return "accepted"


def main() -> None:
    x, y = load_iris(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    sparse = __import__("scipy.sparse").sparse.csr_matrix(x)
    missing = np.where(np.arange(150)[:, None] == 7, np.nan, x)
    small: dict[str, Any] = {"hidden": (5,), "max_iter": 2}
    calls: dict[str, Callable[[], Any]] = {
        "shapes": lambda: DistributedClassifier(**small).fit(x, y[:-1]),
        "NaN": lambda: DistributedClassifier(**small).fit(missing, y),
        "NaN on rank 1": lambda: DistributedClassifier(**small).fit(missing if distsgd.rank() == 1 else x, y),
        "sparse": lambda: DistributedClassifier(**small).fit(sparse, y),
        "own check": lambda: DistributedClassifier(max_iter="many").fit(x, y),
        "check of fit": lambda: DistributedClassifier(optimizer="adm").fit(x, y),
        "option of fit": lambda: DistributedClassifier(fit_options={"epochz": 3}).fit(x, y),
        "one class": lambda: DistributedClassifier(**small).fit(x, y * 0),
        "first call": lambda: DistributedClassifier(**small).partial_fit(x, y, classes=[0, 1]),
    }
    found = {name: kind_of_refusal(call) for name, call in calls.items()}

    from mpi4py import MPI  # each rank is a group of its own

    alone = DistributedClassifier(**small, communicator=MPI.COMM_WORLD.Split(distsgd.rank()))
    assert clone(alone).communicator is alone.communicator
    both = DistributedClassifier(**small).fit(x, y[:, None])  # warns of the shape, and that it hasn't converged
    found["accuracy"] = str(both.score(x, y))
    print(json.dumps([distsgd.rank(), found]) + "\n", end="", flush=True)  # in one write: both ranks print
    DistributedClassifier(**small).fit(missing, y)


main()
