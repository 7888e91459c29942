"""Array kernels, one module per kind of device with the same names in each; `kernels_for` finds an array's own."""

from __future__ import annotations

from typing import Any

import numpy as np

from distsgd.core.device import FULL, Array, is_on_host
from distsgd.core.kernels import cpu

_MODULES: dict[type, Any] = {np.ndarray: cpu}


def kernels_for(array: Array, precision: str = FULL) -> Any:
    """The kernels that work on this array, with the names that `kernels.cpu` has; their products in this precision."""
    found = _MODULES.get(type(array)) or _find(array)
    return found if precision == FULL else found.in_precision(precision)


def _find(array: Array) -> Any:
    if is_on_host(array):  # a subclass of NumPy's array
        return cpu
    from distsgd.gpu import kernels as gpu

    _MODULES[type(array)] = gpu
    return gpu
