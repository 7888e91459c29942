"""The transport of an MPI library that accepts pointers into GPU memory."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from distsgd.core.device import Array, Device
from distsgd.parallel.communicator import Communicator
from distsgd.parallel.launchers import library_path
from distsgd.parallel.transport import Parts, Transport

_CUDA = 0
"""MPIX_GPU_SUPPORT_CUDA of MPICH and the libraries made from it."""


class DirectTransport(Transport):
    """Passes arrays on a device to MPI unchanged.

    MPI doesn't use CUDA's streams: it reads and writes when it is called. So the device finishes all its work before:
    what computes the arrays that are sent, and what still reads the arrays that are overwritten.
    """

    description = "by MPI, which takes GPU memory"

    def __init__(self, communicator: Communicator, device: Device) -> None:
        self._inside, self._device = communicator.transport, device

    def broadcast(self, array: Array) -> None:
        self._device.synchronize()
        self._inside.broadcast(array)

    def alltoall(self, send: Array, sent: Parts, receive: Array, received: Parts) -> None:
        self._device.synchronize()
        self._inside.alltoall(send, sent, receive, received)

    def allgather_slices(self, flat: Array, counts: Sequence[int]) -> None:
        self._device.synchronize()
        self._inside.allgather_slices(flat, counts)


def takes_device_memory(transport: Transport) -> bool | None:
    """Whether the MPI library that sends accepts pointers into a GPU's memory; None where it doesn't say."""
    if transport.mpi is None:
        return None
    from mpi4py import MPI

    info = transport.mpi.Get_info()
    kinds = info.Get("mpi_memory_alloc_kinds")
    info.Free()
    return library_takes(library_path(), kinds, MPI.Get_library_version())


def library_takes(
    path: Path | None, kinds: str | None = None, version: str = "", environment: Mapping[str, str] = os.environ
) -> bool | None:
    """Whether the library in this process does, as it reports itself; None where it doesn't. MPI is initialized.

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
    with suppress(OSError, AttributeError):
        library, supported = ctypes.CDLL(os.fspath(path)), ctypes.c_int(0)
        if hasattr(library, "MPIX_GPU_query_support") and (
            library.MPIX_GPU_query_support(ctypes.c_int(_CUDA), ctypes.byref(supported)) == 0
        ):
            return bool(supported.value)
        return bool(library.MPIX_Query_cuda_support())
    return None
