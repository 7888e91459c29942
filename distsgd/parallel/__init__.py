"""How ranks talk to each other, and how gradients are added in a fixed order whatever their number."""

from __future__ import annotations

import sys
from typing import Any

from distsgd.core.errors import ConfigurationError
from distsgd.core.processes import print_stacks_when_asked
from distsgd.core.runtime import launcher_size
from distsgd.parallel.communicator import Communicator

__all__ = ["Communicator", "is_mpi4pys", "of_mpi4py", "start"]


def start() -> Communicator:
    """The communicator of this run: MPI where a launcher started the process, else this process alone.

    MPI is not even imported without a launcher, for on a login node that may abort.
    """
    print_stacks_when_asked()
    size = launcher_size()
    if size is None:
        from distsgd.parallel.serial import SerialCommunicator

        return SerialCommunicator()
    from distsgd.parallel.mpi import MPICommunicator

    communicator = MPICommunicator.world(size)
    communicator.abort_on_unhandled_errors()
    return communicator


def is_mpi4pys(group: Any) -> bool:
    """Whether this is a communicator of mpi4py's. It isn't imported for that."""
    mpi = sys.modules.get("mpi4py.MPI")
    return mpi is not None and isinstance(group, mpi.Comm)


def of_mpi4py(group: Any) -> Communicator:
    """The ranks of a communicator of mpi4py's, such as MPI.COMM_WORLD.Split(color). Collective over them.

    Raises ConfigurationError for MPI.COMM_NULL, and for one that joins two groups.
    """
    from distsgd.parallel.mpi import MPICommunicator

    if not group or group.Is_inter():
        raise ConfigurationError(
            "communicator: expected a group that this process belongs to, got MPI.COMM_NULL or one that joins two "
            "groups; call fit on the members of one group"
        )
    print_stacks_when_asked()
    return MPICommunicator.of(group)
