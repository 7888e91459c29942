"""The device that a run or a trained model computes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from distsgd.core.device import CPU, Array, Device, may_be_gpu
from distsgd.core.errors import ConfigurationError, lack_of_memory
from distsgd.core.layout import Layout, Views
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


def arrays_on(device: Device, params: Mapping[str, Array], state: Mapping[str, Array]) -> tuple[Views, Views]:
    """A model's arrays on the device: the host's own, or copies, each kind in one buffer, as in training.

    Raises OutOfMemoryError where there is no room for them.
    """
    if device.host_memory:
        return Views(params, np.empty(0)), Views(state, np.empty(0))
    device.use()
    arrays = [*params.values(), *state.values()]
    what = f"a model of {sum(array.size for array in arrays):,} parameters"
    device.check_free_memory(sum(array.nbytes for array in arrays), what)
    return _put(params, device), _put(state, device)


def _put(arrays: Mapping[str, Array], device: Device) -> Views:
    layout = Layout(tuple(arrays), tuple(array.shape for array in arrays.values()))
    return layout.views(device.put(np.concatenate([np.zeros(0, np.float32), *map(np.ravel, arrays.values())])))


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
