"""What the tests here share: waiting, finding programs, and processes by what their environment says."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

_SYSTEM_PATHS = "/usr/local/sbin:/usr/sbin:/sbin"  # where a user's PATH may not lead


def find_program(name: str) -> str | None:
    """The path of a program, a daemon or a system's tool too."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PATHS}")


@cache
def is_open_mpi(mpirun: str) -> bool:
    """Whether this mpirun is Open MPI's rather than MPICH's."""
    reported = subprocess.run([mpirun, "--version"], capture_output=True, text=True, timeout=20)
    return "Open MPI" in reported.stdout


def wait_until(condition: Callable[[], bool], seconds: float, what: str | Callable[[], str]) -> None:
    """Raises TimeoutError where that takes longer."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what if isinstance(what, str) else what()} took longer than {seconds} s")
        time.sleep(0.1)


def processes_with(*settings: str) -> dict[int, str]:
    """Number and command line of the processes that have all of these, such as NAME=value, in their environment."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if {setting.encode() for setting in settings} <= set((path / "environ").read_bytes().split(b"\0")):
                found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    found.pop(os.getpid(), None)
    return found


def end_processes_with(setting: str) -> None:
    """Kills the processes that have this in their environment."""
    for process in processes_with(setting):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
