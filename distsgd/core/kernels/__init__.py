"""Array kernels, one module per kind of device with the same names in each; `kernels_for` finds an array's own."""

from __future__ import annotations

from typing import Any

import numpy as np

from distsgd.core.device import FULL, Array
from distsgd.core.kernels import cpu

MODULES: dict[type, Any] = {np.ndarray: cpu}


def kernels_for(array: Array, precision: str = FULL) -> Any:
    """The kernels that work on this array, with the names that `kernels.cpu` has; their products in this precision."""
    found = MODULES.get(type(array), cpu)  # a subclass of NumPy's array has no entry
    return found if precision == FULL else found.in_precision(precision)


def register(array_type: type, module: Any) -> None:
    """Makes `module` the kernels of arrays of this type, unless they have some already."""
    MODULES.setdefault(array_type, module)
