"""Whether the MPI library in this process accepts pointers into a GPU's memory, as the library itself reports."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path

_CUDA = 0
"""MPIX_GPU_SUPPORT_CUDA of MPICH and the libraries made from it."""


def takes_gpu_memory(
    path: Path | None, kinds: str | None = None, version: str = "", environment: Mapping[str, str] = os.environ
) -> bool | None:
    """Whether it does; None where the library doesn't say. MPI is initialized.

    path         the library's file
    kinds        the value of mpi_memory_alloc_kinds of MPI 4.1; a library may omit kinds that weren't requested
    version      the library's version string
    """
    if version.startswith("MVAPICH2") and environment.get("MV2_USE_CUDA", "0") != "1":
        return False  # off unless that is set, however the library was built
    reported = None if path is None else _query(path)
    if reported is None and kinds is not None and {"cuda", "cuda:device"} & {kind.strip() for kind in kinds.split(",")}:
        return True
    return reported


def _query(path: Path) -> bool | None:
    """Call the library's own functions: MPICH's, which considers what is switched off, then Open MPI's older one."""
    try:
        library = ctypes.CDLL(os.fspath(path))
    except OSError:
        return None
    try:
        supported = ctypes.c_int(0)
        if library.MPIX_GPU_query_support(ctypes.c_int(_CUDA), ctypes.byref(supported)) == 0:
            return bool(supported.value)
    except AttributeError:
        pass
    try:
        return bool(library.MPIX_Query_cuda_support())
    except AttributeError:
        return None
