"""Printing that a run survives, and that nobody's names can misuse; and what a rank says to distsgd.launch.

A closed pipe or a full disk behind stdout doesn't end training. Texts hold names and values from files, which may
hold line ends and a terminal's commands: what isn't printable is escaped here, where it leaves.
"""

from __future__ import annotations

import json
import os
import re
import stat as modes
import sys
import traceback
from contextlib import suppress
from types import TracebackType
from typing import TextIO

from distsgd.core.errors import DistsgdError, visible
from distsgd.core.processes import stat

_GENERATIONS = 5
"""How far up an mpirun is looked for: it is a parent's parent, or one more with a wrapper script."""
_COLUMNS = 80
"""Of a terminal that can't be asked."""

LAUNCH_VARIABLE = "DISTSGD_LAUNCH"
"""Names this launch, in the environment of all that distsgd.launch has started: its process, and a secret."""
PARENT_VARIABLE = "DISTSGD_PARENT"
"""The shell that distsgd.launch has put around a rank: process and start. Set for the rank alone, it is proof."""
TERMINAL_VARIABLE = "DISTSGD_TERMINAL"
"""Columns of the terminal behind distsgd.launch, where it has one."""
STATUS_TABLE_VARIABLE = "DISTSGD_STATUS_TABLE"
"""Where ranks on the host of distsgd.launch find its status table."""
PROGRAM_VARIABLE = "DISTSGD_PROGRAM"
"""A rank's command, for the shell around it."""
LAUNCH_VARIABLES = (LAUNCH_VARIABLE, PARENT_VARIABLE, TERMINAL_VARIABLE, STATUS_TABLE_VARIABLE, PROGRAM_VARIABLE)
"""What distsgd.launch says to its ranks in their environment. Whoever inherits it later must not believe it."""


def new_launch() -> str:
    """The name of a launch of this process."""
    return f"{os.getpid()}-{os.urandom(16).hex()}"


def secret(launch: str) -> int:
    """A number below 2**60 that nobody can guess who doesn't know the launch's name; 0 for another name."""
    digits = launch.rpartition("-")[2][:15]
    return int(digits, 16) if re.fullmatch("[0-9a-f]{15}", digits) else 0


def mark(launch: str) -> str:
    """What a rank's message to distsgd.launch begins with, on standard error, which every launcher passes on from every
    host. It holds the launch's secret, so that no text that is printed there can be taken for a message."""
    return f"\x1edistsgd {launch} "


def launched() -> str | None:
    """The name of the launch that this process is a rank of; None where distsgd.launch didn't start it.

    A variable alone proves nothing: a shell, a batch job or a training that was started from inside a rank has it, too.
    A rank's parent is the shell that distsgd.launch has put around it, on any host.
    """
    launch, parent = os.environ.get(LAUNCH_VARIABLE), os.environ.get(PARENT_VARIABLE)
    return launch if launch and parent == _parent() else None


def _parent() -> str:
    """This process's parent: its number, and when it began, where the system says so, for numbers come again."""
    number = os.getppid()
    found = stat(number)
    return f"{number}-{0 if found is None else found.started}"


def say(text: str, file: TextIO | None = None) -> None:
    """Prints one line at once, to stdout by default; a line end inside is shown as \\n.

    Where the stream is no longer to be had, nothing is printed any more.
    """
    _print(visible(text), file)


def say_lines(text: str, file: TextIO | None = None) -> None:
    """As `say`, for a text of several lines, such as a traceback."""
    _print(visible(text, lines=True), file)


def _print(text: str, file: TextIO | None) -> None:
    stream = sys.stdout if file is None else file
    try:
        try:
            print(text + "\n", end="", file=stream, flush=True)  # in one piece, for ranks print side by side
        except UnicodeEncodeError:  # a sign that this terminal hasn't
            print(text.encode("ascii", "backslashreplace").decode("ascii") + "\n", end="", file=stream, flush=True)
    except (OSError, ValueError):  # ValueError where the stream is closed
        silence(stream)


def say_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints an exception that nobody has handled: a sys.excepthook."""
    say_lines("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"), sys.stderr)


def report_to_launcher(kind: str, **metadata: object) -> bool:
    """Tells distsgd.launch, in a line that it takes out of standard error; False where it didn't start this."""
    launch = launched()
    if launch is None:
        return False
    _print(mark(launch) + json.dumps({"kind": kind, **metadata}), sys.stderr)
    return True


def report_error(error: DistsgdError) -> None:
    """Prints the error's sentence, or has distsgd.launch print it."""
    if not report_to_launcher("error", text=str(error), error=type(error).__name__, status=error.exit_status):
        say_lines(f"distsgd: error: {error}", sys.stderr)  # an error's text is one line already, but for a traceback


def columns_behind_launcher() -> int | None:
    """Columns of the terminal that the mpirun above this process prints to; None where none can be seen.

    A launcher hands its ranks a pipe and passes on what comes out of it, so a rank on the launcher's own host finds the
    terminal among the launcher's open files. distsgd.launch, which listens to mpirun, says the columns of its own.
    """
    if launched() is not None:
        columns = os.environ.get(TERMINAL_VARIABLE, "")
        return int(columns) or None if columns.isascii() and columns.isdecimal() and len(columns) < 5 else None
    process = os.getppid()
    try:
        for _ in range(_GENERATIONS):
            with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
                name, rest = file.read().split("(", 1)[1].rsplit(")", 1)
            if name.startswith(("mpirun", "mpiexec", "srun", "prterun")):
                out = os.readlink(f"/proc/{process}/fd/1")
                return columns_of(out) if out.startswith(("/dev/pts/", "/dev/tty")) else None
            process = int(rest.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return None


def columns_of(path: str) -> int:
    """Of a terminal, which is opened only where it is one and belongs to this user."""
    try:
        about = os.lstat(path)
        if not modes.S_ISCHR(about.st_mode) or about.st_uid != os.geteuid():
            return _COLUMNS
        descriptor = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return os.get_terminal_size(descriptor).columns or _COLUMNS
        finally:
            os.close(descriptor)
    except OSError:
        return _COLUMNS


def leave(status: int) -> None:
    """Ends this process at once with this exit status, whatever becomes of what it has still to print."""
    flush()
    os._exit(status)


def flush() -> None:
    """Passes on what is still to print, as far as that is possible."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()


def silence(stream: TextIO) -> None:
    """Sends what is still to come, Python's own last flush too, nowhere."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        pass  # a stream without a descriptor has no last flush that could fail
