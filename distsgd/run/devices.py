"""The device that a run or a trained model computes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from distsgd.core.device import CPU, Device, may_be_gpu
from distsgd.core.errors import ConfigurationError, lack_of_memory
from distsgd.nn.objective import Objective
from distsgd.parallel import Communicator


def device_for(communicator: Communicator, name: str, precision: str) -> tuple[Device, list[str]]:
    """(this rank's device by `--device` and `--precision`, lines to print, the same on every rank). Collective.

    Nothing of gpu/ is imported where no rank can have a GPU.
    """
    if not any(communicator.allgather_object(may_be_gpu(name))):
        return CPU.multiplying_in(precision), []
    from distsgd.gpu.devices import device_of_rank

    return device_of_rank(communicator, name, precision)


def check_computes(device: Device, objective: Objective) -> None:
    """Raises ConfigurationError where a model can't compute on this device."""
    if objective.inputs_as_stored and not device.host_memory:
        raise ConfigurationError(f"device {device.name}: this model computes on the CPU alone; give --device cpu")


@contextmanager
def short_of_memory(what: str, device: Device) -> Iterator[None]:
    """Where the memory of a GPU is too small for what is done inside: OutOfMemoryError, with one sentence."""
    try:
        yield
    except Exception as error:
        lack = None if device.host_memory else lack_of_memory(error, f"{what} on {device}")
        if lack is None:
            raise
        raise lack from None
