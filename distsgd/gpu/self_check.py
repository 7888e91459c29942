"""Whether a GPU works and computes what the CPU does: checked once, before a run uses it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from distsgd.core.device import FULL, Array, Device, to_host
from distsgd.core.kernels import cpu, kernels_for
from distsgd.core.random import normal, stream

_COUNT = 1000
_PRODUCT = (33, 70, 19)
_LOOSE, _TIGHT = 2.0**-6, 2.0**-18
"""The largest error of a product, relative to the sum of its terms' magnitudes."""


@lru_cache(maxsize=16)
def problem_of(device: Device) -> str | None:
    """Why this GPU can't be used; None where kernels.cu compiles, and an update, a mask, a product and a sum are right.

    The message of an error of the compiler, the driver or a library is an answer, too.
    """
    try:
        wrong = next((name for name, check in CHECKS.items() if not check(device)), None)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return f"{device} can't be used ({type(error).__name__}: {lines[0]})"
    return None if wrong is None else f"{device} computes {wrong} that differs from the CPU's"


def _update(device: Device) -> bool:
    """A momentum update has the same bits."""
    there, here = _arrays(), _arrays()
    moved = [device.put(array) for array in there]
    kernels_for(moved[0]).momentum(*moved, 0.1, 0.9, 0.3)
    cpu.momentum(here[0], here[1], here[2], 0.1, 0.9, 0.3)
    return all(to_host(moved[at]).tobytes() == here[at].tobytes() for at in (0, 2))


def _arrays() -> list[Array]:
    return [normal((_COUNT,), 1, name).astype(np.float32) for name in ("params", "grads", "velocity")]


def _mask(device: Device) -> bool:
    """A dropout mask from the same random words is equal."""
    like, place = np.zeros(1, np.float32), stream(1, "self-check")
    there = device.put(like)
    found = kernels_for(there).keep_mask(there, (_COUNT,), 0.3, place)
    return bool(np.array_equal(to_host(found), cpu.keep_mask(like, (_COUNT,), 0.3, place)))


def _product(device: Device) -> bool:
    """A product with a transposed operand is right in the device's precision."""
    m, k, n = _PRODUCT
    a, b = normal((m, k), 1, "a").astype(np.float32), normal((n, k), 1, "b").astype(np.float32)
    left, right = device.put(a), device.put(b)
    found: Any = to_host(kernels_for(left, device.precision).multiply(left, right.T))
    error = np.abs(found - a.astype(np.float64) @ b.T)
    size = np.abs(a).astype(np.float64) @ np.abs(b).T
    return bool((error <= size * (_TIGHT if device.precision == FULL else _LOOSE)).all())


def _sum(device: Device) -> bool:
    """A sum of squares is right: CuPy compiles kernels of its own, from headers that may be missing."""
    values = _arrays()[0]
    found = float(np.add.reduce(np.square(device.put(values)), dtype=np.float64))
    return bool(abs(found - np.square(values).sum(dtype=np.float64)) <= _TIGHT * found)


CHECKS = {"an update": _update, "a mask of dropout": _mask, "a product": _product, "a sum": _sum}
"""What is checked, by what a message calls it: each takes the device and says whether it is right."""
