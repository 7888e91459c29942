"""What there is of GPUs, as `python -m distsgd.doctor` prints it."""

from __future__ import annotations

from pathlib import Path

from distsgd.gpu.choose_transport import between_gpus
from distsgd.gpu.cuda_aware import takes_device_memory
from distsgd.gpu.devices import device_of_rank
from distsgd.parallel.communicator import Communicator

_MPI = {
    True: "takes GPU memory",
    False: "doesn't take GPU memory",
    None: "doesn't report whether it takes GPU memory",
}


def report(communicator: Communicator) -> list[tuple[str, str]]:
    """The lines, each with its name: the GPUs of all hosts, and what `--device auto` comes to. Collective."""
    kinds = ", ".join(dict.fromkeys(filter(None, communicator.allgather_object(gpus()))))
    aware = takes_device_memory(communicator.transport)
    return [("gpu", describe_gpus(kinds, aware)), ("device", describe_device(communicator))]


def describe_gpus(kinds: str, aware: bool | None) -> str:
    """The line about these GPUs, and whether MPI takes their memory."""
    return f"{kinds}; MPI {_MPI[aware]}" if kinds else "none on these hosts"


def describe_device(communicator: Communicator) -> str:
    """What `--device auto` comes to on all ranks, and how gradients travel between GPUs. Collective."""
    device, notes = device_of_rank(communicator, "auto")
    found = dict.fromkeys(communicator.allgather_object(str(device)))
    if not device.host_memory and communicator.size > 1:
        transport, why = between_gpus(communicator, device, "auto")
        notes = [*notes, why or f"gradients travel {transport.description}"]
    return "; ".join([f"auto is {', '.join(found)}", *notes])


def gpus(devices: Path = Path("/dev")) -> str:
    """The GPUs of this host as text; empty where there are none."""
    nvidia = [path for path in devices.glob("nvidia*") if path.name.removeprefix("nvidia").isdecimal()]
    amd = list(devices.glob("dri/renderD*")) if (devices / "kfd").exists() else []
    found = [f"{len(paths)} of {maker}" for paths, maker in ((nvidia, "NVIDIA"), (amd, "AMD")) if paths]
    return " and ".join(found)
