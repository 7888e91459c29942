"""The transport through pinned host memory, which every MPI library can send."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distsgd.core.device import Array, Device, is_on_host, to_host
from distsgd.gpu.wrapping import DeviceCommunicator
from distsgd.parallel.communicator import Communicator, Parts

TRANSPORT = "through memory of the host"
_BYTES = np.dtype(np.uint8)


class StagedCommunicator(DeviceCommunicator):
    """Copies arrays on a device to the host and back: MPI sees only host memory.

    A copy to the host waits for what computes the array, so that MPI never reads it too early. A copy to the device is
    asynchronous: its host memory is written again only after the next wait.
    """

    def __init__(self, inside: Communicator, device: Device) -> None:
        super().__init__(inside, device, TRANSPORT)
        self._buffers: dict[str, Array] = {}

    def broadcast(self, array: Array) -> None:
        if is_on_host(array):
            self.inside.broadcast(array)
            return
        buffer = self._buffer("whole", array)
        if self.is_root:
            to_host(array, buffer)
        else:
            self.device.synchronize()  # the last copy from this buffer may be in flight
        self.inside.broadcast(buffer)
        if not self.is_root:
            array.set(buffer)  # type: ignore[attr-defined]

    def alltoall(self, send: Array, sent: Parts, receive: Array, received: Parts) -> None:
        if is_on_host(send) and is_on_host(receive):
            self.inside.alltoall(send, sent, receive, received)
            return
        outgoing, incoming = self._buffer("sent", send), self._buffer("received", receive)
        to_host(send, outgoing)
        self.inside.alltoall(outgoing, sent, incoming, received)
        receive.set(incoming)  # type: ignore[attr-defined]

    def allgather_slices(self, flat: Array, counts: Sequence[int]) -> None:
        if is_on_host(flat):
            self.inside.allgather_slices(flat, counts)
            return
        buffer, start = self._buffer("whole", flat), sum(counts[: self.rank])
        own = slice(start, start + counts[self.rank])
        to_host(flat[own], buffer[own])
        self.inside.allgather_slices(buffer, counts)
        flat.set(buffer)  # type: ignore[attr-defined]

    def _buffer(self, purpose: str, like: Array) -> Array:
        """Pinned memory of an array's shape and dtype; one buffer for each purpose, reused."""
        buffer = self._buffers.get(purpose)
        if buffer is None or buffer.nbytes < like.nbytes:
            buffer = self._buffers[purpose] = self.device.host_buffer((like.nbytes,), _BYTES)
        return buffer[: like.nbytes].view(like.dtype).reshape(like.shape)
