"""The transport of an MPI library that accepts pointers into GPU memory."""

from __future__ import annotations

from collections.abc import Sequence

from distsgd.core.device import Array, Device, is_on_host
from distsgd.gpu.wrapping import DeviceCommunicator
from distsgd.parallel.communicator import Communicator, Parts

TRANSPORT = "by MPI, which takes GPU memory"


class DirectCommunicator(DeviceCommunicator):
    """Passes arrays on a device to MPI unchanged.

    MPI doesn't use CUDA's streams: it reads and writes when it is called. So the device finishes all its work before:
    what computes the arrays that are sent, and what still reads the arrays that are overwritten.
    """

    def __init__(self, inside: Communicator, device: Device) -> None:
        super().__init__(inside, device, TRANSPORT)

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
