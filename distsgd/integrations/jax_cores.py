"""How many cores JAX computes with, which its bits depend on: one, set before it starts to compute.

XLA divides a product among the cores that it counts as it starts, so another number of cores gives other bits. It
counts by the variable NPROC where that is set, else by the cores that the process may use. `import jax` counts nothing
yet; the first array does.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module


def _has_started() -> bool:
    """Whether JAX has counted the cores."""
    if "jax" not in sys.modules:
        return False
    started = getattr(import_module("jax._src.xla_bridge"), "backends_are_initialized", None)
    return True if started is None else bool(started())


def _cores() -> int:
    """The cores that JAX has counted, or counts when it starts."""
    given = os.environ.get("NPROC", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    affinity = getattr(os, "sched_getaffinity", None)
    return (os.cpu_count() or 1) if affinity is None else len(affinity(0))


if not _has_started():
    os.environ["NPROC"] = "1"

CORES = _cores()
"""The number of cores that JAX computes with in this process."""
DOUBT = (
    None
    if CORES == 1
    else f"JAX had started on {CORES} cores before distsgd.integrations.jax was imported, and its bits depend on their "
    "number; import that module before the first JAX array is made, or set NPROC=1 in the environment"
)
"""Why bits may depend on the number of cores, None where they don't."""
