"""Times one reduction: distsgd's reductions, and MPI_Allreduce of the library they run on, in turn.

Afterwards every rank can see the whole sum. Before each, every rank writes its gradients anew, as backward does, so
that no reduction finds them where the one before has left them; that isn't timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.children.protocol import report_result, settings
from distsgd.core import runtime

wanted = settings()
runtime.prepare_alone()

import numpy as np  # noqa: E402

from distsgd.parallel import start  # noqa: E402
from distsgd.parallel.reduction import UPDATE_CHUNK, GradientReduction, Partition, Plan, update_chunks  # noqa: E402
from distsgd.parallel.tree import scratch_levels  # noqa: E402
from distsgd.run.build_trainer import make_reduction  # noqa: E402


class Reduction:
    """gather, the tree, and all_gather, with a plain store where a step has its update."""

    def __init__(self, reduction: GradientReduction) -> None:
        self.reduction = reduction
        microbatches = reduction.partition.microbatches
        self.bounds = tuple(range(microbatches + 1))
        scratch = list(np.empty((scratch_levels(microbatches), UPDATE_CHUNK), np.float32))
        owned = reduction.partition.spans_of(reduction.communicator.rank)
        self.spans = [chunk for span in owned for chunk in update_chunks(span)]
        # The sum is made where it is to be seen; a step makes it in scratch memory and puts updated parameters there.
        self.sums = [reduction.total(self.bounds, span, [reduction.params[span], *scratch[1:]]) for span in self.spans]
        self.result = reduction.params

    def fill(self, value: float) -> None:
        for row in self.reduction.rows.values():
            row.fill(value)

    def run(self) -> None:
        reduction = self.reduction
        reduction.reduce_scatter(self.bounds)
        for span, total in zip(self.spans, self.sums, strict=True):
            total.compute()
            reduction.has_updated(span)
        reduction.all_gather()


class Allreduce:
    """MPI's own sum, from one private buffer to another."""

    def __init__(self, elements: int) -> None:
        from mpi4py import MPI

        self.reduce, self.operation = MPI.COMM_WORLD.Allreduce, MPI.SUM
        self.row, self.result = np.zeros(elements, np.float32), np.empty(elements, np.float32)

    def fill(self, value: float) -> None:
        self.row.fill(value)

    def run(self) -> None:
        self.reduce(self.row, self.result, self.operation)


def main() -> None:
    communicator = start()
    elements = wanted["elements"]

    def reduction(kind: str) -> Reduction:
        # As many microbatches as ranks: each brings one gradient, as it does to Allreduce.
        plan = Plan(Partition(communicator.size, communicator.size, elements), 1, np.dtype(np.float32), 0, 2)
        return Reduction(make_reduction(communicator, plan, kind)[0])

    reductions: dict[str, Any] = {
        "shared": reduction("shared"),
        "mpi": reduction("mpi"),
        "allreduce": Allreduce(elements),
    }

    def once(reduction: Any) -> float:
        reduction.fill(1.0 + communicator.rank)
        communicator.barrier()
        began = time.perf_counter()
        reduction.run()
        return time.perf_counter() - began

    for reduction in reductions.values():
        once(reduction)
        assert np.all(reduction.result == sum(range(1, communicator.size + 1))), "the sum is wrong"
        communicator.barrier()  # no one writes while another still looks
    times = measure(reductions, once, communicator.broadcast_object)
    slowest = np.max(communicator.allgather_object(times), axis=0)  # ready when all are
    medians = np.median(slowest, axis=1)
    if communicator.is_root:
        report_result({f"{name}_seconds": float(value) for name, value in zip(reductions, medians, strict=True)})


def measure(reductions: dict[str, Any], once: Callable[[Any], float], agree: Callable[[int], int]) -> Any:
    """(reductions, repetitions) seconds on this rank, one of each in turn."""
    each = sum(min(once(reduction) for _ in range(3)) for reduction in reductions.values())
    count = agree(max(5, min(10_000, int(wanted["seconds"] / each))))
    times = np.empty((len(reductions), count))
    for repetition in range(count):
        for index, reduction in enumerate(reductions.values()):
            times[index, repetition] = once(reduction)
    return times


main()
