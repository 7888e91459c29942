"""What Linux says of processes and can do with them; elsewhere the answer is that nothing is known.

This module imports nothing heavy: the launcher uses it before NumPy loads.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
STACK_SIGNAL = getattr(signal, "SIGUSR2", None)
"""Makes a process of distsgd print the stacks of its threads."""


@dataclass(frozen=True)
class ProcessStat:
    """Of one process: state letter (R, S, D, T, Z, …), parent, and start in clock ticks since the machine's boot."""

    state: str
    parent: int
    started: int

    @property
    def ended(self) -> bool:
        """Whether it runs no more, and only its parent hasn't looked yet."""
        return self.state in "ZX"


def stat(process: int) -> ProcessStat | None:
    """None where there is no such process."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return ProcessStat(fields[0], int(fields[1]), int(fields[19]))
    except (OSError, IndexError, ValueError):
        return None


def can_look() -> bool:
    """Whether this system shows its processes under /proc."""
    return stat(os.getpid()) is not None


def alive(process: int, started: int) -> bool:
    """Whether the process that began at `started` still runs: a number is given to another process in time."""
    found = stat(process)
    return found is not None and not found.ended and found.started == started


def die_with_parent() -> None:
    """From now on the kernel kills this process when its parent dies, however the parent does."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """From now on processes below this one, whose own parent dies, become its children."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def print_stacks_when_asked() -> None:
    """From now on STACK_SIGNAL prints the stacks of all threads on standard error, and ends nothing.

    A handler that the user's own program has set stays.
    """
    if STACK_SIGNAL is not None and not callable(signal.getsignal(STACK_SIGNAL)):
        faulthandler.register(STACK_SIGNAL, file=2, all_threads=True)


def numbers() -> Iterator[int]:
    """All processes."""
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    for name in names:
        if name.isdigit():
            yield int(name)


def with_variable(name: str, value: str) -> set[int]:
    """The processes that were started with this environment variable; another user's can't be seen."""
    wanted = f"{name}={value}".encode()
    found = set()
    for process in numbers():
        try:
            with open(f"/proc/{process}/environ", "rb") as file:
                if wanted in file.read().split(b"\0"):
                    found.add(process)
        except OSError:
            continue
    return found


def descendants(process: int) -> set[int]:
    """The processes below this one."""
    children: dict[int, list[int]] = {}
    for number in numbers():
        found = stat(number)
        if found is not None:
            children.setdefault(found.parent, []).append(number)
    below: set[int] = set()
    todo = [process]
    while todo:
        for child in children.get(todo.pop(), ()):
            if child not in below:
                below.add(child)
                todo.append(child)
    return below


def mapped_files(folder: str, processes: Iterable[int] | None = None) -> set[str]:
    """The files below `folder` that these processes, or all that this user may look at, have in their memory."""
    head = folder.rstrip("/") + "/"
    found = set()
    for process in numbers() if processes is None else processes:
        try:
            with open(f"/proc/{process}/maps", encoding="utf-8", errors="replace") as file:
                for line in file:
                    start = line.find(head)
                    if start >= 0:
                        found.add(line[start:].rstrip("\n"))
        except OSError:
            continue
    return found


def open_files(folder: str, processes: Iterable[int] | None = None) -> set[str]:
    """The files below `folder` that these processes, or all that this user may look at, have open."""
    head = folder.rstrip("/") + "/"
    found = set()
    for process in numbers() if processes is None else processes:
        try:
            descriptors = os.listdir(f"/proc/{process}/fd")
        except OSError:
            continue
        for descriptor in descriptors:
            try:
                path = os.readlink(f"/proc/{process}/fd/{descriptor}")
            except OSError:  # closed meanwhile
                continue
            if path.startswith(head):
                found.add(path)
    return found
