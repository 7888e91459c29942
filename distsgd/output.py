"""Printing that a run survives: a closed pipe or a full disk behind stdout doesn't end training."""

from __future__ import annotations

import json
import os
import sys
from typing import TextIO

from distsgd.errors import DistsgdError

_GENERATIONS = 5
"""How far up an mpirun is looked for: it is a parent's parent, or one more with a wrapper script."""

LAUNCH_VARIABLE = "DISTSGD_LAUNCH"
"""Names this start, in the environment of all that distsgd.launch has started."""
TERMINAL_VARIABLE = "DISTSGD_TERMINAL"
"""Names the terminal behind distsgd.launch, where it has one."""
MARK = "\x1edistsgd "
"""Before what ranks tell distsgd.launch on standard error, which every launcher passes on from every host."""


def say(text: str, file: TextIO | None = None) -> None:
    """Prints a line at once, to stdout by default. Where that is no longer to be had, nothing is printed any more."""
    stream = sys.stdout if file is None else file
    try:
        try:
            print(text + "\n", end="", file=stream, flush=True)  # in one piece, for ranks print side by side
        except UnicodeEncodeError:  # a file's name, or a sign that this terminal hasn't
            print(text.encode("ascii", "backslashreplace").decode("ascii") + "\n", end="", file=stream, flush=True)
    except (OSError, ValueError):  # ValueError where the stream is closed
        silence(stream)


def tell_launcher(kind: str, **facts: object) -> bool:
    """Tells distsgd.launch, in a line that it takes out of standard error; False where it didn't start this."""
    if LAUNCH_VARIABLE not in os.environ:
        return False
    say(MARK + json.dumps({"kind": kind, **facts}), sys.stderr)
    return True


def tell_error(error: DistsgdError) -> None:
    """Prints the error's sentence, or has distsgd.launch print it."""
    if not tell_launcher("error", text=str(error), error=type(error).__name__, status=error.exit_status):
        say(f"distsgd: error: {error}", sys.stderr)


def terminal_behind_launcher() -> str | None:
    """The terminal that the mpirun above this process prints to, such as /dev/pts/3; None where none can be seen.

    A launcher hands its ranks a pipe and passes on what comes out of it, so a rank on the launcher's own host finds the
    terminal among the launcher's open files. distsgd.launch, which listens to mpirun, names its own.
    """
    if TERMINAL_VARIABLE in os.environ:
        return os.environ[TERMINAL_VARIABLE]
    process = os.getppid()
    try:
        for _ in range(_GENERATIONS):
            with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
                name, rest = file.read().split("(", 1)[1].rsplit(")", 1)
            if name.startswith(("mpirun", "mpiexec", "srun", "prterun")):
                out = os.readlink(f"/proc/{process}/fd/1")
                return out if out.startswith(("/dev/pts/", "/dev/tty")) else None
            process = int(rest.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return None


def silence(stream: TextIO) -> None:
    """Sends what is still to come, Python's own last flush too, nowhere."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        pass  # a stream without a descriptor has no last flush that could fail
