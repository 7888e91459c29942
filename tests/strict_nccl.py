"""A stand-in for CuPy's NCCL between ranks that are threads: what doesn't match fails, and nothing hangs.

Everything that one rank puts into a group is compared with what the others have in theirs: messages by their peers,
in order, with their bytes and types, collectives by all that they say. Addresses have to lie inside arrays of the own
GPU. Two ranks on one GPU are refused, as NCCL does.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from tests.strict_arrays import NCCL, RECORDER

SECONDS = 10.0
"""What is as long as this without a partner hangs."""
_WIDTHS = {1: 1}


class NcclError(RuntimeError):
    """CuPy's, by its name."""


@dataclass(frozen=True)
class Call:
    """One call: `peer` is the other rank of a message, or the root."""

    kind: str
    count: int
    datatype: int
    peer: int | None
    send: int
    receive: int

    @property
    def size(self) -> int:
        return self.count * _WIDTHS[self.datatype]

    @property
    def announced(self) -> tuple[Any, ...]:
        """What all ranks have to say alike of a collective."""
        return self.kind, self.count, self.datatype, self.peer


class World:
    """The ranks that share one unique id."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        self.table: list[Any] = [None] * size

    def meet(self, rank: int, value: Any) -> list[Any]:
        """What all ranks lay down."""
        try:
            self.table[rank] = value
            self.barrier.wait(SECONDS)
            found = list(self.table)
            self.barrier.wait(SECONDS)
        except threading.BrokenBarrierError:
            raise AssertionError(f"NCCL: rank {rank} is in a group that the others are not in") from None
        return found


class StrictNccl:
    """The module `cupy.cuda.nccl`. `fails` may raise, before what it reports begins: (name, rank).

    hosts   of the ranks, where they aren't all on one
    wrong   deliver other bytes than were sent, as machines do whose PCI is set up for virtual machines
    """

    available = True
    NCCL_UINT8 = 1

    def __init__(
        self,
        version: int = 22304,
        fails: Callable[[str, int], None] | None = None,
        wrong: bool = False,
        hosts: Sequence[str] | None = None,
    ) -> None:
        self.hosts = hosts
        self.version, self.fails, self.wrong = version, fails or (lambda name, rank: None), wrong
        self.worlds: dict[bytes, World] = {}
        self.comms: list[StrictComm] = []
        self.threads = threading.local()
        self.calls = Counter[str]()
        self._numbers, self._lock = count(), threading.Lock()

    def get_version(self) -> int:
        return self.version

    def get_unique_id(self) -> bytes:
        self.fails("get_unique_id", 0)
        return next(self._numbers).to_bytes(128, "little")

    def groupStart(self) -> None:  # noqa: N802
        assert not hasattr(self.threads, "group"), "groups of groups aren't used here"
        self.threads.group = []

    def groupEnd(self) -> None:  # noqa: N802
        group = self.threads.group
        del self.threads.group
        comm = self.threads.comm
        comm._run(group)

    def NcclCommunicator(self, size: int, number: bytes, rank: int) -> StrictComm:  # noqa: N802
        assert type(number) is bytes
        assert len(number) == 128
        self.fails("NcclCommunicator", rank)
        with self._lock:
            world = self.worlds.setdefault(number, World(size))
        gpus = world.meet(rank, (self.hosts and self.hosts[rank], RECORDER.gpu))
        if len(set(gpus)) < size:
            raise NcclError("NCCL_ERROR_INVALID_USAGE: invalid usage")
        self.threads.comm = StrictComm(self, world, rank, size)
        self.comms.append(self.threads.comm)
        return self.threads.comm


class StrictComm:
    """One rank's end. `graphs` are those that hold messages of it, as long as they live."""

    def __init__(self, nccl: StrictNccl, world: World, rank: int, size: int) -> None:
        self.nccl, self.world, self.rank, self.size, self.gpu = nccl, world, rank, size, RECORDER.gpu
        self.ended = False
        self.graphs: weakref.WeakSet[Any] = weakref.WeakSet()

    def send(self, at: int, count: int, datatype: int, peer: int, stream: int) -> None:
        self._add(stream, Call("send", count, datatype, peer, at, 0), peer)

    def recv(self, at: int, count: int, datatype: int, peer: int, stream: int) -> None:
        self._add(stream, Call("recv", count, datatype, peer, 0, at), peer)

    def broadcast(self, send: int, receive: int, count: int, datatype: int, root: int, stream: int) -> None:
        self._add(stream, Call("broadcast", count, datatype, root, send, receive))

    def allGather(self, send: int, receive: int, count: int, datatype: int, stream: int) -> None:  # noqa: N802
        self._add(stream, Call("allGather", count, datatype, None, send, receive))

    def check_async_error(self) -> None:
        self.nccl.fails("check_async_error", self.rank)

    def abort(self) -> None:
        assert not self.graphs, "NCCL would wait here until all graphs with its messages are gone"
        self.ended = True

    def _add(self, stream: int, call: Call, peer: int | None = None) -> None:
        assert stream == RECORDER.streams.current, "everything goes to the stream that is current"
        assert call.count > 0, "nothing is left out"
        assert peer != self.rank, "a rank's own part is copied"
        assert not self.ended
        self.nccl.threads.group.append(call)

    def _run(self, group: list[Call]) -> None:
        """The whole group, when all ranks have come to theirs."""
        assert RECORDER.gpu == self.gpu
        self.nccl.fails("groupEnd", self.rank)
        RECORDER.note(NCCL, "+".join(sorted({call.kind for call in group})))
        RECORDER.threads.busy = True
        if RECORDER.tape is not None:
            RECORDER.tape.messengers.append(self)
        for call in group:
            if self._sends(call):
                RECORDER.streams.use(RECORDER.memory(call.send, call.size), writes=False)
            if self._receives(call):
                RECORDER.streams.use(RECORDER.memory(call.receive, self._bytes_received(call)), writes=True)
        RECORDER.write(lambda: self._pass(group))

    def _pass(self, group: list[Call]) -> None:
        """What is sent arrives; from a graph, at each of its starts."""
        self.nccl.calls.update(call.kind for call in group)
        sent = [RECORDER.memory(call.send, call.size).copy() if self._sends(call) else None for call in group]
        everyone = self.world.meet(self.rank, list(zip(group, sent, strict=True)))
        shared = [[call.announced for call, _ in calls if call.kind not in ("send", "recv")] for calls in everyone]
        assert all(announced == shared[0] for announced in shared), f"ranks call different collectives: {shared}"
        self._check_messages(everyone)
        seen = Counter[int]()
        place = 0
        for call in group:
            if call.kind == "recv":
                self._receive(call, everyone, seen)
            elif call.kind != "send":
                of_all = [
                    [(c, data) for c, data in calls if c.kind not in ("send", "recv")][place] for calls in everyone
                ]
                self._collect(call, [data for _, data in of_all])
                place += 1

    def _sends(self, call: Call) -> bool:
        return call.kind != "recv" and (call.kind != "broadcast" or call.peer == self.rank)

    def _receives(self, call: Call) -> bool:
        return call.kind != "send"

    def _bytes_received(self, call: Call) -> int:
        return call.size * (self.size if call.kind == "allGather" else 1)

    def _check_messages(self, everyone: list[list[tuple[Call, Any]]]) -> None:
        """What each sends to this rank is what this rank takes, in order."""
        for peer in range(self.size):
            theirs = [(c.count, c.datatype) for c, _ in everyone[peer] if c.kind == "send" and c.peer == self.rank]
            mine = [(c.count, c.datatype) for c, _ in everyone[self.rank] if c.kind == "recv" and c.peer == peer]
            assert theirs == mine, f"rank {peer} sends rank {self.rank} {theirs}, which takes {mine}"

    def _receive(self, call: Call, everyone: list[list[tuple[Call, Any]]], seen: Counter[int]) -> None:
        assert call.peer is not None
        messages = [data for c, data in everyone[call.peer] if c.kind == "send" and c.peer == self.rank]
        RECORDER.memory(call.receive, call.size)[:] = messages[seen[call.peer]] + self.nccl.wrong
        seen[call.peer] += 1

    def _collect(self, call: Call, data: list[Any]) -> None:
        if call.kind == "broadcast":
            RECORDER.memory(call.receive, call.size)[:] = data[call.peer or 0]
        elif call.kind == "allGather":
            RECORDER.memory(call.receive, call.size * self.size)[:] = np.concatenate(data)
