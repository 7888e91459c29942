"""The communicator of MPI processes, through mpi4py; imported only where a launcher has started them."""

from __future__ import annotations

import atexit
import faulthandler
import os
import platform
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Sequence
from functools import cache
from types import TracebackType
from typing import Any, TypeVar

from distsgd.core.device import Array
from distsgd.core.errors import DistsgdError, LauncherError
from distsgd.core.output import flush, leave, report_error, report_to_launcher, say_lines
from distsgd.core.processes import die_with_parent
from distsgd.core.status_table import Collective, Heartbeat, private_heartbeat
from distsgd.parallel.communicator import Communicator
from distsgd.parallel.launchers import library_path, mismatch
from distsgd.parallel.shared_memory import shared_status_table
from distsgd.parallel.transport import Parts, Transport
from distsgd.parallel.watchdog import Watchdog

T = TypeVar("T")
_ROOT_REPORTS_FIRST = 1.0  # seconds
_ABORT_SECONDS = 1.0
_RANKS_IN_A_MESSAGE = 40  # a message longer than a pipe's 4,096 bytes may be mixed with another rank's

# Plain integers: each collective stores one twice.
_BROADCAST, _GATHER, _ALLGATHER = int(Collective.BROADCAST), int(Collective.GATHER), int(Collective.ALLGATHER)
_ALLTOALL, _BARRIER, _SPLIT = int(Collective.ALLTOALL), int(Collective.BARRIER), int(Collective.SPLIT)


def _load_mpi() -> Any:
    try:
        with warnings.catch_warnings():  # a launcher that doesn't match the library is reported once, below
            warnings.filterwarnings("ignore", "suspicious MPI", RuntimeWarning)
            from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError where mpi4py finds no MPI library
        reason = str(error).splitlines()[0]
        raise LauncherError(
            f"an MPI launcher started this process, but mpi4py could not load an MPI library ({reason}); "
            "load the cluster's MPI module, or install one with: pip install '.[mpich]' in distsgd's folder"
        ) from None
    return MPI


@cache
def _attribute(mpi: Any) -> Any:
    """The key under which an mpi4py communicator keeps its MPICommunicator."""
    return mpi.Comm.Create_keyval()


class MPITransport(Transport):
    """Sends arrays by MPI."""

    def __init__(self, comm: Any, heartbeat: Heartbeat) -> None:
        mpi = _load_mpi()
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


class MPICommunicator(Communicator):
    """A group of MPI processes."""

    def __init__(self, comm: Any, hosts: Sequence[str], heartbeat: Heartbeat) -> None:
        self._comm, self.heartbeat = comm, heartbeat
        self.rank, self.size, self.hosts = comm.rank, comm.size, tuple(hosts)
        self._node: Communicator | None = None
        self._mpi = _load_mpi()
        self._watchdog: Watchdog | None = None
        self.in_use = threading.Lock()
        self.transport = MPITransport(comm, heartbeat)
        self.enter, self.exit = heartbeat.enter, heartbeat.exit  # bound once: a collective looks up one name for each

    @classmethod
    def world(cls, expected_size: int | None) -> MPICommunicator:
        """All processes of this run, ranked by (node, rank on the node) whatever order the launcher gave them.

        Raises LauncherError where the launcher started `expected_size` processes and MPI sees another number.
        """
        die_with_parent()
        mpi = _load_mpi()
        comm = mpi.COMM_WORLD
        if expected_size is not None and comm.size != expected_size:
            version, library = mpi.Get_library_version(), library_path()
            raise LauncherError(mismatch(expected_size, comm.size, version, library, os.environ))
        communicator, rank_table = cls._ranked(comm)
        if communicator.is_root:
            for first in range(0, len(rank_table), _RANKS_IN_A_MESSAGE):
                report_to_launcher("rank_table", first=first, ranks=rank_table[first : first + _RANKS_IN_A_MESSAGE])
        return communicator

    @classmethod
    def of(cls, comm: Any) -> MPICommunicator:
        """The communicator of an mpi4py communicator's processes. Collective over them.

        It is made once and stored with `comm`: making one takes messages and a thread.
        """
        die_with_parent()
        found = comm.Get_attr(_attribute(_load_mpi()))
        if found is None:
            found, _ = cls._ranked(comm)
            found.abort_on_unhandled_errors()
            comm.Set_attr(_attribute(_load_mpi()), found)
        return found  # type: ignore[no-any-return]

    @classmethod
    def _ranked(cls, comm: Any) -> tuple[MPICommunicator, list[tuple[int, str, int]]]:
        """(these processes, ranked by host; the rank in `comm`, the host and the process of each)."""
        processes = comm.allgather((platform.node(), os.getpid()))
        names = [host for host, _ in processes]
        first_of_host = {host: names.index(host) for host in names}
        order = sorted(range(comm.size), key=lambda rank: (first_of_host[names[rank]], rank))
        group = comm.Split(0, order.index(comm.rank))
        communicator = cls(group, [names[rank] for rank in order], private_heartbeat())
        communicator._begin_watch()
        return communicator, [(rank, *processes[rank]) for rank in order]

    def _begin_watch(self) -> None:
        """Start the watchdog. Collective."""
        node = self.node()
        table = shared_status_table(node, self.size)
        neighbours = node.allgather_object(self.rank)
        self.heartbeat.line = table.line(self.rank)
        self._watchdog = Watchdog(table, self.rank, self.hosts, neighbours, lambda: self.abort(1))
        self._watchdog.start()
        atexit.register(self._watchdog.leave)

    def watch(self, limit: float, stacks: bool = False) -> None:
        if self._watchdog is not None:
            self._watchdog.limit, self._watchdog.stacks = limit, stacks

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

    def node(self) -> Communicator:
        if self._node is None:
            self.enter(_SPLIT)
            group = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED, key=self.rank)
            self.exit()
            self._node = MPICommunicator(group, [self.hosts[self.rank]] * group.size, self.heartbeat)
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

    def abort_on_unhandled_errors(self) -> None:
        """Have an unhandled exception end all ranks, which would otherwise wait for this one."""
        faulthandler.enable(all_threads=False)

        def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            if isinstance(error, DistsgdError):
                # Most are raised on all ranks, and rank 0 reports them. Another rank reports what rank 0 didn't raise.
                if self.rank != 0:
                    time.sleep(_ROOT_REPORTS_FIRST)
                report_error(error)
                self.abort(error.exit_status)
                return  # MPI_Abort may return
            text = "".join(traceback.format_exception(kind, error, trace))
            host = self.hosts[self.rank]
            if not report_to_launcher(
                "raised", rank=self.rank, host=host, error=f"{kind.__name__}: {error}", text=text
            ):
                say_lines(f"rank {self.rank} on {host}:\n{text}", sys.stderr)
            self.abort(1)

        def thread_hook(arguments: threading.ExceptHookArgs) -> None:
            if isinstance(arguments.exc_value, DistsgdError):  # of fit, called by a thread of the user's
                hook(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
            else:
                threading.__excepthook__(arguments)

        sys.excepthook, threading.excepthook = hook, thread_hook
