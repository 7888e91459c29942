"""Examples per second of whole training steps, beside PyTorch, DDP over gloo, JAX and scikit-learn.

A step is: gather a shuffled minibatch from examples in memory, forward, backward, reduction, update. All have the
same network, batch, optimizer, float32. Each measurement is a process (or job) of its own that drops its warm-up.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.common import Contender, Report, interleave, job, options, ratios, speeds
from benchmarks.processes import child, measure, require, under_torchrun
from benchmarks.workloads import WORKLOADS, describe, workload

ONE, FOUR = "distsgd, 1 rank, M=1", "distsgd, 1 rank, M=4"
TWO_RANKS, TWO_MICROBATCHES = "distsgd, 2 ranks, M=4", "distsgd, 2 ranks, M=2"
THREADS, THREADS_TWO = "distsgd, 1 process on 2 cores, M=4", "distsgd, 1 process on 2 cores, M=2"
TORCH, TORCH_TWO, DDP = "PyTorch eager, 1 thread", "PyTorch eager, 2 threads", "PyTorch DDP gloo, 2 processes"
TORCH_LAST, DDP_LAST = f"{TORCH}, channels last", f"{DDP}, channels last"
JAX, SKLEARN, NUMPY = "JAX jit, 1 core", "scikit-learn, 1 core", "NumPy, written out, 1 core"

OURS: Mapping[str, tuple[int | None, dict[str, Any]]] = {
    ONE: (None, {"microbatches": 1, "cores": 1}),
    FOUR: (None, {"microbatches": 4, "cores": 1}),
    TWO_RANKS: (2, {"microbatches": 4, "threads": 1}),
    TWO_MICROBATCHES: (2, {"microbatches": 2, "threads": 1}),
    THREADS: (None, {"microbatches": 4, "cores": 2}),
    THREADS_TWO: (None, {"microbatches": 2, "cores": 2}),
}
"""Ranks (None: without mpirun) and settings; `cores` binds the process, `threads` are distsgd's choice if not given."""

PAIRS = (
    (ONE, TORCH), (FOUR, TORCH), (ONE, JAX), (ONE, SKLEARN), (ONE, NUMPY), (TWO_RANKS, DDP), (TWO_MICROBATCHES, DDP),
    (THREADS, DDP),
    (ONE, TORCH_LAST), (FOUR, TORCH_LAST), (TWO_RANKS, DDP_LAST), (TWO_MICROBATCHES, DDP_LAST),
    (TWO_RANKS, TORCH_TWO), (FOUR, ONE), (TWO_RANKS, FOUR), (TWO_MICROBATCHES, ONE), (THREADS, TWO_RANKS),
    (THREADS, ONE), (THREADS_TWO, ONE),
)  # fmt: skip


def ours(label: str, shared: Mapping[str, Any]) -> Contender:
    """distsgd in one of its arrangements."""
    ranks, own = OURS[label]
    return job(label, "distsgd_steps", {**shared, **own}, ranks)


def contenders(name: str, chosen: argparse.Namespace) -> list[Contender]:
    """All that train this workload."""
    shared = {"workload": name, "seconds": chosen.seconds, "examples": chosen.examples}

    def peer(interpreter: str, module: str, script: str, processes: int = 1, **own: Any) -> Callable[[int], Any]:
        def run(_: int) -> dict[str, Any]:
            require(interpreter, module)
            command = child(script, {**shared, **own}, interpreter)
            return measure(under_torchrun(processes, command) if processes > 1 else command)

        return run

    torch, jax = chosen.torch_python, chosen.jax_python
    found = [
        *(ours(label, shared) for label in OURS),
        Contender(TORCH, peer(torch, "torch", "torch_steps", cores=1, threads=1)),
        Contender(TORCH_TWO, peer(torch, "torch", "torch_steps", cores=2, threads=2)),
        Contender(DDP, peer(torch, "torch", "torch_steps", processes=2, threads=1)),
    ]
    if workload(name).image:  # PyTorch's convolutions are faster on images whose channels lie side by side
        last = {"channels_last": True}
        return [
            *found,
            Contender(TORCH_LAST, peer(torch, "torch", "torch_steps", cores=1, threads=1, **last)),
            Contender(DDP_LAST, peer(torch, "torch", "torch_steps", processes=2, threads=1, **last)),
        ]
    if workload(name).optimizer == "momentum":
        found.append(job(NUMPY, "numpy_steps", {**shared, "cores": 1}))
    return [
        *found,
        Contender(JAX, peer(jax, "jax", "jax_steps", cores=1)),
        Contender(SKLEARN, peer(torch, "sklearn", "sklearn_steps", cores=1)),
    ]


def main() -> None:
    chosen = options(__doc__)
    report = Report("peers", chosen)
    for name in chosen.workload or WORKLOADS:
        found = interleave(contenders(name, chosen), chosen.rounds)
        report.add(describe(workload(name)), found, speeds(found), ratios(found, PAIRS))
    report.write()


if __name__ == "__main__":
    main()
