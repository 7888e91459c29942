"""How ranks talk to each other, and how gradients are added in a fixed order whatever their number."""

from __future__ import annotations

from distsgd.communication.base import Communicator
from distsgd.processes import print_stacks_when_asked
from distsgd.runtime import launcher_size

__all__ = ["Communicator", "start"]


def start() -> Communicator:
    """The communicator of this run: MPI where a launcher started the process, else this process alone.

    MPI is not even imported without a launcher, for on a login node that may abort.
    """
    print_stacks_when_asked()
    size = launcher_size()
    if size is None:
        from distsgd.communication.serial import SerialCommunicator

        return SerialCommunicator()
    from distsgd.communication.mpi import MPICommunicator

    communicator = MPICommunicator.world(size)
    communicator.abort_on_unhandled_errors()
    return communicator
