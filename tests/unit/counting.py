"""A communicator that passes everything on, and counts it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from distsgd.core.device import Array
from distsgd.parallel.communicator import Communicator
from distsgd.parallel.transport import Parts, Transport


class Counting(Communicator):
    """Passes everything on, and counts it; what its transport is called for, too."""

    def __init__(self, inside: Communicator) -> None:
        self.inside, self.calls = inside, Counter[str]()
        self.sent: list[list[int]] = []
        """Bytes to each rank, a list for each all-to-all."""
        self.prefix = ""
        self.rank, self.size, self.hosts = inside.rank, inside.size, inside.hosts
        self.transport = CountingTransport(self)

    def _pass(self, name: str, *arguments: Any) -> Any:
        self.calls[self.prefix + name] += 1
        return getattr(self.inside.transport if hasattr(Transport, name) else self.inside, name)(*arguments)

    def broadcast_object(self, value: Any) -> Any:
        return self._pass("broadcast_object", value)

    def allgather_object(self, value: Any) -> Any:
        return self._pass("allgather_object", value)

    def gather_object(self, value: Any) -> Any:
        return self._pass("gather_object", value)

    def barrier(self) -> None:
        self._pass("barrier")

    def progress(self) -> None:
        self.inside.progress()

    def node(self) -> Communicator:
        node = Counting(self.inside.node())
        node.prefix, node.calls = "node's ", self.calls
        return node

    def abort(self, status: int) -> None:
        self.inside.abort(status)


class CountingTransport(Transport):
    """Passes on and counts by means of its communicator."""

    def __init__(self, counting: Counting) -> None:
        self.counting = counting

    def broadcast(self, array: Array) -> None:
        self.counting._pass("broadcast", array)

    def alltoall(self, send: Array, sent: Parts, receive: Array, received: Parts) -> None:
        self.counting.sent.append(list(sent.counts))
        self.counting._pass("alltoall", send, sent, receive, received)

    def allgather_slices(self, flat: Array, counts: Sequence[int]) -> None:
        self.counting._pass("allgather_slices", flat, counts)
