"""Ends every process of a start and removes its files, also when the launcher itself is killed.

Processes are identified by a variable in their environment, which every process of a start on this host inherits. A
cleanup process, forked first of all, cleans up where the launcher no longer can: the launcher sends it the path of each
start's folder before it makes that folder.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from distsgd.core.output import LAUNCH_VARIABLE
from distsgd.core.processes import descendants, mapped_files, open_files, stat, with_variable
from distsgd.launching.private import PrivateFolder

_END_SECONDS = 5.0
_DONE = b"done"
_CLOCK_SLACK = 0.1  # seconds by which a file's time may lag
SHARED_MEMORY = Path("/dev/shm")
# Files that MPI libraries leave there when a rank is killed.
_MPI_MEMORY = ("mpich_shm_*", "sm_segment.*", "vader_segment.*", "ucx_shm_posix_*", "Intel_MPI_*")
HYDRA_FOLDER, _HYDRA_FILES = Path("/tmp"), "hydra_hwloc_xmlfile_*"  # regardless of TMPDIR; open while a job runs


@dataclass(frozen=True)
class Leftovers:
    """What a launch can leave on this host: processes that `name` tags, and MPI's files that are younger than it."""

    name: str
    began: float = field(default_factory=time.time)

    def end_processes(self, keep: Iterable[int] = (), seconds: float = _END_SECONDS) -> bool:
        """Kill the processes that still run, and all descendants but `keep`; return whether none is left."""
        kept = {os.getpid(), *keep}
        until = time.monotonic() + seconds
        while True:
            running = {
                process
                for process in with_variable(LAUNCH_VARIABLE, self.name) | descendants(os.getpid())
                if process not in kept and (found := stat(process)) is not None and not found.ended
            }
            for process in running:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(process, signal.SIGKILL)
            _reap(kept)
            if not running or time.monotonic() > until:
                return not running
            time.sleep(0.01)

    def remove_files(self) -> None:
        """Remove the files that MPI has left."""
        for path in self.mpi_files():
            with suppress(OSError):
                path.unlink()

    def mpi_files(self) -> list[Path]:
        """Files of this user that MPI has left since the start in shared memory and /tmp, and that no process uses."""
        memory = [path for pattern in _MPI_MEMORY for path in SHARED_MEMORY.glob(pattern) if self._is_mine(path)]
        used = mapped_files(str(SHARED_MEMORY)) if memory else set()
        hydra = [path for path in HYDRA_FOLDER.glob(_HYDRA_FILES) if self._is_mine(path)]
        used |= open_files(str(HYDRA_FOLDER)) if hydra else set()
        return [path for path in memory + hydra if str(path) not in used]

    def _is_mine(self, path: Path) -> bool:
        """Whether a file belongs to this user, and isn't older than the start."""
        with suppress(OSError):
            about = path.lstat()
            return about.st_uid == os.getuid() and about.st_ctime >= self.began - _CLOCK_SLACK
        return False


def _reap(kept: set[int]) -> None:
    """Collect the exit status of adopted children that have ended, so that none stays as a zombie."""
    for child in descendants(os.getpid()) - kept:
        with suppress(ChildProcessError):
            os.waitpid(child, os.WNOHANG)


class CleanupProcess:
    """A separate process that waits for this one to end, and cleans up unless this one reports that it has."""

    def __init__(self, leftovers: Leftovers) -> None:
        self.leftovers = leftovers
        self.process = 0
        self._folder: PrivateFolder | None = None
        if not hasattr(os, "fork"):
            return
        waits, self._pipe = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            try:
                os.close(self._pipe)
                _wait_and_clean(waits, leftovers)
            finally:
                os._exit(0)
        os.close(waits)

    def __enter__(self) -> CleanupProcess:
        return self

    def __exit__(self, *_: object) -> None:
        """Clean up here, and end the cleanup process."""
        if self.process:
            self.clean_up()
            with suppress(BrokenPipeError):
                os.write(self._pipe, _DONE)
            os.close(self._pipe)
            os.waitpid(self.process, 0)

    def new_folder(self) -> Path:
        """Make the temporary folder of a start. Raises LauncherError where there is no safe place for it."""
        self._folder = PrivateFolder.make(self._announce)
        return self._folder.path

    def _announce(self, path: Path) -> None:
        if self.process:
            with suppress(BrokenPipeError):
                os.write(self._pipe, os.fsencode(path) + b"\0")

    def clean_up(self) -> None:
        """End the processes of a start, and remove its files."""
        self.leftovers.end_processes(keep=(self.process,))
        self.leftovers.remove_files()
        if self._folder is not None:
            self._folder.remove()
            self._folder = None


def _wait_and_clean(waits: int, leftovers: Leftovers) -> None:
    """The cleanup process's program: the pipe closes when the launcher ends, whatever ends it."""
    os.setsid()  # signals to the launcher's group must not reach the cleanup process
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    received = b""
    while data := os.read(waits, 1 << 16):
        received += data
    *folders, last = received.split(b"\0")
    if last == _DONE:
        return
    leftovers.end_processes()
    leftovers.remove_files()
    for name in folders:
        left = PrivateFolder.find(Path(os.fsdecode(name)))
        if left is not None:
            left.remove()
