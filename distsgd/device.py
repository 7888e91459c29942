"""Where arrays live and which module computes on them."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distsgd.errors import ConfigurationError

Array: TypeAlias = NDArray[Any]
Shape: TypeAlias = tuple[int, ...]

_MODULES: dict[type, Any] = {}
"""The array module of each type of array that isn't NumPy's; filled when a device is chosen."""


def array_module(array: Array) -> Any:
    """The module that computes on this array: NumPy, or that of the device it lies on."""
    return _MODULES.get(type(array), np)


@dataclass(frozen=True)
class Device:
    """A place that computes. `xp` is the array module of its arrays."""

    name: str
    xp: ModuleType


CPU = Device("cpu", np)


def choose_device(name: str) -> Device:
    """The device called `name`: `cpu`, or `auto` for the best there is (the CPU, in this version).

    Raises ConfigurationError for any other name.
    """
    if name in ("auto", "cpu"):
        return CPU
    raise ConfigurationError(f"device: expected auto or cpu, got {name!r}; this version computes on the CPU")
