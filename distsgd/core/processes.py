"""Information on processes from Linux's /proc; on other systems the answer is that nothing is known.

This module imports nothing heavy: the launcher uses it before NumPy loads.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

_LAST_STREAM = 2
"""The descriptor of standard error; those of the other two are below."""
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
STACK_SIGNAL = getattr(signal, "SIGUSR2", None)
"""Makes a process of distsgd print the stacks of its threads."""


@dataclass(frozen=True)
class ProcessStat:
    """Of one process: state letter (R, S, D, T, Z, …), parent, start in clock ticks since the machine's boot, and the
    program's name."""

    state: str
    parent: int
    started: int
    name: str = ""

    @property
    def ended(self) -> bool:
        """Whether it has ended, and its parent hasn't collected its exit status yet."""
        return self.state in "ZX"


def contents(path: str) -> str:
    """The text of a file of the system; empty where it can't be read."""
    try:
        with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
            return file.read()
    except OSError:
        return ""


def stat(process: int) -> ProcessStat | None:
    """The process's state; None where there is no such process."""
    start, _, rest = contents(f"/proc/{process}/stat").rpartition(")")
    fields = rest.split()
    try:
        return ProcessStat(fields[0], int(fields[1]), int(fields[19]), start.partition("(")[2])
    except (IndexError, ValueError):
        return None


def can_look() -> bool:
    """Whether this system shows its processes under /proc."""
    return stat(os.getpid()) is not None


def alive(process: int, started: int) -> bool:
    """Whether the process that began at `started` still runs: the system reuses process numbers."""
    found = stat(process)
    return found is not None and not found.ended and found.started == started


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, whatever ends the parent."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Have descendants of this process whose own parent dies become its children."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    prctl = c_function("prctl")
    if prctl is not None:
        prctl(option, value, 0, 0, 0)


def c_function(name: str) -> Callable[..., Any] | None:
    """A function of Linux's C library; None where it has none of that name."""
    if sys.platform != "linux":
        return None
    import ctypes

    try:
        return getattr(ctypes.CDLL(None), name, None)
    except OSError:
        return None


_registering = threading.Lock()
_registered = 0
"""How many ask for stacks: each `stacks_when_asked` for its block, `print_stacks_when_asked` for good."""


def print_stacks_when_asked() -> None:
    """Have STACK_SIGNAL print the stacks of all threads on standard error and end nothing, in this command's process.

    A handler that the user's own program has set stays.
    """
    global _registered
    if STACK_SIGNAL is not None and not callable(signal.getsignal(STACK_SIGNAL)):
        with _registering:
            _registered += 1
            faulthandler.register(STACK_SIGNAL, file=2, all_threads=True)


@contextmanager
def stacks_when_asked() -> Iterator[None]:
    """As `print_stacks_when_asked`, inside the block. Nothing changes where anything else has taken the signal."""
    global _registered
    with _registering:
        number = STACK_SIGNAL if STACK_SIGNAL and (_registered or not _is_taken(STACK_SIGNAL)) else None
        if number is not None:
            _registered += 1
            if _registered == 1:
                faulthandler.register(number, file=2, all_threads=True)
    try:
        yield
    finally:
        with _registering:
            if number is not None:
                _registered -= 1
                if not _registered:
                    faulthandler.unregister(number)


def _is_taken(number: int) -> bool:
    """Whether the process handles or ignores this signal: in Python, or in C, as faulthandler and libraries do."""
    if signal.getsignal(number) not in (signal.SIG_DFL, None):
        return True
    lines = contents("/proc/self/status").split("\n")
    caught = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")), 0)
    return bool(caught >> (number - 1) & 1)


def are_stacks_printed() -> bool:
    """Whether STACK_SIGNAL prints stacks now."""
    return _registered > 0


def open_closed_streams() -> None:
    """Open /dev/null in the place of standard streams that were closed when this process began.

    Otherwise the next files that are opened get their descriptors, and what is printed, by a library too, goes into
    these files.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _LAST_STREAM:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", errors="replace", closefd=False))


def numbers() -> list[int]:
    """The numbers of all processes."""
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def with_variable(name: str, value: str) -> set[int]:
    """The processes that were started with this environment variable; other users' aren't visible."""
    wanted = f"{name}={value}"
    return {process for process in numbers() if wanted in contents(f"/proc/{process}/environ").split("\0")}


def descendants(process: int) -> set[int]:
    """The children of a process, their children, and so on."""
    parents = {number: about.parent for number in numbers() if (about := stat(number)) is not None}
    below: set[int] = set()
    found = {process}
    while found:
        found = {number for number, parent in parents.items() if parent in found} - below
        below |= found
    return below


def mapped_files(folder: str, processes: Iterable[int] | None = None) -> set[str]:
    """The files below `folder` that these processes, or all that this user may inspect, have mapped."""
    head = folder.rstrip("/") + "/"
    maps = (contents(f"/proc/{process}/maps") for process in (numbers() if processes is None else processes))
    return {line[line.index(head) :] for text in maps for line in text.split("\n") if head in line}


def open_files(folder: str, processes: Iterable[int] | None = None) -> set[str]:
    """The files below `folder` that these processes, or all that this user may inspect, have open."""
    found = set()
    for process in numbers() if processes is None else processes:
        with suppress(OSError):
            for descriptor in os.listdir(f"/proc/{process}/fd"):
                with suppress(OSError):  # closed meanwhile
                    found.add(os.readlink(f"/proc/{process}/fd/{descriptor}"))
    return {path for path in found if path.startswith(folder.rstrip("/") + "/")}
