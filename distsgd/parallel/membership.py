"""Whether this code runs on a rank of the job, or in a process or a task that a rank has started: that trains alone.

Such code finds the launcher's variables in its environment as a rank does. But the launcher doesn't know its process,
and no other rank makes the same call.
"""

from __future__ import annotations

import os
import stat
import sys
from types import FrameType

from distsgd.core.processes import contents

_FORKED_ONLY = 0x40
"""Linux's flag, PF_FORKNOEXEC, of a process that runs its parent's program. A launcher's ranks have begun their own."""


def works_for_a_rank() -> bool:
    """Whether this process is a rank's child, or this call part of a task of an executor of mpi4py.futures."""
    return is_forked() or _in_a_pool() or _is_unknown_to_hydra() or _in_a_task()


def is_forked() -> bool:
    """Whether this process was forked from another Python process, as far as the system says; it can't use MPI."""
    fields = contents("/proc/self/stat").rpartition(")")[2].split()
    return len(fields) > 6 and bool(int(fields[6]) & _FORKED_ONLY)


def _in_a_pool() -> bool:
    """Of multiprocessing, concurrent.futures or joblib, however the process was started."""
    processes = sys.modules.get("multiprocessing.process")
    if processes is None:
        return False
    return processes.parent_process() is not None or type(processes.current_process()).__name__ == "LokyProcess"


def _is_unknown_to_hydra() -> bool:
    """Whether MPICH's launcher has given its connection to another process than this, which was started by that one."""
    descriptor = os.environ.get("PMI_FD", "")
    if not descriptor.isdigit():
        return False
    try:
        return not stat.S_ISSOCK(os.fstat(int(descriptor)).st_mode)
    except OSError:
        return True


def _in_a_task() -> bool:
    """Whether an executor's worker has called this code: the program's other ranks are then workers, too."""
    if "mpi4py.futures._core" not in sys.modules:
        return False
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "mpi4py.futures._core" and frame.f_code.co_name == "server_exec":
            return True
        frame = frame.f_back
    return False
