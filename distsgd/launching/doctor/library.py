"""The MPI library and the launcher: their versions, and whether they match."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from distsgd.core.errors import pip_install
from distsgd.parallel.launchers import family, launcher_name, library_path, mpirun_of, short_version

_SECONDS = 20
# In a separate process: on a login node, loading MPI may abort.
_ASK = """
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
from distsgd.core.errors import pip_install
from distsgd.parallel.launchers import library_path
print(library_path() or "")
print(MPI.Get_library_version())
"""


@dataclass(frozen=True)
class Library:
    """An MPI library: its short version and its file, where they are known."""

    version: str | None
    path: Path | None
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.version}" if self.path is None else f"{self.version} ({self.path})"


def loaded() -> Library:
    """The library in this process, which a launcher started."""
    from mpi4py import MPI

    return Library(short_version(MPI.Get_library_version()), library_path())


def installed() -> Library:
    """The library that mpi4py would load; not loaded into this process."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Library(None, None, str(error))
    path, _, version = done.stdout.partition("\n")
    if done.returncode or not version.strip():
        lines = done.stderr.strip().splitlines()
        return Library(None, None, lines[-1] if lines else f"exit status {done.returncode}")
    return Library(short_version(version), Path(path) if path else None)


def version_text(launcher: str) -> str:
    """What a launcher's --version prints; empty where it fails."""
    try:
        done = subprocess.run(
            [launcher, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def describe_started(library: Library) -> list[tuple[str, str]]:
    """The lines for a process that a launcher started: a mismatch would have been refused."""
    return [("mpi", f"{library}"), ("launcher", f"{launcher_name()}, which fits")]


def describe_alone(library: Library, launcher: str | None) -> tuple[list[tuple[str, str]], list[str]]:
    """(lines, problems) for a process that no launcher started, about the launcher that would be used."""
    if library.version is None:
        install = f"load the cluster's MPI module, or {pip_install('mpich')}"
        if "No module named 'mpi4py'" in library.reason:
            install = pip_install("mpich")  # which brings mpi4py, too
        problem = f"there is no MPI that mpi4py can load ({library.reason}), so several ranks can't start; {install}"
        return [("mpi", "none"), ("launcher", launcher or "none on the path")], [problem]
    metadata = [("mpi", f"{library}")]
    beside = mpirun_of(library.path)
    if launcher is None and beside:  # distsgd.launch finds it there
        return [*metadata, ("launcher", f"{beside}, which belongs to that library; it is not on the path")], []
    if launcher is None:
        problem = (
            f"there is no mpirun, mpiexec or srun on the path to start ranks of {library.version}; add the folder of "
            f"that library's mpirun to PATH, load the cluster's MPI module, or {pip_install('mpich')}"
        )
        return [*metadata, ("launcher", "none on the path")], [problem]
    if os.path.basename(launcher) == "srun":
        return [*metadata, ("launcher", f"{launcher}, Slurm's; srun --mpi=list says which libraries it can start")], []
    theirs, ours = family(version_text(launcher)), family(library.version)
    metadata.append(("launcher", f"{launcher}, of {theirs or 'an MPI that it does not name'}"))
    both = {theirs, ours}
    if None in both or theirs == ours or both <= {"MPICH", "Intel MPI", "MVAPICH"}:
        return metadata, []
    start = str(beside) if beside else f"the mpirun of {ours}"
    problem = (
        f"{launcher} belongs to {theirs}, and mpi4py loads {library.version}: each process would be alone; start with "
        f"{start}, or name {theirs}'s library with MPI4PY_LIBMPI=/path/to/libmpi.so"
    )
    return metadata, [problem]
