"""The transport through pinned host memory, which every MPI library can send."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distsgd.core.device import Array, Device, to_host
from distsgd.parallel.communicator import Communicator
from distsgd.parallel.transport import Parts, Transport

_BYTES = np.dtype(np.uint8)


class StagedTransport(Transport):
    """Copies arrays on a device to the host and back: MPI sees only host memory.

    A copy to the host waits for what computes the array, so that MPI never reads it too early. A copy to the device is
    asynchronous: its host memory is written again only after the next wait.
    """

    description = "through memory of the host"

    def __init__(self, communicator: Communicator, device: Device) -> None:
        self._rank, self._inside, self._device = communicator.rank, communicator.transport, device
        self._buffers: dict[str, Array] = {}

    def broadcast(self, array: Array) -> None:
        buffer = self._buffer("whole", array)
        if self._rank == 0:
            to_host(array, buffer)
            self._inside.broadcast(buffer)
            return
        self._device.synchronize()  # the last copy from this buffer may be in flight
        self._inside.broadcast(buffer)
        array.set(buffer)  # type: ignore[attr-defined]

    def alltoall(self, send: Array, sent: Parts, receive: Array, received: Parts) -> None:
        outgoing, incoming = self._buffer("sent", send), self._buffer("received", receive)
        to_host(send, outgoing)
        self._inside.alltoall(outgoing, sent, incoming, received)
        receive.set(incoming)  # type: ignore[attr-defined]

    def allgather_slices(self, flat: Array, counts: Sequence[int]) -> None:
        buffer, start = self._buffer("whole", flat), sum(counts[: self._rank])
        own = slice(start, start + counts[self._rank])
        to_host(flat[own], buffer[own])
        self._inside.allgather_slices(buffer, counts)
        flat.set(buffer)  # type: ignore[attr-defined]

    def _buffer(self, purpose: str, like: Array) -> Array:
        """Pinned memory of an array's shape and dtype; one buffer for each purpose, reused."""
        buffer = self._buffers.get(purpose)
        if buffer is None or buffer.nbytes < like.nbytes:
            buffer = self._buffers[purpose] = self._device.host_buffer((like.nbytes,), _BYTES)
        return buffer[: like.nbytes].view(like.dtype).reshape(like.shape)
