"""Leaves nothing behind: ends every process of a start and removes its files, also when the launcher itself is killed.

Processes are known by a variable in their environment, which everything inherits that a start has started on this
host. A cleanup process, a process forked before all else, does the cleaning where the launcher no longer can: it hears
of each start's folder before that is made.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from distsgd.core.output import LAUNCH_VARIABLE
from distsgd.core.processes import descendants, mapped_files, open_files, stat, with_variable
from distsgd.launching.private import PrivateFolder

_END_SECONDS = 5.0
_DONE = b"done"
_CLOCK_SLACK = 0.1  # seconds by which a file's time may be behind
_SHARED_MEMORY = Path("/dev/shm")
# What MPI libraries leave there when a rank is killed.
_MPI_MEMORY = ("mpich_shm_*", "sm_segment.*", "vader_segment.*", "ucx_shm_posix_*", "Intel_MPI_*")
_HYDRA_FOLDER, _HYDRA_FILES = Path("/tmp"), "hydra_hwloc_xmlfile_*"  # whatever TMPDIR says; open while a job runs


@dataclass(frozen=True)
class Leftovers:
    """What a launch can leave on this host: processes that `name` tags, and MPI's files that are younger than it."""

    name: str
    began: float = field(default_factory=time.time)

    def end_processes(self, keep: Iterable[int] = (), seconds: float = _END_SECONDS) -> bool:
        """Kills whatever still runs; whether it is all gone. Processes below this one, but for `keep`, are its, too."""
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
        """Removes what MPI has left."""
        for path in self.mpi_files():
            with suppress(OSError):
                path.unlink()

    def mpi_files(self) -> list[Path]:
        """What MPI has left since the start, in shared memory and in /tmp: files of this user that nobody uses."""
        memory = [path for pattern in _MPI_MEMORY for path in self._mine(_SHARED_MEMORY, pattern)]
        used = mapped_files(str(_SHARED_MEMORY)) if memory else set()
        hydra = self._mine(_HYDRA_FOLDER, _HYDRA_FILES)
        used |= open_files(str(_HYDRA_FOLDER)) if hydra else set()
        return [path for path in memory + hydra if str(path) not in used]

    def _mine(self, folder: Path, pattern: str) -> list[Path]:
        """Files of this user that are as young as the start."""
        found = []
        for path in folder.glob(pattern):
            with suppress(OSError):
                about = path.lstat()
                if about.st_uid == os.getuid() and about.st_ctime >= self.began - _CLOCK_SLACK:
                    found.append(path)
        return found


def _reap(kept: set[int]) -> None:
    """Takes leave of ended children that this process adopted, so that none stays as a zombie."""
    for child in descendants(os.getpid()) - kept:
        with suppress(ChildProcessError):
            os.waitpid(child, os.WNOHANG)


class CleanupProcess:
    """A process of its own that waits for this one to end, and cleans up where this one didn't say it had."""

    def __init__(self, leftovers: Leftovers) -> None:
        self.leftovers = leftovers
        self.process = 0
        self._folder: PrivateFolder | None = None
        if not hasattr(os, "fork"):
            return
        waits, self._tells = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            try:
                os.close(self._tells)
                _wait_and_clean(waits, leftovers)
            finally:
                os._exit(0)
        os.close(waits)

    def __enter__(self) -> CleanupProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cleans up here, and lets the cleanup process go."""
        if self.process:
            self.clean_up()
            with suppress(BrokenPipeError):
                os.write(self._tells, _DONE)
            os.close(self._tells)
            os.waitpid(self.process, 0)

    def new_folder(self) -> Path:
        """The temporary folder of a start, made for it. Raises LauncherError where there is no safe place for one."""
        self._folder = PrivateFolder.make(self._announce)
        return self._folder.path

    def _announce(self, path: Path) -> None:
        if self.process:
            with suppress(BrokenPipeError):
                os.write(self._tells, os.fsencode(path) + b"\0")

    def clean_up(self) -> None:
        """Ends what still runs of a start, and removes its files."""
        self.leftovers.end_processes(keep=(self.process,))
        self.leftovers.remove_files()
        if self._folder is not None:
            self._folder.remove()
            self._folder = None


def _wait_and_clean(waits: int, leftovers: Leftovers) -> None:
    """The cleanup process's whole life: the pipe ends with the launcher, however that ends."""
    os.setsid()  # what is sent to the launcher's group isn't meant for the cleanup process
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    heard = b""
    while data := os.read(waits, 1 << 16):
        heard += data
    *folders, last = heard.split(b"\0")
    if last == _DONE:
        return
    leftovers.end_processes()
    leftovers.remove_files()
    for name in folders:
        left = PrivateFolder.find(Path(os.fsdecode(name)))
        if left is not None:
            left.remove()
