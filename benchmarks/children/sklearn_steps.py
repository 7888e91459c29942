"""Times scikit-learn's MLPClassifier by the difference between a short fit and a longer one.

Its fit checks and encodes the data first, which is no part of a step, and doesn't report when it has finished that.
"""

from __future__ import annotations

import time
import warnings

from benchmarks.children.protocol import report_result, settings
from benchmarks.workloads import WORKLOADS, synthetic, workload

wanted = settings()

import sklearn  # noqa: E402
from sklearn.neural_network import MLPClassifier  # noqa: E402

BATCHES = 10
"""Minibatches of an epoch: few, for a fit can only be as short as one epoch."""


def main() -> None:
    name = wanted["workload"]
    work = workload(name, BATCHES * WORKLOADS[name].batch)
    x, y = synthetic(work)

    def fit(epochs: int) -> float:
        model = MLPClassifier(
            hidden_layer_sizes=work.sizes[1:-1],
            activation={"sigmoid": "logistic"}.get(work.activation, work.activation),
            solver="adam" if work.optimizer == "adam" else "sgd",
            learning_rate_init=work.learning_rate,
            nesterovs_momentum=False,
            alpha=0.0,
            batch_size=work.batch,
            max_iter=epochs,
            n_iter_no_change=epochs + 1,
            random_state=0,
        )
        began = time.perf_counter()
        model.fit(x, y)
        return time.perf_counter() - began

    warnings.simplefilter("ignore")  # that it hasn't converged
    fit(1)
    short = fit(1)
    epochs = max(1, min(1000, int(wanted["seconds"] / short)))
    took = fit(1 + epochs) - short
    steps = epochs * BATCHES
    rate = steps * work.batch / took
    metadata = {"sklearn": sklearn.__version__}
    report_result({"examples_per_second": rate, "steps": steps, "seconds": took, "metadata": metadata})


main()
