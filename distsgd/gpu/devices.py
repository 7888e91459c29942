"""The choice of a device for each rank."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from distsgd.core.components import suggestion
from distsgd.core.device import CPU, FULL, Device, has_cupy, register_arrays
from distsgd.core.errors import ConfigurationError, first_line, pip_install
from distsgd.core.kernels import register
from distsgd.gpu.device import GPU
from distsgd.gpu.self_check import problem_of
from distsgd.parallel.communicator import Communicator

DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg")
"""One of these is there where Linux, or Linux under Windows, has NVIDIA's driver."""


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


def choose_device(name: str, local_rank: int = 0) -> tuple[Device, str | None]:
    """(the device called `name` for this rank, why there is no GPU under `auto` where CuPy is installed).

    name         cpu; gpu:N for GPU number N; gpu for one by the rank's number on its host, in turn; auto for that, or
                 the CPU where no GPU can be used
    local_rank   the rank's number on its host

    Raises ConfigurationError for any other name, and for a GPU that isn't available.
    """
    found = re.fullmatch(r"cpu|auto|gpu(?::(\d{1,4}))?", name)
    if found is None:
        own = name.lower().replace("cuda:", "gpu:")
        near = suggestion(own, ("auto", "cpu", "gpu", *re.findall(r"^gpu:\d{1,4}$", own)))
        raise ConfigurationError(f"device: expected auto, cpu, gpu or gpu:N such as gpu:1, got {name!r}{near}")
    if name == "cpu" or (name == "auto" and not has_cupy()):
        return CPU, None
    cupy, problem = load_cupy()
    if cupy is not None:
        count = gpu_count(cupy)
        index = int(found[1]) if found[1] else local_rank % count
        if index >= count:
            there = "gpu:0 alone" if count == 1 else f"gpu:0 to gpu:{count - 1}"
            raise ConfigurationError(f"device {name}: this host has {there}")
        try:
            return _opened(cupy, index), None
        except Exception as error:  # another process may have it to itself, or have left no memory
            problem = f"gpu:{index} can't be used ({first_line(error)})"
    return _cpu_instead(name, problem)


def _cpu_instead(name: str, problem: str) -> tuple[Device, str]:
    """(the CPU, why no GPU) under `auto`. Raises ConfigurationError where `name` asks for a GPU."""
    if name == "auto":
        return CPU, problem
    raise ConfigurationError(f"device {name}: {problem}; use --device cpu to compute without")


def _opened(cupy: Any, index: int) -> GPU:
    """GPU number `index`, in use by this thread: where CUDA makes what a process needs on it."""
    from distsgd.gpu import kernels

    register_arrays(cupy.ndarray, cupy)
    register(cupy.ndarray, kernels)
    kind = cupy.cuda.runtime.getDeviceProperties(index)["name"]
    bus = str(cupy.cuda.runtime.deviceGetPCIBusId(index))
    description = kind.decode() if isinstance(kind, bytes) else str(kind)
    device = GPU(f"gpu:{index}", cupy, description, bus, index=index)
    device.use()
    return device


def gpu_count(cupy: Any) -> int:
    """GPUs of this host that CUDA shows to this process."""
    return int(cupy.cuda.runtime.getDeviceCount())


def how_to_install() -> str:
    """The command that installs CuPy and NCCL."""
    return f"{pip_install('cuda13')}, or 'distsgd[cuda12]' for a driver of CUDA 12"


def load_cupy() -> tuple[Any, str]:
    """(CuPy, "") where it can use a GPU, else (None, why it can't). Imported last: it takes a second."""
    if not has_cupy():
        return None, f"CuPy isn't installed ({how_to_install()})"
    if sys.platform == "linux" and not any(Path(name).exists() for name in DRIVER_FILES):
        return None, "CuPy is installed, but this host has no NVIDIA driver"
    try:
        import cupy

        if gpu_count(cupy) < 1:
            return None, "CuPy is installed, but CUDA shows no GPU to this process"
        cupy.cuda.nvrtc.getVersion()
    except Exception as error:  # whatever the driver, the libraries and their versions come up with
        return None, f"CuPy is installed, but can't use CUDA ({first_line(error)}); {how_to_install()}"
    return cupy, ""


def _checked(name: str, local_rank: int, precision: str) -> tuple[Device, str | None]:
    """As choose_device; a GPU that doesn't compile the kernels, or computes other numbers than the CPU, is none."""
    device, problem = choose_device(name, local_rank)
    if device.host_memory:
        return device, problem
    device = device.multiplying_in(precision)
    wrong = problem_of(device)
    return (device, None) if wrong is None else _cpu_instead(name, wrong)


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
