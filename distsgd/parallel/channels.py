"""Messages between two ranks that are started and end later: while they travel, the rank computes."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from distsgd.core.device import Array
from distsgd.core.status_table import Collective, Heartbeat

_YIELDS = 0.001
"""Seconds that a rank that waits looks and lets other threads run in between, before it sleeps between two looks."""
_PAUSES = (0.00002, 0.00006)
"""Seconds that it then sleeps: at first, and at most. Messages that are not small need the rank on their way."""
_yield: Callable[[], object] = getattr(os, "sched_yield", lambda: time.sleep(0))
_ALLTOALL, _ALLGATHER = int(Collective.ALLTOALL), int(Collective.ALLGATHER)


class Message(Protocol):
    """A message that can be sent or received again and again, with the names of mpi4py's persistent requests."""

    def Start(self) -> Any:  # noqa: N802
        """Begin to send or to receive; the message isn't in flight before."""

    def Test(self) -> bool:  # noqa: N802
        """Whether the message isn't in flight (any more). Moves all messages of this rank on."""

    def Free(self) -> Any:  # noqa: N802
        """Release what the library holds; the message isn't in flight."""


class Channels(ABC):
    """Makes messages between pairs of ranks, and waits for them.

    A rank that waits for others enters a collective in the status table, so that the watchdog can name who is missing.
    """

    heartbeat: Heartbeat

    @abstractmethod
    def send(self, array: Array, rank: int, tag: int) -> Message:
        """A message with the bytes of a contiguous array to a rank; they must not change while it is in flight."""

    @abstractmethod
    def receive(self, array: Array, rank: int, tag: int) -> Message:
        """The message of as many bytes that a rank sends with this tag."""

    @abstractmethod
    def allgather_slices(self, flat: Array, counts: Sequence[int]) -> None:
        """As the transport's, while other threads get the processor. Collective."""

    @abstractmethod
    def progress(self) -> None:
        """Move the messages on that are in flight."""

    def wait(self, messages: Sequence[Message]) -> None:
        """Return when none of the messages is in flight."""
        left = list(messages)

        def none_left() -> bool:
            while left and left[-1].Test():
                left.pop()
            return not left

        self.wait_until(none_left)

    def wait_until(self, ready: Callable[[], bool], collective: int = _ALLTOALL) -> None:
        """Return when `ready` does so; it moves messages on, or looks at memory that ranks share."""
        if ready():
            return
        self.heartbeat.enter(collective)
        try:
            began = time.perf_counter()
            while time.perf_counter() - began < _YIELDS:
                if ready():
                    return
                self.progress()
                _yield()
            pause = _PAUSES[0]
            while not ready():
                self.progress()
                time.sleep(pause)
                pause = min(1.2 * pause, _PAUSES[1])
        finally:
            self.heartbeat.exit()


class MPIChannels(Channels):
    """Messages of MPI: persistent requests."""

    def __init__(self, comm: Any, heartbeat: Heartbeat) -> None:
        from mpi4py import MPI

        self._mpi, self._comm, self.heartbeat = MPI, comm, heartbeat

    def send(self, array: Array, rank: int, tag: int) -> Message:
        return self._comm.Send_init([array, self._mpi.BYTE], rank, tag)  # type: ignore[no-any-return]

    def receive(self, array: Array, rank: int, tag: int) -> Message:
        return self._comm.Recv_init([array, self._mpi.BYTE], rank, tag)  # type: ignore[no-any-return]

    def allgather_slices(self, flat: Array, counts: Sequence[int]) -> None:
        sizes = [count * flat.itemsize for count in counts]
        request = self._comm.Iallgatherv(self._mpi.IN_PLACE, [flat.view("u1"), sizes, self._mpi.BYTE])
        self.wait_until(request.Test, _ALLGATHER)

    def progress(self) -> None:
        self._comm.Iprobe()
