"""How MPI processes become ranks: mpi4py loaded, processes ranked by host, the watchdog started; and how they end."""

from __future__ import annotations

import atexit
import faulthandler
import os
import platform
import sys
import threading
import time
import traceback
import warnings
from functools import cache
from types import TracebackType
from typing import Any

from distsgd.core.errors import DistsgdError, LauncherError, pip_install
from distsgd.core.output import report_error, report_to_launcher, say_lines
from distsgd.core.processes import die_with_parent
from distsgd.core.status_table import private_heartbeat
from distsgd.parallel.launchers import library_path, mismatch
from distsgd.parallel.mpi import MPICommunicator
from distsgd.parallel.shared_memory import shared_status_table
from distsgd.parallel.watchdog import Watchdog

_ROOT_REPORTS_FIRST = 1.0  # seconds
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


@cache
def _attribute(mpi: Any) -> Any:
    """The key under which an mpi4py communicator keeps its MPICommunicator."""
    return mpi.Comm.Create_keyval()


def world(expected_size: int | None) -> MPICommunicator:
    """All processes of this run, ranked by (node, rank on the node) whatever order the launcher gave them.

    Raises LauncherError where the launcher started `expected_size` processes and MPI sees another number.
    """
    die_with_parent()
    mpi = load_mpi()
    comm = mpi.COMM_WORLD
    if expected_size is not None and comm.size != expected_size:
        version, library = mpi.Get_library_version(), library_path()
        raise LauncherError(mismatch(expected_size, comm.size, version, library, os.environ))
    communicator, rank_table = _ranked(mpi, comm)
    if communicator.is_root:
        for first in range(0, len(rank_table), _RANKS_IN_A_MESSAGE):
            report_to_launcher("rank_table", first=first, ranks=rank_table[first : first + _RANKS_IN_A_MESSAGE])
    abort_on_unhandled_errors(communicator)
    return communicator


def of(comm: Any) -> MPICommunicator:
    """The communicator of an mpi4py communicator's processes. Collective over them.

    It is made once and stored with `comm`: making one takes messages and a thread.
    """
    die_with_parent()
    mpi = load_mpi()
    found = comm.Get_attr(_attribute(mpi))
    if found is None:
        found, _ = _ranked(mpi, comm)
        abort_on_unhandled_errors(found)
        comm.Set_attr(_attribute(mpi), found)
    return found  # type: ignore[no-any-return]


def _ranked(mpi: Any, comm: Any) -> tuple[MPICommunicator, list[tuple[int, str, int]]]:
    """(these processes, ranked by host; the rank in `comm`, the host and the process of each)."""
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
    communicator.watchdog = watchdog


def abort_on_unhandled_errors(communicator: MPICommunicator) -> None:
    """Have an unhandled exception end all ranks, which would otherwise wait for this one."""
    faulthandler.enable(all_threads=False)

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, DistsgdError):
            # Most are raised on all ranks, and rank 0 reports them. Another rank reports what rank 0 didn't raise.
            if communicator.rank != 0:
                time.sleep(_ROOT_REPORTS_FIRST)
            report_error(error)
            communicator.abort(error.exit_status)
            return  # MPI_Abort may return
        text = "".join(traceback.format_exception(kind, error, trace))
        rank, host = communicator.rank, communicator.hosts[communicator.rank]
        if not report_to_launcher("raised", rank=rank, host=host, error=f"{kind.__name__}: {error}", text=text):
            say_lines(f"rank {rank} on {host}:\n{text}", sys.stderr)
        communicator.abort(1)

    def thread_hook(arguments: threading.ExceptHookArgs) -> None:
        if isinstance(arguments.exc_value, DistsgdError):  # of fit, called by a thread of the user's
            hook(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
        else:
            threading.__excepthook__(arguments)

    sys.excepthook, threading.excepthook = hook, thread_hook
