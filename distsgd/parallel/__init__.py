"""Communicators, shared memory and gradient reductions: sums in one fixed order on any number of ranks."""

from __future__ import annotations

import sys
import threading
from typing import Any

from distsgd.core.errors import ConfigurationError
from distsgd.core.processes import open_closed_streams
from distsgd.core.runtime import launcher_size
from distsgd.parallel.communicator import Communicator

__all__ = ["Communicator", "communicator_of_this_run", "is_mpi4pys", "is_root", "of_mpi4py", "rank", "size", "start"]

_communicators: list[Communicator] = []
_starting = threading.Lock()


def start() -> Communicator:
    """Return the communicator of this run: MPI where a launcher started the process, else this process alone.

    Without a launcher, MPI isn't imported: on a login node, importing it may abort the process.
    """
    open_closed_streams()  # before MPI and the run open files
    size = launcher_size()
    if size is None:
        from distsgd.parallel.serial import SerialCommunicator

        return SerialCommunicator()
    from distsgd.parallel.mpi_start import world

    return world(size)


def is_mpi4pys(group: Any) -> bool:
    """Whether this is an mpi4py communicator; doesn't import mpi4py."""
    mpi = sys.modules.get("mpi4py.MPI")
    return mpi is not None and isinstance(group, mpi.Comm)


def of_mpi4py(group: Any) -> Communicator:
    """Return the communicator of an mpi4py communicator's ranks. Collective over them.

    Parameters
    ----------
    group
        An mpi4py intracommunicator, such as `MPI.COMM_WORLD.Split(color)`.

    Raises
    ------
    ConfigurationError
        For MPI.COMM_NULL, and for an intercommunicator.
    """
    from distsgd.parallel.mpi_start import of

    if not group or group.Is_inter():
        raise ConfigurationError(
            "communicator: expected a group that this process belongs to, got MPI.COMM_NULL or one that joins two "
            "groups; call fit on the members of one group"
        )
    return of(group)


def communicator_of_this_run() -> Communicator:
    """Return the communicator that all calls of fit in this process share."""
    with _starting:
        if not _communicators:
            _communicators.append(start())
        return _communicators[0]


def rank() -> int:
    """This process's number in its job, from 0; 0 without a launcher.

    The first call of `rank`, `size`, `is_root` or `fit` starts MPI where a launcher started the process. That first
    call is collective: all ranks make it.

    Returns
    -------
    int
        From 0 to `size()` - 1.

    Raises
    ------
    LauncherError
        Where the launcher doesn't match the MPI library.

    Examples
    --------
    >>> import distsgd
    >>> distsgd.rank(), distsgd.size(), distsgd.is_root()
    (0, 1, True)
    """
    return communicator_of_this_run().rank


def size() -> int:
    """The number of processes in this job; 1 without a launcher.

    Returns
    -------
    int
        From 1.

    See Also
    --------
    rank : About the first call.
    """
    return communicator_of_this_run().size


def is_root() -> bool:
    """Whether this process is rank 0, which writes files and prints for all; true without a launcher.

    Returns
    -------
    bool
        True on exactly one rank.

    See Also
    --------
    rank : About the first call.

    Examples
    --------
    >>> import distsgd
    >>> if distsgd.is_root():
    ...     print("once, on any number of ranks")
    once, on any number of ranks
    """
    return communicator_of_this_run().is_root
