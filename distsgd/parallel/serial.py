"""The communicator of a single process: the same operations, without messages."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import TypeVar

from distsgd.core.device import Array
from distsgd.core.output import leave
from distsgd.parallel.communicator import Communicator
from distsgd.parallel.transport import Parts, Transport

T = TypeVar("T")


class SerialTransport(Transport):
    """Sends nothing: arrays are there already."""

    def broadcast(self, array: Array) -> None:
        pass

    def alltoall(self, send: Array, sent: Parts, receive: Array, received: Parts) -> None:
        receive[received[0]] = send[sent[0]]

    def allgather_slices(self, flat: Array, counts: Sequence[int]) -> None:
        pass


class SerialCommunicator(Communicator):
    """A group of one rank."""

    def __init__(self) -> None:
        self.rank, self.size, self.hosts = 0, 1, (platform.node(),)
        self.transport = SerialTransport()

    def broadcast_object(self, value: T) -> T:
        return value

    def allgather_object(self, value: T) -> list[T]:
        return [value]

    def gather_object(self, value: T) -> list[T]:
        return [value]

    def barrier(self) -> None:
        pass

    def node(self) -> Communicator:
        return self

    def abort(self, status: int) -> None:
        leave(status)
