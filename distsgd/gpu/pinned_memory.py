"""Messages of ranks on GPUs by way of pinned memory of the host, which every MPI library can send."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distsgd.core.device import Array, Device, is_on_host, to_host
from distsgd.gpu.wrapping import PassingCommunicator
from distsgd.parallel.communicator import Communicator, Parts

WAY = "through memory of the host"
_BYTES = np.dtype(np.uint8)


class StagedCommunicator(PassingCommunicator):
    """Copies arrays on a device to the host and back: no library sees any memory but the host's.

    A copy to the host waits for what computes the array, so MPI never reads what isn't there yet. A copy to the device
    goes on while the host does: its memory is written again only behind the next wait.
    """

    def __init__(self, inside: Communicator, device: Device) -> None:
        super().__init__(inside, device, WAY)
        self._rooms: dict[str, Array] = {}

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

    def _room(self, purpose: str, like: Array) -> Array:
        """Pinned memory of an array's shape and dtype, the same again each time."""
        room = self._rooms.get(purpose)
        if room is None or room.nbytes < like.nbytes:
            room = self._rooms[purpose] = self.device.host_room((like.nbytes,), _BYTES)
        return room[: like.nbytes].view(like.dtype).reshape(like.shape)
