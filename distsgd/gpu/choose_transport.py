"""By which way arrays go from GPU to GPU: NCCL, an MPI library that takes GPU memory, or memory of the host."""

from __future__ import annotations

import numpy as np

from distsgd.core.device import Device, to_host
from distsgd.core.errors import ConfigurationError, DistsgdError, first_line
from distsgd.gpu.cuda_aware import DirectCommunicator
from distsgd.gpu.nccl import NcclCommunicator, open_nccl
from distsgd.gpu.pinned_memory import StagedCommunicator
from distsgd.parallel.communicator import Communicator, Parts

_WORD = np.dtype(np.int32)


def between_gpus(communicator: Communicator, device: Device, communication: str) -> tuple[Communicator, str | None]:
    """(a communicator for arrays on `device`, why it is not NCCL's under `auto`), alike on all ranks. Collective.

    communication   nccl: that, or an error; mpi: MPI, with GPU memory where the library says that it takes it; auto:
                    the first of these three ways that all ranks have

    Raises ConfigurationError, on all ranks, for what isn't to be had.
    """
    if communication == "shared":
        raise ConfigurationError("communication: ranks on GPUs have a replica each and can't share one; use auto")
    why = "--communication mpi goes without NCCL"
    if communication != "mpi":
        found, why = _nccl(communicator, device)
        if found is not None:
            return found, None
    if communication == "nccl":
        raise ConfigurationError(f"communication nccl: {why}; use auto or mpi")
    way = _mpi(communicator, device)
    return way, None if communication == "mpi" else f"gradients travel {way.way}: {why}"


def _nccl(communicator: Communicator, device: Device) -> tuple[NcclCommunicator | None, str]:
    found, why = open_nccl(communicator, device)
    if found is None:
        return None, why
    problem = _try(found)
    if problem:
        found.close()
        return None, f"NCCL did not pass a trial ({problem})"
    return found, ""


def _mpi(communicator: Communicator, device: Device) -> Communicator:
    """Straight to MPI where the library of every rank says that it takes GPU memory, and does."""
    if all(communicator.allgather_object(communicator.takes_gpu_memory() is True)):
        direct = DirectCommunicator(communicator, device)
        if not _try(direct):
            return direct
    return StagedCommunicator(communicator, device)


def _try(communicator: NcclCommunicator | DirectCommunicator) -> str:
    """What is wrong with messages by this way, empty where all arrive: libraries say yes, and a machine's setting of
    PCI or of /dev/shm says no at the first message. Collective."""
    device, size, width = communicator.device, communicator.size, _WORD.itemsize
    parts = Parts.consecutive([width] * size)
    problem = ""
    try:
        send = device.put(communicator.rank * size + np.arange(size, dtype=_WORD))
        receive = device.put(np.full(size, -1, _WORD))
        communicator.alltoall(send.view(np.uint8), parts, receive.view(np.uint8), parts)
        # The other kinds of messages, too: a library connects at the first of a kind, which isn't for a recorded step.
        own = np.zeros(size, _WORD)
        own[communicator.rank] = communicator.rank + 1
        gathered, told = device.put(own), device.put(np.full(1, communicator.rank, _WORD))
        communicator.allgather_slices(gathered, [1] * size)
        communicator.broadcast(told)
        communicator.synchronize()
        arrived = to_host(receive).tolist() + to_host(gathered).tolist() + to_host(told).tolist()
        if arrived != [rank * size + communicator.rank for rank in range(size)] + [*range(1, size + 1), 0]:
            problem = "it delivered other numbers than were sent"
    except (DistsgdError, RuntimeError) as error:
        problem = first_line(error)
    problems = communicator.allgather_object(problem)
    return next((f"rank {rank}: {one}" for rank, one in enumerate(problems) if one), "")
