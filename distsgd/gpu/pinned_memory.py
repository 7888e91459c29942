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
        self._input_buffers: dict[str, Array] = {}

    def broadcast(self, array: Array) -> None:
        if is_on_host(array):
            self.inside.broadcast(array)
            return
        buffer = self._input_buffer("whole", array)
        if self.is_root:
            to_host(array, buffer)
        else:
            self.device.synchronize()  # the last copy from there may be in flight
        self.inside.broadcast(buffer)
        if not self.is_root:
            array.set(buffer)  # type: ignore[attr-defined]

    def alltoall(self, send: Array, sent: Parts, receive: Array, received: Parts) -> None:
        if is_on_host(send) and is_on_host(receive):
            self.inside.alltoall(send, sent, receive, received)
            return
        outgoing, incoming = self._input_buffer("sent", send), self._input_buffer("received", receive)
        to_host(send, outgoing)
        self.inside.alltoall(outgoing, sent, incoming, received)
        receive.set(incoming)  # type: ignore[attr-defined]

    def allgather_slices(self, flat: Array, counts: Sequence[int]) -> None:
        if is_on_host(flat):
            self.inside.allgather_slices(flat, counts)
            return
        buffer, start = self._input_buffer("whole", flat), sum(counts[: self.rank])
        own = slice(start, start + counts[self.rank])
        to_host(flat[own], buffer[own])
        self.inside.allgather_slices(buffer, counts)
        flat.set(buffer)  # type: ignore[attr-defined]

    def _input_buffer(self, purpose: str, like: Array) -> Array:
        """Pinned memory of an array's shape and dtype, the same again each time."""
        buffer = self._input_buffers.get(purpose)
        if buffer is None or buffer.nbytes < like.nbytes:
            buffer = self._input_buffers[purpose] = self.device.host_buffer((like.nbytes,), _BYTES)
        return buffer[: like.nbytes].view(like.dtype).reshape(like.shape)
