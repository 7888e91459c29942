"""Seconds from start to prompt until MNIST's test images are known to 98 %, beside DDP on as many processes.

Both read the same files, train on all 60,000 images in float32 and score the 10,000 test images after each epoch;
both stop at the first score that is good enough. Round r uses seed r: the number of epochs is a matter of luck, so
the seconds of one epoch stand beside the whole.
"""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any

from benchmarks.children.mnist import folder
from benchmarks.common import Contender, Report, interleave, options, ratio, table, with_skipped
from benchmarks.processes import Unavailable, child, measure, require, under_mpirun, under_torchrun
from benchmarks.workloads import describe, workload

WORKLOAD, RANKS = "mlp512-adam", 2
OURS, OURS_TWO, DDP = "distsgd, 2 ranks, M=4", "distsgd, 2 ranks, M=2", "PyTorch DDP gloo, 2 processes"
LIMIT = 300.0


def contenders(chosen: argparse.Namespace) -> list[Contender]:
    """All that are raced."""
    where, reason = folder(chosen.data_dir)
    target, epochs = (0.5, 1) if chosen.quick else (0.98, 30)

    def settings(seed: int, **own: Any) -> dict[str, Any]:
        if where is None:
            raise Unavailable(reason)
        shared = {"workload": WORKLOAD, "folder": str(where.resolve()), "target": target, "epochs": epochs}
        return {**shared, "seed": seed, **own}

    def finished(command: list[str]) -> dict[str, Any]:
        reported = measure(command, LIMIT)
        if reported["accuracy"] < target:
            raise Unavailable(f"reached {reported['accuracy']} in {reported['epochs']} epochs")
        return reported

    def ours(microbatches: int) -> Any:
        return lambda seed: finished(
            under_mpirun(RANKS, child("mnist_distsgd", settings(seed, microbatches=microbatches)))
        )

    def ddp(seed: int) -> dict[str, Any]:
        command = child("mnist_torch", settings(seed), chosen.torch_python)
        require(chosen.torch_python, "torch")
        return finished(under_torchrun(RANKS, command))

    return [Contender(OURS, ours(4)), Contender(OURS_TWO, ours(2)), Contender(DDP, ddp)]


def main() -> None:
    chosen = options(__doc__)
    report = Report("time_to_accuracy", chosen)
    found = interleave(contenders(chosen), chosen.rounds)
    rows = []
    for name, series in found.items():
        if series.skipped is not None:
            continue
        gain = ratio(found[DDP], series, "process_seconds")
        each = median(sample["process_seconds"] / sample["epochs"] for sample in series.samples)
        epochs = sorted(int(value) for value in series.values("epochs"))
        rows.append((name, f"{series.median('process_seconds'):.2f}", f"{each:.2f}", " ".join(map(str, epochs)),
                     "" if gain is None else f"{gain:.2f}"))  # fmt: skip
    header = ("", "seconds", "seconds an epoch", "epochs", "times as fast as DDP")
    report.add(f"MNIST, {describe(workload(WORKLOAD))}", found, with_skipped(table(header, rows), found))
    report.write()


if __name__ == "__main__":
    main()
