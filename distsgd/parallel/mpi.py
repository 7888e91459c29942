"""The communicator of MPI processes and its transport, through mpi4py."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from typing import Any, TypeVar

from distsgd.core.device import Array
from distsgd.core.output import flush, leave
from distsgd.core.status_table import Collective, Heartbeat
from distsgd.parallel.communicator import Communicator
from distsgd.parallel.transport import Parts, Transport
from distsgd.parallel.watchdog import Watchdog

T = TypeVar("T")
_ABORT_SECONDS = 1.0

# Plain integers: each collective stores one twice.
_BROADCAST, _GATHER, _ALLGATHER = int(Collective.BROADCAST), int(Collective.GATHER), int(Collective.ALLGATHER)
_ALLTOALL, _BARRIER, _SPLIT = int(Collective.ALLTOALL), int(Collective.BARRIER), int(Collective.SPLIT)


class MPITransport(Transport):
    """Sends arrays by MPI."""

    def __init__(self, mpi: Any, comm: Any, heartbeat: Heartbeat) -> None:
        self.mpi, self._byte, self._in_place = comm, mpi.BYTE, mpi.IN_PLACE
        self.enter, self.exit = heartbeat.enter, heartbeat.exit

    def broadcast(self, array: Array) -> None:
        self.enter(_BROADCAST)
        self.mpi.Bcast(array, root=0)
        self.exit()

    def alltoall(self, send: Array, sent: Parts, receive: Array, received: Parts) -> None:
        byte = self._byte
        self.enter(_ALLTOALL)
        self.mpi.Alltoallv([send, sent.counts, sent.starts, byte], [receive, received.counts, received.starts, byte])
        self.exit()

    def allgather_slices(self, flat: Array, counts: Sequence[int]) -> None:
        width = flat.itemsize
        sizes = [count * width for count in counts]
        self.enter(_ALLGATHER)
        self.mpi.Allgatherv(self._in_place, [flat.view("u1"), sizes, self._byte])
        self.exit()

    def channels(self, heartbeat: Heartbeat) -> Any:
        from distsgd.parallel.channels import MPIChannels

        return MPIChannels(self.mpi, heartbeat)


class MPICommunicator(Communicator):
    """A group of MPI processes.

    mpi       mpi4py's module
    comm      mpi4py's communicator
    watchdog  of this rank, where one has been started
    """

    def __init__(self, mpi: Any, comm: Any, hosts: Sequence[str], heartbeat: Heartbeat) -> None:
        self._mpi, self._comm, self.heartbeat = mpi, comm, heartbeat
        self.rank, self.size, self.hosts = comm.rank, comm.size, tuple(hosts)
        self._node: MPICommunicator | None = None
        self.watchdog: Watchdog | None = None
        self.in_use = threading.Lock()
        self.transport = MPITransport(mpi, comm, heartbeat)
        self.enter, self.exit = heartbeat.enter, heartbeat.exit  # bound once: a collective looks up one name for each

    def watch(self, limit: float, stacks: bool = False) -> None:
        if self.watchdog is not None:
            self.watchdog.limit, self.watchdog.stacks = limit, stacks

    def broadcast_object(self, value: T) -> T:
        self.enter(_BROADCAST)
        received = self._comm.bcast(value, root=0)
        self.exit()
        return value if self.is_root else received  # rank 0 keeps its own object, with what pickling drops

    def allgather_object(self, value: T) -> list[T]:
        self.enter(_ALLGATHER)
        received = self._comm.allgather(value)
        self.exit()
        return received  # type: ignore[no-any-return]

    def gather_object(self, value: T) -> list[T] | None:
        self.enter(_GATHER)
        received = self._comm.gather(value, root=0)
        self.exit()
        return received  # type: ignore[no-any-return]

    def barrier(self) -> None:
        self.enter(_BARRIER)
        self._comm.Barrier()
        self.exit()

    def progress(self) -> None:
        self._comm.Iprobe()

    def node(self) -> MPICommunicator:
        if self._node is None:
            self.enter(_SPLIT)
            group = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED, key=self.rank)
            self.exit()
            hosts = [self.hosts[self.rank]] * group.size
            self._node = MPICommunicator(self._mpi, group, hosts, self.heartbeat)
        return self._node

    def abort(self, status: int) -> None:
        # An abort that hangs would leave all ranks waiting; every launcher notices a rank that dies.
        fallback = threading.Timer(_ABORT_SECONDS, os.kill, (os.getpid(), signal.SIGKILL))
        fallback.daemon = True
        fallback.start()
        flush()
        try:
            self._mpi.COMM_WORLD.Abort(status)
        finally:  # Abort may return where this rank or another has aborted already
            leave(status)
