"""Array kernels, one module per kind of device with the same names in each; `kernels_for` finds an array's own."""

from __future__ import annotations

from typing import Any

from distsgd.core.device import FULL, Array
from distsgd.core.kernels import cpu

MODULES: dict[type, Any] = {}
"""The kernels of each type of array that isn't NumPy's."""


def kernels_for(array: Array, precision: str = FULL) -> Any:
    """The kernels that compute on an array: fast forms of what NumPy's operations do, for the array's own device.

    Parameters
    ----------
    array : array
        Such as `batch.x`.
    precision : str, default "float32"
        That of matrix products, such as `batch.device.precision`.

    Returns
    -------
    module
        With the functions of `distsgd.core.kernels.cpu`, such as `multiply(w, x)`.
    """
    found = MODULES.get(type(array), cpu)
    return found if precision == FULL else found.in_precision(precision)


def register(array_type: type, module: Any) -> None:
    """Makes `module` the kernels of arrays of this type, unless they have some already."""
    MODULES.setdefault(array_type, module)
