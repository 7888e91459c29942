"""Settings that have to be made before NumPy loads, and properties of this process's machine.

BLAS gives other bits with other thread counts, so it always runs with one thread, and cores compute microbatches
concurrently. This module imports nothing heavy, so that `prepare()` can run first of all.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from distsgd.core.errors import OutOfMemoryError
from distsgd.core.processes import c_function, contents

BLAS_THREAD_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_SIZE", "MPI_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # as in glibc's malloc.h
_KEPT_BYTES = 1 << 30
"""Freed memory that malloc keeps in total."""
_LARGEST_KEPT = 32 << 20
"""Larger arrays come from the system and return to it: data sets, not activations. The maximum of older glibc."""

_LIMITING = threading.RLock()  # an object that uses it may be collected while its thread holds the lock
_USERS: set[object] = set()
_BEFORE: dict[str, tuple[Any, int]] = {}
"""BLAS libraries by file, each with its number of threads before `single_threaded_blas` has limited it."""


def prepare() -> None:
    """Set one BLAS thread before NumPy loads, and malloc's thresholds. Called first by every command."""
    for variable in BLAS_THREAD_VARIABLES:
        os.environ[variable] = "1"
    _keep_freed_memory()


def prepare_alone() -> None:
    """`prepare`, and NumPy with the best kernels of this host: for a program that asks no other hosts."""
    from distsgd.core.kernel_family import use_best

    prepare()
    use_best()


def _keep_freed_memory() -> None:
    """Have glibc keep freed memory: a step needs arrays as large as the last step's, and a new page costs a fault.

    By default it returns large arrays to the system, which takes a sixth of a step of a deep convolutional network.
    Unchanged where the user has set MALLOC_… variables, and where there is no mallopt.
    """
    mallopt = None if any(name.startswith("MALLOC_") for name in os.environ) else c_function("mallopt")
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)


def release_freed_memory() -> None:
    """Return the memory that glibc's malloc keeps: after the loading of data, which no step needs again."""
    trim = c_function("malloc_trim")
    if trim is not None:
        trim(0)


def launcher_size(environment: Mapping[str, str] = os.environ) -> int | None:
    """How many processes the MPI launcher reports to have started; None without a launcher."""
    for variable in _SIZE_VARIABLES:
        if environment.get(variable, "").isdigit():
            return int(environment[variable])
    # sbatch and salloc set SLURM_NTASKS as well; only inside srun is there a step and a process number.
    if environment.get("SLURM_STEP_ID", "").isdigit() and "SLURM_PROCID" in environment:
        size = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", ""))
        return int(size) if size.isdigit() else None
    return None


