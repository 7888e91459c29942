"""Messages of ranks on GPUs by way of pinned memory of the host, which every MPI library can send.

A communicator that knows how to send from a GPU would stand in this one's place: nothing else changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from distsgd.communication.base import Communicator, Parts
from distsgd.device import Array, Device, is_on_host, to_host

T = TypeVar("T")
_BYTES = np.dtype(np.uint8)


class StagedCommunicator(Communicator):
    """Passes all on, but for arrays on a device, which it copies: no library sees any memory but the host's.

    A copy to the host waits for what computes the array, so MPI never reads what isn't there yet. A copy to the device
    goes on while the host does: its memory is written again only behind the next wait.
    """

    def __init__(self, inside: Communicator, device: Device) -> None:
        self.inside, self.device = inside, device
        self.rank, self.size, self.hosts = inside.rank, inside.size, inside.hosts
        self._rooms: dict[str, Array] = {}

    def broadcast_object(self, value: T, root: int = 0) -> T:
        return self.inside.broadcast_object(value, root)

    def allgather_object(self, value: T) -> list[T]:
        return self.inside.allgather_object(value)

    def gather_object(self, value: T) -> list[T] | None:
        return self.inside.gather_object(value)

    def broadcast(self, array: Array) -> None:
        if is_on_host(array):
            self.inside.broadcast(array)
            return
        room = self._room("whole", array)
        if self.is_root:
            to_host(array, room)
        else:
            self.device.synchronize()  # the last copy from there may be under way
        self.inside.broadcast(room)
        if not self.is_root:
            array.set(room)  # type: ignore[attr-defined]

    def alltoall(self, send: Array, sent: Parts, receive: Array, received: Parts) -> None:
        if is_on_host(send) and is_on_host(receive):
            self.inside.alltoall(send, sent, receive, received)
            return
        outgoing, incoming = self._room("sent", send), self._room("received", receive)
        to_host(send, outgoing)
        self.inside.alltoall(outgoing, sent, incoming, received)
        receive.set(incoming)  # type: ignore[attr-defined]

    def allgather_slices(self, flat: Array, counts: Sequence[int]) -> None:
        if is_on_host(flat):
            self.inside.allgather_slices(flat, counts)
            return
        room, start = self._room("whole", flat), sum(counts[: self.rank])
        own = slice(start, start + counts[self.rank])
        to_host(flat[own], room[own])
        self.inside.allgather_slices(room, counts)
        flat.set(room)  # type: ignore[attr-defined]

    def gather_slices(self, part: Array, counts: Sequence[int], whole: Array | None) -> None:
        self.inside.gather_slices(to_host(part), counts, whole)

    def barrier(self) -> None:
        self.inside.barrier()

    def node(self) -> Communicator:
        return self.inside.node()

    def abort(self, status: int) -> None:
        self.inside.abort(status)

    def waits(self, collective: int) -> None:
        self.inside.waits(collective)

    def goes_on(self) -> None:
        self.inside.goes_on()

    def at(self, phase: int, step: int = 0) -> None:
        self.inside.at(phase, step)

    def progressed(self) -> None:
        self.inside.progressed()

    def watch(self, limit: float, stacks: bool = False) -> None:
        self.inside.watch(limit, stacks)

    def _room(self, purpose: str, like: Array) -> Array:
        """Pinned memory of an array's shape and dtype, the same again each time."""
        room = self._rooms.get(purpose)
        if room is None or room.nbytes < like.nbytes:
            room = self._rooms[purpose] = self.device.host_room((like.nbytes,), _BYTES)
        return room[: like.nbytes].view(like.dtype).reshape(like.shape)
