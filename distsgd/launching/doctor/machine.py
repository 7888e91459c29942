"""One rank's observations of its host and of itself."""

from __future__ import annotations

import os
import platform
import timeit
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import numpy as np

from distsgd.core.kernel_family import loaded_family, this_host
from distsgd.core.processes import mapped_files
from distsgd.core.runtime import affinity, available_memory, blas_description, cores_per_rank, cpu_probe
from distsgd.core.version import __version__
from distsgd.parallel import Communicator
from distsgd.parallel.shared_memory import shared_array

GEMM = 512
"""Rows and columns of the matrices that are multiplied."""
_REPEATS = 15
SHARED_MEMORY = Path("/dev/shm")
_QUEUES = ("mpich_shm_", "Intel_MPI_", "sm_segment", "vader_segment", "ucx_shm_", "psm2_shm", "psm3_shm")


@dataclass(frozen=True)
class Look:
    """One rank's observations.

    processors     that the rank may run on
    cores          how many of these are its own
    kernels        the family that NumPy has loaded with
    families       all that the CPU can run, the fastest first
    probe          digest of this CPU's results, in hexadecimal
    gemm_seconds   for one product of two (GEMM, GEMM) float32 matrices
    blas           BLAS library and kernels
    blas_threads   that it uses
    versions       of Python and packages, by name
    memory         bytes left for this job on its host
    shared         bytes (total, free) in /dev/shm, where MPI libraries keep their queues
    shares         whether the ranks of the host can share memory
    """

    processors: tuple[int, ...] = (0,)
    cores: int = 1
    kernels: str = ""
    families: tuple[str, ...] = ()
    probe: str = ""
    gemm_seconds: float = 1.0
    blas: str = ""
    blas_threads: int = 1
    versions: Mapping[str, str] = field(default_factory=dict)
    memory: int | None = None
    shared: tuple[int, int] | None = None
    shares: bool = True

    @property
    def gflops(self) -> float:
        """Billions of floating-point operations in a second."""
        return 2 * GEMM**3 / self.gemm_seconds / 1e9


def look(communicator: Communicator) -> Look:
    """Observe this rank. Collective: all ranks multiply at the same time, as in a step."""
    node = communicator.node()
    masks = node.allgather_object(affinity())
    _, shares = shared_array(node, (1024,), np.dtype(np.float32))
    communicator.barrier()
    seconds = time_gemm()
    return Look(
        processors=affinity(),
        cores=cores_per_rank(masks, node.rank),
        kernels=loaded_family(),
        families=tuple(this_host().families()),
        probe=cpu_probe(),
        gemm_seconds=seconds,
        blas=blas_description(),
        blas_threads=blas_threads(),
        versions=versions(),
        memory=available_memory(),
        shared=shared_space(),
        shares=shares,
    )


def time_gemm() -> float:
    """Seconds of one product, the median of several."""
    a = np.ones((GEMM, GEMM), np.float32)
    b, out = a.copy(), np.empty_like(a)
    return median(timeit.repeat(lambda: np.matmul(a, b, out=out), repeat=_REPEATS, number=1))


def blas_threads() -> int:
    """Threads that BLAS uses; 1 where it isn't known."""
    from threadpoolctl import threadpool_info

    return max((pool["num_threads"] for pool in threadpool_info() if pool.get("user_api") == "blas"), default=1)


def versions() -> dict[str, str]:
    """Versions of what has to be the same on all ranks."""
    found = {"distsgd": __version__, "python": platform.python_version(), "numpy": np.__version__}
    with suppress(PackageNotFoundError):
        found["mpi4py"] = version("mpi4py")
    return found


def shared_space() -> tuple[int, int] | None:
    """Bytes (total, free) in /dev/shm, None where there is none."""
    try:
        usage = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return usage.f_blocks * usage.f_frsize, usage.f_bavail * usage.f_frsize


def abandoned() -> tuple[int, int]:
    """(number, bytes) of killed jobs' files in /dev/shm: those of MPI libraries that no visible process has mapped."""
    try:
        files = [path for path in SHARED_MEMORY.iterdir() if path.name.startswith(_QUEUES)]
    except OSError:
        return 0, 0
    used, sizes = mapped_files(str(SHARED_MEMORY)), []
    for path in files:
        with suppress(OSError):
            if str(path) not in used:
                sizes.append(path.stat().st_blocks * 512)
    return len(sizes), sum(sizes)
