"""Which MPI launcher started this process and which MPI library is loaded, for messages where they don't match."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

# By a variable that each launcher sets in every process that it starts; the most specific first.
_LAUNCHERS = (
    ("OMPI_COMM_WORLD_SIZE", "Open MPI's mpirun"),
    ("MV2_COMM_WORLD_SIZE", "MVAPICH's mpirun"),
    ("SLURM_STEP_ID", "Slurm's srun"),
    ("PALS_RANKID", "HPE Cray's aprun or mpiexec"),
    ("I_MPI_HYDRA_TOPOLIB", "Intel MPI's mpirun"),
    ("PMI_SIZE", "Hydra, the mpirun of MPICH and Intel MPI"),
    ("PMIX_RANK", "a launcher that speaks PMIx"),
    ("MPI_WORLD_SIZE", "an MPI launcher"),
)
_FAMILIES = (("Open MPI", "Open MPI"), ("Open RTE", "Open MPI"), ("prte", "Open MPI"), ("Intel", "Intel MPI"),
             ("MVAPICH", "MVAPICH"), ("HYDRA", "MPICH"), ("MPICH", "MPICH"))  # fmt: skip


def launcher_name(environment: Mapping[str, str] = os.environ) -> str | None:
    """The launcher that started this process; None where no launcher did."""
    return next((name for variable, name in _LAUNCHERS if variable in environment), None)


def family(text: str) -> str | None:
    """The MPI implementation of a library or an mpirun, from its version text; None for any other."""
    return next((name for word, name in _FAMILIES if word.lower() in text.lower()), None)


def short_version(text: str) -> str:
    """The name and number in an MPI library's version text, which may be pages long."""
    found = re.search(r"(?:MPICH|MVAPICH\S*) Version:\s*(\S+)", text)
    if found is not None:
        return f"{found[0].split()[0]} {found[1]}"
    return text.strip().splitlines()[0].split(",")[0][:80] if text.strip() else "an MPI library without a name"


def library_path() -> Path | None:
    """The file of the MPI library in this process; None where none is loaded or can be found."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"/\S*/libmpi(?:ch|_cray|_abi)?\.so[.\d]*$", maps, re.MULTILINE)
    return None if found is None else Path(found[0])


def mpirun_of(library: Path | None) -> Path | None:
    """The mpirun that was installed with this library, where there is one."""
    if library is None:
        return None
    return next((path for up in library.parents[:3] if (path := up / "bin" / "mpirun").exists()), None)


def mismatch(started: int, seen: int, version: str, library: Path | None, environment: Mapping[str, str]) -> str:
    """The message for `started` processes of which MPI sees `seen`: the launcher, the library, and what to do."""
    launcher = launcher_name(environment) or "the launcher"
    mpirun = mpirun_of(library)
    at = "" if library is None else f" ({library})"
    start = "the mpirun of that library" if mpirun is None else str(mpirun)
    return (
        f"the launcher started {started} processes, but MPI sees {seen}: this is {launcher}, and mpi4py has loaded "
        f"{short_version(version)}{at}; start with {start}, or name the launcher's own library with "
        "MPI4PY_LIBMPI=/path/to/libmpi.so (python -m distsgd.doctor says what is there)"
    )
