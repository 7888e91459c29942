"""Examples per second of PyTorch modules that distsgd trains, beside DDP over gloo and a plain loop, on two cores.

A step is: gather a shuffled minibatch from examples in memory, forward, backward, reduction, update. All compute the
same network in PyTorch, one thread a process, with the same batch and optimizer, in float32. Rounds are interleaved;
a ratio is the median of the rounds' ratios. `python -m benchmarks.torch_models --seconds 1` takes about five minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from benchmarks.common import Contender, Report, interleave, job, options, ratios, speeds
from benchmarks.processes import child, measure, require, under_torchrun
from benchmarks.workloads import describe, workload

TWO, FOUR, ONE = "TorchModel, 2 ranks, M=2", "TorchModel, 2 ranks, M=4", "TorchModel, 1 rank, M=1"
LAST = f"{ONE}, channels last"
DDP, PLAIN, PLAIN_LAST = "PyTorch DDP gloo, 2 processes", "PyTorch, 1 process", "PyTorch, 1 process, channels last"

GOALS: Mapping[str, tuple[tuple[str, str, float], ...]] = {
    "mlp512": ((TWO, DDP, 1.6), (FOUR, DDP, 1.4), (ONE, PLAIN, 0.95)),
    "conv": ((TWO, DDP, 1.3), (ONE, PLAIN, 0.95), (LAST, PLAIN_LAST, 0.95)),
}
"""By workload, ratios and what each should be at least."""


def contenders(name: str, chosen: argparse.Namespace) -> list[Contender]:
    """All that train this workload, each beside the one that it is compared with."""
    shared = {"workload": name, "seconds": chosen.seconds, "examples": chosen.examples}

    def ours(label: str, ranks: int | None, microbatches: int, **own: Any) -> Contender:
        return job(label, "torch_model_steps", {**shared, "microbatches": microbatches, **own}, ranks)

    def plain(label: str, processes: int, **own: Any) -> Contender:
        command = child("torch_steps", {**shared, "threads": 1, **own})
        return Contender(label, lambda _: measure(under_torchrun(processes, command) if processes > 1 else command))

    found = [ours(TWO, 2, 2), plain(DDP, 2), ours(FOUR, 2, 4), ours(ONE, None, 1, cores=1), plain(PLAIN, 1, cores=1)]
    if workload(name).image:
        last = {"channels_last": True, "cores": 1}
        found = [*found, ours(LAST, None, 1, **last), plain(PLAIN_LAST, 1, **last)]
    wanted = {label for over, under, _ in GOALS[name] for label in (over, under)}
    return [contender for contender in found if contender.name in wanted]


def main() -> None:
    chosen = options(__doc__, workloads=GOALS)
    require(chosen.torch_python, "torch")
    report = Report("torch_models", chosen)
    for name in chosen.workload or GOALS:
        found = interleave(contenders(name, chosen), chosen.rounds)
        goals = "\n".join(f"{over} over {under}: at least {least}" for over, under, least in GOALS[name])
        pairs = [(over, under) for over, under, _ in GOALS[name]]
        report.add(describe(workload(name)), found, speeds(found), ratios(found, pairs), goals)
    report.write()


if __name__ == "__main__":
    main()
