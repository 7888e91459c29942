"""Chooses the gradient reduction that fits the ranks of a run and their devices."""

from __future__ import annotations

from distsgd.core.errors import ConfigurationError
from distsgd.parallel.communicator import Communicator
from distsgd.parallel.reduction import GradientReduction, LocalReduction, Plan
from distsgd.parallel.serial import SerialCommunicator


def make_reduction(communicator: Communicator, plan: Plan, communication: str) -> tuple[GradientReduction, str | None]:
    """(the reduction that fits these ranks, a line to print where it isn't the one hoped for). Collective.

    communication   shared: a replica a node, and none other; mpi: a replica a rank; auto: shared where that is
                    possible; of ranks on GPUs, see `between_gpus`
    """
    apart = SerialCommunicator()
    if plan.device.host_memory and communication == "nccl":
        raise ConfigurationError("communication nccl: NCCL joins GPUs, and this run computes on the CPU; use auto")
    if communicator.size == 1:
        return LocalReduction(communicator, plan), None
    from distsgd.parallel.message_reduction import MessageReduction
    from distsgd.parallel.shared_memory import NotShared
    from distsgd.parallel.shared_reduction import SharedReduction

    if not plan.device.host_memory:
        from distsgd.gpu.choose_transport import between_gpus

        transport, note = between_gpus(communicator, plan.device, communication)
        return MessageReduction(communicator, plan, apart, transport), note
    if communication == "mpi":
        return MessageReduction(communicator, plan, apart), None
    try:
        if len(set(communicator.hosts)) == 1:
            return SharedReduction(communicator, plan), None
        return MessageReduction(communicator, plan, communicator.node()), None
    except NotShared as host:
        if communication == "shared":
            raise ConfigurationError(f"communication: ranks can't share memory on {host}; use auto or mpi") from None
        note = f"no shared memory on {host}: gradients travel in messages"
    return MessageReduction(communicator, plan, apart), note
