"""Ranks as threads of one process, for tests: the same program, run by several threads at once."""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from distsgd.core.device import Array
from distsgd.core.status_table import Heartbeat
from distsgd.parallel.channels import Channels
from distsgd.parallel.communicator import Communicator
from distsgd.parallel.transport import Parts, Transport

T = TypeVar("T")


class _Meeting:
    """A place where all threads lay something down, look at it together, and leave."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        self.table: list[Any] = [None] * size
        self.lock = threading.Lock()
        self.begun: dict[tuple[int, int, int], tuple[list[ThreadMessage], list[ThreadMessage]]] = {}


class ThreadCommunicator(Communicator):
    """One of `size` ranks that are threads of this process; `hosts` may pretend that they are on several."""

    def __init__(self, rank: int, meeting: _Meeting, hosts: tuple[str, ...]) -> None:
        self.rank, self.size, self.hosts = rank, len(hosts), hosts
        self._meeting = meeting
        self.in_use = threading.Lock()
        self._node: Communicator | None = None
        self.transport = ThreadTransport(self)

    def meet(self, value: Any, use: Callable[[list[Any]], T]) -> T:
        """What `use` makes of all ranks' values."""
        self._meeting.table[self.rank] = value
        self._meeting.barrier.wait()
        result = use(self._meeting.table)
        self._meeting.barrier.wait()
        return result

    def broadcast_object(self, value: T) -> T:
        return self.meet(value, lambda table: table[0])  # type: ignore[no-any-return]

    def allgather_object(self, value: T) -> list[T]:
        return self.meet(value, list)

    def gather_object(self, value: T) -> list[T] | None:
        values = self.allgather_object(value)
        return values if self.is_root else None

    def barrier(self) -> None:
        self.meet(None, lambda table: None)

    def progress(self) -> None:
        if self._meeting.barrier.broken:
            raise threading.BrokenBarrierError

    def node(self) -> Communicator:
        if self._node is None:
            inside = [rank for rank in range(self.size) if self.hosts[rank] == self.hosts[self.rank]]
            meetings = self.meet(_Meeting(len(inside)), list)
            hosts = tuple(self.hosts[rank] for rank in inside)
            self._node = ThreadCommunicator(inside.index(self.rank), meetings[inside[0]], hosts)
        return self._node

    def abort(self, status: int) -> None:
        self._meeting.barrier.abort()
        raise SystemExit(status)


class ThreadTransport(Transport):
    """Copies arrays between the threads."""

    def __init__(self, ranks: ThreadCommunicator) -> None:
        self._ranks = ranks

    def channels(self, heartbeat: Heartbeat) -> ThreadChannels:
        return ThreadChannels(self._ranks, heartbeat)

    def broadcast(self, array: Array) -> None:
        def copy(table: list[Any]) -> None:
            if not self._ranks.is_root:
                array[...] = table[0]

        self._ranks.meet(array, copy)

    def alltoall(self, send: Array, sent: Parts, receive: Array, received: Parts) -> None:
        def copy(table: list[Any]) -> None:
            for rank, (buffer, parts) in enumerate(table):
                receive[received[rank]] = buffer[parts[self._ranks.rank]]

        self._ranks.meet((send, sent), copy)

    def allgather_slices(self, flat: Array, counts: Sequence[int]) -> None:
        def copy(table: list[Any]) -> None:
            start = 0
            for rank, count in enumerate(counts):
                if rank != self._ranks.rank:
                    flat[start : start + count] = table[rank][start : start + count]
                start += count

        self._ranks.meet(flat, copy)


class ThreadMessage:
    """A message that is copied as late as possible: by whoever asks for it when both ends have begun."""

    def __init__(self, meeting: _Meeting, key: tuple[int, int, int], array: Array, sends: bool) -> None:
        self._meeting, self._key, self._array, self._sends, self._in_flight = meeting, key, array, sends, False

    def Start(self) -> None:  # noqa: N802 (mpi4py's name)
        with self._meeting.lock:
            assert not self._in_flight, "a message is begun again before it has ended"
            self._in_flight = True
            self._meeting.begun.setdefault(self._key, ([], []))[self._sends].append(self)

    def Test(self) -> bool:  # noqa: N802
        if self._meeting.barrier.broken:
            raise threading.BrokenBarrierError
        with self._meeting.lock:
            receives, sends = self._meeting.begun.get(self._key, ([], []))
            if receives and sends and self._in_flight:
                receive, send = receives.pop(0), sends.pop(0)
                receive._array[...] = send._array
                receive._in_flight = send._in_flight = False
            return not self._in_flight

    def Free(self) -> None:  # noqa: N802
        assert not self._in_flight, "a message is freed in flight"


class ThreadChannels(Channels):
    """Messages between threads."""

    def __init__(self, ranks: ThreadCommunicator, heartbeat: Heartbeat) -> None:
        self._ranks, self.heartbeat = ranks, heartbeat

    def send(self, array: Array, rank: int, tag: int) -> ThreadMessage:
        return ThreadMessage(self._ranks._meeting, (self._ranks.rank, rank, tag), array, True)

    def receive(self, array: Array, rank: int, tag: int) -> ThreadMessage:
        return ThreadMessage(self._ranks._meeting, (rank, self._ranks.rank, tag), array, False)

    def allgather_slices(self, flat: Array, counts: Sequence[int]) -> None:
        self._ranks.transport.allgather_slices(flat, counts)

    def progress(self) -> None:
        self._ranks.progress()


def run_on_threads(size: int, function: Callable[[Communicator], T], hosts: Sequence[str] | None = None) -> list[T]:
    """function(communicator)'s results on `size` ranks, in rank order; raises the first error that isn't a sequel."""
    names = tuple(hosts) if hosts is not None else (platform.node(),) * size
    meeting = _Meeting(size)

    def rank_main(rank: int) -> T:
        try:
            return function(ThreadCommunicator(rank, meeting, names))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(rank_main, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    if errors:
        raise errors[0]
    return [future.result() for future in futures]
