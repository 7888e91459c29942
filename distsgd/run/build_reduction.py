"""The gradient reduction that fits the ranks of a run."""

from __future__ import annotations

from distsgd.core.errors import ConfigurationError
from distsgd.parallel import Communicator
from distsgd.parallel.reduction import GradientReduction, LocalReduction, Plan
from distsgd.parallel.serial import SerialCommunicator
from distsgd.parallel.transport import Transport


def make_reduction(communicator: Communicator, plan: Plan, communication: str) -> tuple[GradientReduction, str | None]:
    """(the reduction that fits these ranks, a line to print where it isn't the one hoped for). Collective.

    communication   shared: a replica a node, and none other; mpi: a replica a rank; auto: shared where that is
                    possible; of ranks on GPUs, see `between_gpus`
    """
    groups = plan.partition.wire_groups
    if not groups:
        return _exact(communicator, plan, communication, communicator.transport)
    if not plan.device.host_memory:
        raise ConfigurationError(
            f"wire bfloat16: rounds in the host's memory, and this run computes on {plan.device.name}; give --device "
            "cpu, or leave it out"
        )
    from distsgd.parallel.bfloat16 import BFloat16Transport
    from distsgd.parallel.rounded_reduction import RoundedReduction, with_unrounded

    transport = BFloat16Transport(communicator.transport, communicator.rank)
    inner, note = _exact(communicator, with_unrounded(plan), communication, transport)
    return RoundedReduction(inner), note


def _exact(
    communicator: Communicator, plan: Plan, communication: str, transport: Transport
) -> tuple[GradientReduction, str | None]:
    """As `make_reduction`, without any rounding of its own; `transport` sends arrays of the host's memory."""
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

        of_gpus, note = between_gpus(communicator, plan.device, communication)
        return MessageReduction(communicator, plan, apart, of_gpus), note
    if communication == "mpi":
        return MessageReduction(communicator, plan, apart, transport), None
    try:
        if len(set(communicator.hosts)) == 1:
            return SharedReduction(communicator, plan), None
        return MessageReduction(communicator, plan, communicator.node(), transport), None
    except NotShared as host:
        if communication == "shared":
            raise ConfigurationError(f"communication: ranks can't share memory on {host}; use auto or mpi") from None
        note = f"no shared memory on {host}: gradients travel in messages"
    return MessageReduction(communicator, plan, apart, transport), note
