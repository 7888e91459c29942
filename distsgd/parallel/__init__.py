"""Communicators, shared memory and gradient reductions: sums in one fixed order on any number of ranks."""

from __future__ import annotations

import sys
import threading
from typing import Any

from distsgd.core.errors import ConfigurationError
from distsgd.core.processes import open_closed_streams
from distsgd.core.runtime import launcher_size
from distsgd.parallel.communicator import Communicator

__all__ = [
    "Communicator", "check_communicator", "communicator_for", "communicator_of_this_run", "is_mpi4pys", "is_root",
    "of_mpi4py", "rank", "release", "size", "start",
]  # fmt: skip

_communicators: list[Communicator] = []
_starting = threading.Lock()


def start(limit: float | None = None) -> Communicator:
    """Return the communicator of this run: MPI where a launcher started the process, else this process alone.

    Without a launcher, MPI isn't imported: on a login node, importing it may abort the process.
    """
    open_closed_streams()  # before MPI and the run open files
    size = launcher_size()
    if size is None:
        from distsgd.parallel.serial import SerialCommunicator

        return SerialCommunicator()
    from distsgd.parallel.mpi_start import world

    return world(size, limit)


def is_mpi4pys(group: Any) -> bool:
    """Whether this is an mpi4py communicator; doesn't import mpi4py."""
    mpi = sys.modules.get("mpi4py.MPI")
    return mpi is not None and isinstance(group, mpi.Comm)


def of_mpi4py(group: Any, limit: float | None = None) -> Communicator:
    """Return a communicator of an mpi4py communicator's ranks, to be given to `release`. Collective over them.

    Parameters
    ----------
    group
        An mpi4py intracommunicator, such as `MPI.COMM_WORLD.Split(color)`.
    limit
        Seconds that ranks wait for the others to come, 0 for ever.

    Raises
    ------
    ConfigurationError
        For MPI.COMM_NULL, for an intercommunicator, and in a process that was forked from a rank.
    """
    if not group or group.Is_inter():
        raise ConfigurationError(
            "communicator: expected a group that this process belongs to, got MPI.COMM_NULL or one that joins two "
            "groups; call fit on the members of one group"
        )
    from distsgd.parallel.membership import is_forked

    if is_forked():
        raise ConfigurationError(
            "communicator: this process was forked from another one, and a forked process can't use MPI; leave "
            'communicator out, or give "self", to train in this process alone'
        )
    if group.size == 1:
        from distsgd.parallel.serial import SerialCommunicator

        return SerialCommunicator()
    from distsgd.parallel.mpi_start import of

    return of(group, limit)


def communicator_for(given: Any, limit: float | None = None) -> Communicator:
    """Return the communicator that `communicator=given` names, to be given to `release`. Collective over its ranks.

    For what is no communicator it is this run's, so that all ranks can raise what `check_communicator` raises.

    Parameters
    ----------
    given
        None for all ranks of this run, "self" for this process alone, a communicator of distsgd's or of mpi4py's.
    limit
        Seconds that ranks wait for the others to come, 0 for ever; None for the default.
    """
    if isinstance(given, Communicator):
        return given
    if isinstance(given, str) and given == "self":
        from distsgd.parallel.serial import SerialCommunicator

        return SerialCommunicator()
    if is_mpi4pys(given):
        is_world = given == sys.modules["mpi4py.MPI"].COMM_WORLD and launcher_size() == given.size
        from distsgd.parallel.membership import is_forked

        if not is_world or is_forked():
            return of_mpi4py(given, limit)
    return communicator_of_this_run(limit)


def check_communicator(given: Any, of: str = "fit") -> None:
    """Raise ConfigurationError, which begins with `of`, for what `communicator_for` can't take."""
    if isinstance(given, str) and given != "self":
        raise ConfigurationError(f'{of}: communicator: "self" is the only one with a name, got {given!r}')
    if not (given is None or isinstance(given, Communicator | str) or is_mpi4pys(given)):
        raise ConfigurationError(f"{of}: communicator must be one of mpi4py's, or None, got {type(given).__name__}")


def release(communicator: Communicator) -> None:
    """Free what `communicator_for` has made for a group of ranks; others stay. Collective over them."""
    started = sys.modules.get("distsgd.parallel.mpi_start")
    if started is not None:
        started.release(communicator)


def communicator_of_this_run(limit: float | None = None) -> Communicator:
    """Return the communicator that all calls of fit in this process share.

    A process that a rank has started, and a task of mpi4py.futures, is none of the ranks, and has one of its own.
    """
    if launcher_size() is not None:
        from distsgd.parallel.membership import works_for_a_rank

        if works_for_a_rank():
            from distsgd.parallel.serial import SerialCommunicator

            return SerialCommunicator()
    with _starting:
        if not _communicators:
            _communicators.append(start(limit))
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
