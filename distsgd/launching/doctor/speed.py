"""How long a reduction takes: distsgd's own, and MPI_Allreduce of as many numbers for comparison."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from distsgd.parallel import Communicator
from distsgd.parallel.reduction import UPDATE_CHUNK, GradientReduction, Partition, Plan, update_chunks
from distsgd.parallel.shared_reduction import SharedReduction
from distsgd.parallel.tree import scratch_levels
from distsgd.run.build_trainer import make_reduction

SMALL, LARGE = 1_000, 1_000_000
"""Numbers in the timed reductions: one is limited by latency, the other by bandwidth."""
_SECONDS = 0.2
_MOST, _LEAST = 200, 3


@dataclass(frozen=True)
class Speed:
    """Seconds of a reduction of SMALL and of LARGE float32 numbers."""

    small: float
    large: float

    @property
    def bandwidth(self) -> float:
        """Bytes per second of a large reduction."""
        return 4 * LARGE / self.large

    def __str__(self) -> str:
        return (
            f"{4e-3 * SMALL:.0f} kB in {self.small * 1e6:,.0f} µs, "
            f"{4e-6 * LARGE:.0f} MB in {self.large * 1e6:,.0f} µs: {self.bandwidth / 1e9:.2g} GB/s"
        )


def reduction_speed(communicator: Communicator) -> tuple[Speed, bool]:
    """(distsgd's own reduction, whether it goes through shared memory), with a microbatch on each rank. Collective."""
    times, shared = [], False
    for elements in (SMALL, LARGE):
        plan = Plan(Partition(communicator.size, communicator.size, elements), 1, np.dtype(np.float32), 0, 2)
        reduction, _ = make_reduction(communicator, plan, "auto")
        shared = isinstance(reduction, SharedReduction)
        times.append(_measure(communicator, _reduction(reduction)))
        reduction.close()
    return Speed(*times), shared


def allreduce_speed(communicator: Communicator) -> Speed:
    """MPI_Allreduce, in place, of all processes that the launcher started. Collective."""
    from mpi4py import MPI

    def reduction(elements: int) -> Callable[[], object]:
        numbers = np.zeros(elements, np.float32)
        return lambda: MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, numbers)

    return Speed(*(_measure(communicator, reduction(elements)) for elements in (SMALL, LARGE)))


def _reduction(reduction: GradientReduction) -> Callable[[], None]:
    """The reduction of a step without its update: all ranks' sums in, the whole total out."""
    microbatches = reduction.partition.microbatches
    bounds = tuple(range(microbatches + 1))
    scratch = list(np.empty((scratch_levels(microbatches), UPDATE_CHUNK), np.float32))

    def reduce() -> None:
        reduction.reduce_scatter(bounds)
        for owned in reduction.partition.spans_of(reduction.communicator.rank):
            for span in update_chunks(owned):
                reduction.params[span] = reduction.total(bounds, span, scratch).compute()
                reduction.has_updated(span)
        reduction.all_gather()

    return reduce


def _measure(communicator: Communicator, reduce: Callable[[], object]) -> float:
    """Seconds of one call, the median of rank 0's. Collective."""
    times: list[float] = []
    repeats = _LEAST
    while len(times) < repeats:
        began = time.perf_counter()
        reduce()
        times.append(time.perf_counter() - began)
        if len(times) == _LEAST:
            repeats = communicator.broadcast_object(max(_LEAST, min(_MOST, int(_SECONDS * _LEAST / sum(times)))))
    return communicator.broadcast_object(sorted(times)[len(times) // 2])
