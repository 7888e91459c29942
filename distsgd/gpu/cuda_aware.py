"""Messages of ranks on GPUs by an MPI library that takes pointers into their memory."""

from __future__ import annotations

from collections.abc import Sequence

from distsgd.core.device import Array, Device, is_on_host
from distsgd.gpu.wrapping import PassingCommunicator
from distsgd.parallel.communicator import Communicator, Parts

WAY = "by MPI, which takes GPU memory"


class DirectCommunicator(PassingCommunicator):
    """Hands arrays on a device to MPI as they are.

    MPI knows nothing of streams: it reads and writes when it is called. So all that was asked of the device ends
    before, what is to be sent and what still reads what is about to be overwritten.
    """

    def __init__(self, inside: Communicator, device: Device) -> None:
        super().__init__(inside, device, WAY)

    def broadcast(self, array: Array) -> None:
        self._finish(array)
        self.inside.broadcast(array)

    def alltoall(self, send: Array, sent: Parts, receive: Array, received: Parts) -> None:
        self._finish(send, receive)
        self.inside.alltoall(send, sent, receive, received)

    def allgather_slices(self, flat: Array, counts: Sequence[int]) -> None:
        self._finish(flat)
        self.inside.allgather_slices(flat, counts)

    def _finish(self, *arrays: Array) -> None:
        if not all(map(is_on_host, arrays)):
            self.device.synchronize()
