"""Times what another rank in the job costs a step besides its bytes, on 2 ranks: the library, and distsgd around it."""

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
from distsgd.parallel.message_reduction import MessageReduction  # noqa: E402
from distsgd.parallel.reduction import Partition, Plan  # noqa: E402
from distsgd.parallel.serial import SerialCommunicator, SerialTransport  # noqa: E402
from distsgd.parallel.transport import Parts  # noqa: E402

FEW, MANY = 2, 512
BYTES = 128
"""About what a rank sends to another that owns nothing: flags, loss sum and count."""


class SilentTransport(SerialTransport):
    """To and from ranks that never say anything."""

    def alltoall(self, send: Any, sent: Parts, receive: Any, received: Parts) -> None:
        pass


class Crowd(SerialCommunicator):
    """Rank 0 of many others that never say anything."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.hosts, self.transport = size, self.hosts * size, SilentTransport()

    def allgather_object(self, value: Any) -> list[Any]:
        """The ranks where that is asked: each is alone. Else all agree."""
        return [value] * self.size if isinstance(value, bool) else list(range(self.size))


def seconds_of(call: Callable[[], object], repetitions: int) -> float:
    """The least of several means."""
    means = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(repetitions):
            call()
        means.append((time.perf_counter() - began) / repetitions)
    return min(means)


def in_library(other: int, count: int, repetitions: int) -> float:
    """Seconds of `count` messages each way at once."""
    from mpi4py import MPI

    out, into = np.zeros((count, BYTES), np.uint8), np.zeros((count, BYTES), np.uint8)
    receives = [MPI.COMM_WORLD.Recv_init(row, other, tag) for tag, row in enumerate(into)]
    sends = [MPI.COMM_WORLD.Send_init(row, other, tag) for tag, row in enumerate(out)]
    requests = receives + sends

    def reduction() -> None:
        MPI.Prequest.Startall(requests)
        MPI.Request.Waitall(requests)

    reduction()
    seconds = seconds_of(reduction, repetitions)
    for request in requests:
        request.Free()
    return seconds


def in_bookkeeping(ranks: int, repetitions: int) -> float:
    """Seconds of a gather whose messages go nowhere. As many elements and rows, whatever the ranks."""
    plan = Plan(Partition(ranks, ranks, wanted["elements"]), 1, np.dtype(np.float32), 0, 2)
    reduction = MessageReduction(Crowd(ranks), plan, SerialCommunicator())
    bounds = tuple(range(ranks + 1))
    reduction.reduce_scatter(bounds)
    return seconds_of(lambda: reduction.reduce_scatter(bounds), repetitions)


def main() -> None:
    communicator = start()
    other, repetitions = 1 - communicator.rank, max(3, int(wanted["seconds"] * 30))
    message = (in_library(other, MANY, repetitions) - in_library(other, FEW, repetitions)) / (MANY - FEW)
    peer = (in_bookkeeping(MANY, repetitions) - in_bookkeeping(FEW, repetitions)) / (MANY - FEW)
    slowest = np.max(communicator.allgather_object((message, peer)), axis=0)
    if communicator.is_root:
        report_result({"message": max(1e-9, float(slowest[0])), "peer": max(1e-9, float(slowest[1]))})


main()
