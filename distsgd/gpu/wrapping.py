"""The base class of the communicators of ranks on GPUs: they wrap another communicator, and send arrays themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from distsgd.core.device import Array, Device, to_host
from distsgd.parallel.communicator import Communicator

T = TypeVar("T")


class DeviceCommunicator(Communicator):
    """Delegates to `inside` everything except arrays on a device.

    A subclass defines broadcast, alltoall and allgather_slices, each for arrays in host memory, too.
    """

    def __init__(self, inside: Communicator, device: Device, transport: str) -> None:
        self.inside, self.device, self.transport = inside, device, transport
        self.rank, self.size, self.hosts = inside.rank, inside.size, inside.hosts
        self.enter, self.exit = inside.enter, inside.exit  # type: ignore[method-assign]
        self.set_phase, self.progressed = inside.set_phase, inside.progressed  # type: ignore[method-assign]

    def broadcast_object(self, value: T) -> T:
        return self.inside.broadcast_object(value)

    def allgather_object(self, value: T) -> list[T]:
        return self.inside.allgather_object(value)

    def gather_object(self, value: T) -> list[T] | None:
        return self.inside.gather_object(value)

    def gather_slices(self, own: Array, counts: Sequence[int], whole: Array | None) -> None:
        self.inside.gather_slices(to_host(own), counts, whole)

    def barrier(self) -> None:
        self.inside.barrier()

    def node(self) -> Communicator:
        return self.inside.node()

    def abort(self, status: int) -> None:
        self.inside.abort(status)

    def watch(self, limit: float, stacks: bool = False) -> None:
        self.inside.watch(limit, stacks)
