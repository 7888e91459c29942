"""The choice of a device for each rank."""

from __future__ import annotations

from distsgd.core.device import CPU, FULL, Device, choose_device
from distsgd.core.errors import ConfigurationError
from distsgd.core.kernels import register
from distsgd.gpu.self_check import problem_of
from distsgd.parallel.communicator import Communicator


def device_of_rank(communicator: Communicator, name: str, precision: str = FULL) -> tuple[Device, list[str]]:
    """(this rank's device by `--device` and `--precision`, lines to print, the same on every rank). Collective.

    The ranks of a host take its GPUs in turn. All ranks compute on the same kind of device: under `auto` on the CPU
    where one rank has no GPU. Raises ConfigurationError, on all ranks, where `name` asks for a missing device.
    """
    local_rank = communicator.node().rank
    device, problem = communicator.everywhere(lambda: _checked(name, local_rank, precision))
    host = communicator.hosts[communicator.rank]
    everyone = communicator.allgather_object((host, device.bus or device.name, device.description, problem))
    without = [where for where, gpu, _, _ in everyone if gpu == CPU.name]
    if without:
        reasons = [why for _, _, _, why in everyone if why]
        if not reasons and len(without) < len(everyone):
            reasons = [f"{without[0]} has no CuPy, other hosts have"]
        return CPU.multiplying_in(precision), [f"device auto computes on the CPU: {why}" for why in reasons[:1]]
    return device, _warnings([(where, gpu, kind) for where, gpu, kind, _ in everyone])


def open_device(name: str, local_rank: int = 0) -> tuple[Device, str | None]:
    """As choose_device; a GPU's arrays have their kernels then."""
    device, problem = choose_device(name, local_rank)
    if not device.is_cpu:
        from distsgd.gpu import kernels

        register(device.xp.ndarray, kernels)
    return device, problem


def _checked(name: str, local_rank: int, precision: str) -> tuple[Device, str | None]:
    """As open_device; a GPU that doesn't compile the kernels, or computes other numbers than the CPU, is none."""
    device, problem = open_device(name, local_rank)
    if device.is_cpu:
        return device, problem
    device = device.multiplying_in(precision)
    wrong = problem_of(device)
    if wrong is None:
        return device, None
    if name == "auto":
        return CPU, wrong
    raise ConfigurationError(f"device {name}: {wrong}; use --device cpu to compute without")


def _warnings(ranks: list[tuple[str, str, str]]) -> list[str]:
    """Warnings about the ranks' GPUs, from (host, bus address, kind) of each rank."""
    found = []
    for host in dict.fromkeys(where for where, _, _ in ranks):
        used = [gpu for where, gpu, _ in ranks if where == host]
        if len(set(used)) < len(used):
            found.append(f"warning: {host}: {len(used)} ranks share {len(set(used))} GPU(s); one rank a GPU is faster")
    kinds = list(dict.fromkeys(kind for _, _, kind in ranks))
    if len(kinds) > 1:
        found.append(
            f"warning: the GPUs differ ({', '.join(kinds)}) and may compute other bits; replicas agree, but another "
            "number of ranks may give other results"
        )
    return found
