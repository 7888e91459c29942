"""Communicators, shared memory and gradient reductions: sums in one fixed order on any number of ranks."""

from __future__ import annotations

import sys
from typing import Any

from distsgd.core.errors import ConfigurationError
from distsgd.core.processes import print_stacks_when_asked
from distsgd.core.runtime import launcher_size
from distsgd.parallel.communicator import Communicator

__all__ = ["Communicator", "is_mpi4pys", "of_mpi4py", "start"]


def start() -> Communicator:
    """Return the communicator of this run: MPI where a launcher started the process, else this process alone.

    Without a launcher, MPI isn't imported: on a login node, importing it may abort the process.
    """
    print_stacks_when_asked()
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
    print_stacks_when_asked()
    return of(group)
