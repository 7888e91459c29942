"""Trains on MNIST with distsgd.fit until the test images are known well enough."""

from __future__ import annotations

from benchmarks.children.mnist import load
from benchmarks.children.protocol import report_result, settings
from benchmarks.workloads import workload
from distsgd.core import runtime

wanted = settings()
runtime.prepare_alone()

import distsgd  # noqa: E402


def main() -> None:
    work = workload(wanted["workload"])
    data = load(wanted["folder"])
    result = distsgd.fit(
        "mlp",
        (data["x_train"], data["y_train"]),
        validation=(data["x_test"], data["y_test"]),  # validated after each epoch
        **work.fit_options(),
        microbatches=wanted["microbatches"],
        threads=1,
        device=wanted.get("device", "cpu"),
        seed=wanted["seed"],
        target=f"validation_accuracy={wanted['target']}",
        patience=0,
        epochs=wanted["epochs"],
    )
    if distsgd.is_root():
        last = result.history[-1]
        report_result({"epochs": last["epoch"], "accuracy": last["validation_accuracy"]})


main()
