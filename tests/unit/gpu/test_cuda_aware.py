"""Whether an MPI library accepts pointers into GPU memory, as each of them says it."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from distsgd.gpu import cuda_aware
from distsgd.parallel.serial import SerialCommunicator


def test_no_mpi_says_nothing() -> None:
    assert cuda_aware.takes_device_memory(SerialCommunicator().transport) is None


class Library:
    """An MPI library: the functions that it has, and what they say."""

    def __init__(self, mpich: int | None = None, open_mpi: int | None = None) -> None:
        if mpich is not None:
            self.MPIX_GPU_query_support = lambda kind, where: self._write(kind.value, where, mpich)
        if open_mpi is not None:
            self.MPIX_Query_cuda_support = lambda: open_mpi

    @staticmethod
    def _write(kind: int, where: Any, value: int) -> int:
        assert kind == 0, "CUDA"
        ctypes.cast(where, ctypes.POINTER(ctypes.c_int))[0] = value
        return 0


@pytest.mark.parametrize(
    ("library", "kinds", "version", "variables", "takes"),
    [
        (Library(), None, "Open MPI v3", {}, None),
        (Library(open_mpi=1), None, "Open MPI v5.0.8", {}, True),
        (Library(open_mpi=0), None, "Open MPI v5.0.8", {}, False),
        (Library(mpich=1, open_mpi=1), "mpi,system", "MPICH Version: 5.0", {}, True),
        (Library(mpich=0, open_mpi=1), "mpi,system", "MPICH Version: 5.0", {}, False),  # switched off
        (Library(), "mpi, system, cuda:device", "", {}, True),
        (Library(), "mpi,system,cuda:host,rocm", "", {}, None),
        (Library(open_mpi=1), None, "MVAPICH2 Version: 2.3.7", {}, False),
        (Library(open_mpi=1), None, "MVAPICH2 Version: 2.3.7", {"MV2_USE_CUDA": "1"}, True),
    ],
)  # fmt: skip
def test_what_libraries_say(
    library: Library,
    kinds: str | None,
    version: str,
    variables: dict[str, str],
    takes: bool | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_aware.ctypes, "CDLL", lambda path: library)
    assert cuda_aware.library_takes(Path("libmpi.so"), kinds, version, variables) is takes


def test_a_library_that_is_not_there(tmp_path: Path) -> None:
    assert cuda_aware.library_takes(tmp_path / "none.so") is None
    assert cuda_aware.library_takes(None) is None
