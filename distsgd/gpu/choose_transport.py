"""The choice of the transport between GPUs: NCCL, an MPI library that accepts GPU memory, or host memory."""

from __future__ import annotations

import numpy as np

from distsgd.core.device import Device, to_host
from distsgd.core.errors import ConfigurationError, DistsgdError, first_line
from distsgd.gpu.cuda_aware import DirectTransport, takes_device_memory
from distsgd.gpu.nccl import NcclTransport, open_nccl
from distsgd.gpu.pinned_memory import StagedTransport
from distsgd.parallel.communicator import Communicator
from distsgd.parallel.transport import Parts, Transport

_WORD = np.dtype(np.int32)


def between_gpus(communicator: Communicator, device: Device, communication: str) -> tuple[Transport, str | None]:
    """(a transport of arrays on `device`, why it is not NCCL's under `auto`), alike on all ranks. Collective.

    communication   nccl: NCCL, or an error; mpi: MPI, with GPU memory where the library reports that it accepts it;
                    auto: the first of these three transports that is available on all ranks

    Raises ConfigurationError, on all ranks, for a transport that isn't available.
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
    transport = _mpi(communicator, device)
    return transport, None if communication == "mpi" else f"gradients travel {transport.description}: {why}"


def _nccl(communicator: Communicator, device: Device) -> tuple[NcclTransport | None, str]:
    found, why = open_nccl(communicator, device)
    if found is None:
        return None, why
    problem = _try(found, communicator, device)
    if problem:
        found.close()
        return None, f"NCCL did not pass a trial ({problem})"
    return found, ""


def _mpi(communicator: Communicator, device: Device) -> Transport:
    """GPU memory passed to MPI where every rank's library reports that it accepts it, and does; else host memory."""
    if all(communicator.allgather_object(takes_device_memory(communicator.transport) is True)):
        direct = DirectTransport(communicator, device)
        if not _try(direct, communicator, device):
            return direct
    return StagedTransport(communicator, device)


def _try(transport: Transport, communicator: Communicator, device: Device) -> str:
    """What is wrong with messages of this transport, empty where all arrive. Collective.

    A library may report support, and fail at the first message because of the machine's settings of PCI or /dev/shm.
    """
    size, width = communicator.size, _WORD.itemsize
    parts = Parts.consecutive([width] * size)
    problem = ""
    try:
        send = device.put(communicator.rank * size + np.arange(size, dtype=_WORD))
        receive = device.put(np.full(size, -1, _WORD))
        transport.alltoall(send.view(np.uint8), parts, receive.view(np.uint8), parts)
        # The other collectives, too: a library connects at the first call of each, which a recorded step can't do.
        own = np.zeros(size, _WORD)
        own[communicator.rank] = communicator.rank + 1
        gathered, received = device.put(own), device.put(np.full(1, communicator.rank, _WORD))
        transport.allgather_slices(gathered, [1] * size)
        transport.broadcast(received)
        transport.synchronize()
        arrived = to_host(receive).tolist() + to_host(gathered).tolist() + to_host(received).tolist()
        if arrived != [rank * size + communicator.rank for rank in range(size)] + [*range(1, size + 1), 0]:
            problem = "it delivered other numbers than were sent"
    except (DistsgdError, RuntimeError) as error:
        problem = first_line(error)
    problems = communicator.allgather_object(problem)
    return next((f"rank {rank}: {one}" for rank, one in enumerate(problems) if one), "")
