"""How MPI processes become ranks: mpi4py loaded, processes ranked by host, the watchdog started."""

from __future__ import annotations

import atexit
import os
import platform
import warnings
from typing import Any

from distsgd.core.errors import LauncherError, pip_install
from distsgd.core.output import report_to_launcher
from distsgd.core.processes import die_with_parent
from distsgd.core.status_table import private_heartbeat
from distsgd.parallel.arrival import wait_for_all
from distsgd.parallel.communicator import Communicator
from distsgd.parallel.launchers import library_path, mismatch
from distsgd.parallel.mpi import MPICommunicator
from distsgd.parallel.shared_memory import shared_status_table
from distsgd.parallel.unhandled import end_all_at_an_unhandled_end
from distsgd.parallel.watchdog import Watchdog

_RANKS_IN_A_MESSAGE = 40  # a message longer than a pipe's 4,096 bytes may be mixed with another rank's


def load_mpi() -> Any:
    """mpi4py's module. Raises LauncherError where there is none, or no library for it."""
    try:
        with warnings.catch_warnings():  # a launcher that doesn't match the library is reported once, below
            warnings.filterwarnings("ignore", "suspicious MPI", RuntimeWarning)
            from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError where mpi4py finds no MPI library
        reason = str(error).splitlines()[0]
        raise LauncherError(
            f"an MPI launcher started this process, but mpi4py could not load an MPI library ({reason}); "
            f"load the cluster's MPI module, or install one with: {pip_install('mpich')}"
        ) from None
    return MPI


_groups: set[Communicator] = set()
"""Those that `of` has made and `release` has not freed."""


def world(expected_size: int | None, limit: float | None = None) -> MPICommunicator:
    """All processes of this run, ranked by (node, rank on the node) whatever order the launcher gave them.

    Raises LauncherError where the launcher started `expected_size` processes and MPI sees another number.
    """
    die_with_parent()
    mpi = load_mpi()
    comm = mpi.COMM_WORLD
    if expected_size is not None and comm.size != expected_size:
        version, library = mpi.Get_library_version(), library_path()
        raise LauncherError(mismatch(expected_size, comm.size, version, library, os.environ))
    communicator, rank_table = _ranked(mpi, comm, limit)
    if communicator.is_root:
        for first in range(0, len(rank_table), _RANKS_IN_A_MESSAGE):
            report_to_launcher("rank_table", first=first, ranks=rank_table[first : first + _RANKS_IN_A_MESSAGE])
    return communicator


def of(comm: Any, limit: float | None = None) -> MPICommunicator:
    """A communicator of an mpi4py communicator's processes, to be freed by `release`. Collective over them."""
    die_with_parent()
    made, _ = _ranked(load_mpi(), comm, limit)
    _groups.add(made)
    return made


def release(communicator: Communicator) -> None:
    """Free what `of` has made, whose ranks then wait for no other; any other communicator stays. Collective.

    An MPI library has a small number of communicators, such as 2,048.
    """
    if communicator not in _groups or not isinstance(communicator, MPICommunicator):
        return
    _groups.discard(communicator)
    if communicator.watchdog is not None:
        atexit.unregister(communicator.watchdog.leave)
        communicator.watchdog.stop()
    communicator.node().transport.mpi.Free()
    communicator.transport.mpi.Free()


def _ranked(mpi: Any, comm: Any, limit: float | None) -> tuple[MPICommunicator, list[tuple[int, str, int]]]:
    """(these processes, ranked by host; the rank in `comm`, the host and the process of each)."""
    wait_for_all(mpi, comm, limit)
    processes = comm.allgather((platform.node(), os.getpid()))
    names = [host for host, _ in processes]
    first_of_host = {host: names.index(host) for host in names}
    order = sorted(range(comm.size), key=lambda rank: (first_of_host[names[rank]], rank))
    group = comm.Split(0, order.index(comm.rank))
    communicator = MPICommunicator(mpi, group, [names[rank] for rank in order], private_heartbeat())
    _begin_watch(communicator)
    return communicator, [(rank, *processes[rank]) for rank in order]


def _begin_watch(communicator: MPICommunicator) -> None:
    """Start the watchdog. Collective."""
    node, rank = communicator.node(), communicator.rank
    table = shared_status_table(node, communicator.size)
    neighbours = node.allgather_object(rank)
    communicator.heartbeat.line = table.line(rank)
    watchdog = Watchdog(table, rank, communicator.hosts, neighbours, lambda: communicator.abort(1))
    watchdog.start()
    atexit.register(watchdog.leave)
    end_all_at_an_unhandled_end(communicator)
    communicator.watchdog = watchdog
