"""Array kernels, one module per kind of device with the same names in each; `kernels_for` finds an array's own."""

from __future__ import annotations

from typing import Any

import numpy as np

from distsgd.device import Array, is_on_host
from distsgd.kernels import cpu

_MODULES: dict[type, Any] = {np.ndarray: cpu}


def kernels_for(array: Array) -> Any:
    """The module whose kernels work on this array, with the names that `kernels.cpu` has."""
    return _MODULES.get(type(array)) or _find(array)


def _find(array: Array) -> Any:
    if is_on_host(array):  # a subclass of NumPy's array
        return cpu
    from distsgd.kernels import gpu

    _MODULES[type(array)] = gpu
    return gpu
