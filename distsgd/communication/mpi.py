"""Ranks as MPI processes, through mpi4py; imported only where a launcher has started them."""

from __future__ import annotations

import faulthandler
import os
import platform
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeVar

from distsgd.communication.base import Communicator
from distsgd.device import Array
from distsgd.errors import DistsgdError, LauncherError
from distsgd.launchers import library_path, mismatch
from distsgd.output import say

T = TypeVar("T")
_RANK_0_SPEAKS_FIRST = 1.0  # seconds


def _load_mpi() -> Any:
    try:
        with warnings.catch_warnings():  # of a launcher that doesn't fit: what is done about it is said once, below
            warnings.filterwarnings("ignore", "suspicious MPI", RuntimeWarning)
            from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError where mpi4py finds no MPI library
        reason = str(error).splitlines()[0]
        raise LauncherError(
            f"an MPI launcher started this process, but mpi4py could not load an MPI library ({reason}); "
            "load the cluster's MPI module, or install one with: pip install '.[mpich]' in distsgd's folder"
        ) from None
    return MPI


class MPICommunicator(Communicator):
    """A group of MPI processes."""

    def __init__(self, comm: Any, hosts: Sequence[str]) -> None:
        self._comm = comm
        self.rank, self.size, self.hosts = comm.rank, comm.size, tuple(hosts)
        self._node: Communicator | None = None
        self._mpi = _load_mpi()

    @classmethod
    def world(cls, expected_size: int | None) -> MPICommunicator:
        """All processes of this run, ranked by (node, place on the node) whatever order the launcher gave them.

        Raises LauncherError where the launcher started `expected_size` processes and MPI sees another number.
        """
        mpi = _load_mpi()
        comm = mpi.COMM_WORLD
        if expected_size is not None and comm.size != expected_size:
            version, library = mpi.Get_library_version(), library_path()
            raise LauncherError(mismatch(expected_size, comm.size, version, library, os.environ))
        names = comm.allgather(platform.node())
        first_of_host = {host: names.index(host) for host in names}
        order = sorted(range(comm.size), key=lambda rank: (first_of_host[names[rank]], rank))
        group = comm.Split(0, order.index(comm.rank))
        return cls(group, [names[rank] for rank in order])

    def broadcast_object(self, value: T, root: int = 0) -> T:
        received = self._comm.bcast(value, root=root)
        return value if self.rank == root else received  # root's own object, which need not pickle whole

    def allgather_object(self, value: T) -> list[T]:
        return self._comm.allgather(value)  # type: ignore[no-any-return]

    def gather_object(self, value: T) -> list[T] | None:
        return self._comm.gather(value, root=0)  # type: ignore[no-any-return]

    def broadcast(self, array: Array) -> None:
        self._comm.Bcast(array, root=0)

    def alltoall(self, send: Array, send_counts: Sequence[int], receive: Array, receive_counts: Sequence[int]) -> None:
        byte = self._mpi.BYTE
        self._comm.Alltoallv([send, send_counts, byte], [receive, receive_counts, byte])

    def allgather_slices(self, flat: Array, counts: Sequence[int]) -> None:
        width = flat.itemsize
        sizes = [count * width for count in counts]
        self._comm.Allgatherv(self._mpi.IN_PLACE, [flat.view("u1"), sizes, self._mpi.BYTE])

    def barrier(self) -> None:
        self._comm.Barrier()

    def node(self) -> Communicator:
        if self._node is None:
            group = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED, key=self.rank)
            self._node = MPICommunicator(group, [self.hosts[self.rank]] * group.size)
        return self._node

    def abort(self, status: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self._mpi.COMM_WORLD.Abort(status)

    def abort_on_unhandled_errors(self) -> None:
        """From now on an exception that nobody handles ends all ranks, which would otherwise wait for this one."""
        faulthandler.enable()

        def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            if isinstance(error, DistsgdError):
                # Most are raised on all ranks: rank 0 speaks for them. One that isn't is told by its own rank.
                if self.rank != 0:
                    time.sleep(_RANK_0_SPEAKS_FIRST)
                say(f"distsgd: error: {error}", sys.stderr)
                self.abort(error.exit_status)
            text = "".join(traceback.format_exception(kind, error, trace))
            say(f"rank {self.rank} on {self.hosts[self.rank]}:\n{text}", sys.stderr)
            self.abort(1)

        sys.excepthook = hook
