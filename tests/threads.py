"""Ranks as threads of one process, for tests: the same program, run by several threads at once."""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from distsgd.core.device import Array
from distsgd.parallel.communicator import Communicator
from distsgd.parallel.transport import Parts, Transport

T = TypeVar("T")


class _Meeting:
    """A place where all threads lay something down, look at it together, and leave."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        self.table: list[Any] = [None] * size


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