def affinity() -> tuple[int, ...]:
    """The processors this process may run on (all of them where that isn't known)."""
    if sys.platform == "linux":
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def cores_per_rank(masks: Sequence[tuple[int, ...]], local_rank: int) -> int:
    """Cores for this rank, from the affinity masks of all ranks of its node.

    Ranks that share one mask share its cores; a launcher that binds ranks has divided them already.
    """
    mine = masks[local_rank]
    return max(1, len(mine) // sum(mask == mine for mask in masks))


def available_memory() -> int | None:
    """Free bytes of this host, or of the job's share of it (its control groups); None where that isn't known."""
    lines = contents("/proc/meminfo").split("\n")
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    groups = {line.rpartition(":")[2].strip("/") for line in contents("/proc/self/cgroup").split("\n")} | {""}
    for group in groups:
        for path in (f"/sys/fs/cgroup/{group}/memory.max", f"/sys/fs/cgroup/memory/{group}/memory.limit_in_bytes"):
            found += [int(word) for word in contents(path).split() if word.isdigit()]
    return min(found, default=None)


def check_memory(needed: int, what: str, remedy: str = "use a larger host, or a smaller one of these") -> None:
    """Raise OutOfMemoryError where `needed` bytes for `what` are more than this host has free."""
    available = available_memory()
    if available is not None and needed > available:
        raise OutOfMemoryError(
            f"{what} takes {needed / 1e9:.1f} GB of memory, this host has {available / 1e9:.1f} GB left; {remedy}"
        )


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Limit BLAS to one thread inside, where NumPy may have been loaded before `prepare()`.

    The limit applies to the whole process, so users are counted: the first of several concurrent ones saves the former
    limits, the last one restores them.
    """
    from threadpoolctl import ThreadpoolController

    user = object()
    with _LIMITING:
        _USERS.add(user)  # first: the end of another one, from here on, is not the last
        for library in ThreadpoolController().select(user_api="blas").lib_controllers:  # some were loaded since
            _BEFORE.setdefault(library.filepath, (library, library.num_threads))
            _set_threads(library, 1)
    try:
        yield
    finally:
        with _LIMITING:
            _USERS.remove(user)
            if not _USERS:
                for library, threads in _BEFORE.values():
                    _set_threads(library, threads)
                _BEFORE.clear()


def _set_threads(library: Any, threads: int) -> None:
    """Set a library's threads for the process. For OpenBLAS, threadpoolctl since 3.8 obeys the first thread that sets
    them, as long as it lives, and silently ignores all others."""
    release = getattr(library, "clear_controlling_thread", lambda force: None)
    release(force=True)
    library.set_num_threads(threads)
    release(force=True)


def blas_description() -> str:
    """NumPy's BLAS with its kernels, such as `openblas 0.3.31 SkylakeX`, or `unknown BLAS`."""
    import numpy  # noqa: F401  (its BLAS has to be loaded to be seen)
    from threadpoolctl import threadpool_info

    names = [
        " ".join(str(pool[key]) for key in ("internal_api", "version", "architecture") if pool.get(key))
        for pool in threadpool_info()
        if pool.get("user_api") == "blas"
    ]
    return names[0] if names else "unknown BLAS"


def cpu_probe() -> str:
    """16 hex digits from the bits that NumPy computes on this CPU: equal where runs have the same bits.

    Over all functions that distsgd computes with, on numbers that fill vectors and leave a rest, and over products in
    the shapes of dense layers, of convolutions and of microbatches in a stack.
    """
    import hashlib

    import numpy as np

    digest = hashlib.sha256()

    def add(*arrays: Any) -> None:
        for array in arrays:
            digest.update(np.ascontiguousarray(array).tobytes())

    def numbers(*shape: int) -> Any:
        return np.divide(np.arange(math.prod(shape)) % 977 - 431, 113, dtype=dtype).reshape(shape)

    for dtype in (np.float32, np.float64):
        for count in (3, 13, 1021):
            x = numbers(count)
            positive = np.abs(x) + dtype(0.003)
            add(np.exp(x), np.expm1(x), np.tanh(x), np.sin(x), np.cos(x), np.square(x), np.rint(x), np.sign(x), -x)
            add(np.log(positive), np.log1p(positive), np.sqrt(positive))
            add(np.power(positive, 0.3), positive**3, x / positive, 1.0 / positive, x * positive, x + positive)
            add(x - positive, np.maximum(x, positive), np.dot(x, positive), np.vecdot(x, positive))
        x = numbers(61, 47)
        add(*(reduce(x, axis=axis) for reduce in (np.add.reduce, np.maximum.reduce) for axis in (0, 1)))
        add(np.add.reduce(x, axis=1, dtype=np.float64), np.sum(x), np.vecdot(x, x), np.vecdot(x.T, x.T))
        for rows, inner, columns in ((10, 128, 64), (64, 784, 37), (20, 25, 333), (50, 500, 41), (3, 7, 1)):
            a, b = numbers(rows, inner), numbers(inner, columns)
            add(a @ b, a.T @ (a @ b), (a @ b) @ b.T, np.asfortranarray(a) @ b)
        add(np.matmul(numbers(4, 33, 21), numbers(4, 21, 17)))
    return digest.hexdigest()[:16]


def older_probe() -> str:
    """The probe of checkpoints that name no family of kernels: over a product and five functions."""
    import hashlib

    import numpy as np

    digest = hashlib.sha256()
    for dtype in (np.float32, np.float64):
        x = np.divide(np.arange(1, 64 * 48 + 1) % 97, 41, dtype=dtype).reshape(64, 48)
        for array in (x @ x.T, x.T @ x, np.exp(x), np.log(x + 1), np.tanh(x), np.power(x + 1, 0.3), np.log1p(x)):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
