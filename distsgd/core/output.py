"""Printing that neither fails nor passes on control characters; and messages from a rank to distsgd.launch.

A closed pipe or a full disk on stdout doesn't end training; the command then leaves with status 1, but for a pipe whose
reader has seen enough. Texts contain names and values from files, which may
contain line ends and a terminal's commands: characters that aren't printable are escaped here, on output.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat as modes
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import TextIO
from unicodedata import combining, east_asian_width

from distsgd.core.errors import DistsgdError, visible
from distsgd.core.processes import stat

_GENERATIONS = 5
"""Ancestors among which mpirun is searched: it is a parent's parent, or one further up with a wrapper script."""
COLUMNS = 80
"""Of every line about a run; assumed of a terminal that doesn't report its width."""
_NAME = 10
"""Columns of a field's name."""
_LINES = 4
"""Lines of a field at most."""

LAUNCH_VARIABLE = "DISTSGD_LAUNCH"
"""The launch's name, in the environment of all processes of distsgd.launch: its process number, and a secret."""
PARENT_VARIABLE = "DISTSGD_PARENT"
"""The shell around a rank: its process number and start. Set for the rank only, it proves distsgd.launch."""
TERMINAL_VARIABLE = "DISTSGD_TERMINAL"
"""Columns of distsgd.launch's terminal, where it has one."""
STATUS_TABLE_VARIABLE = "DISTSGD_STATUS_TABLE"
"""The path of distsgd.launch's status table, for ranks on its host."""
PROGRAM_VARIABLE = "DISTSGD_PROGRAM"
"""A rank's command, for the shell around it."""
LAUNCH_VARIABLES = (LAUNCH_VARIABLE, PARENT_VARIABLE, TERMINAL_VARIABLE, STATUS_TABLE_VARIABLE, PROGRAM_VARIABLE)
"""The variables that distsgd.launch sets for its ranks. Processes that inherit them later must not use them."""


def new_launch() -> str:
    """A new name for a launch by this process."""
    return f"{os.getpid()}-{os.urandom(16).hex()}"


def secret(launch: str) -> int:
    """A secret number below 2**60 from the launch's name; 0 where the text isn't such a name."""
    digits = launch.rpartition("-")[2][:15]
    return int(digits, 16) if re.fullmatch("[0-9a-f]{15}", digits) else 0


def mark(launch: str) -> str:
    """The beginning of a rank's message to distsgd.launch, on standard error, which every launcher forwards from every
    host. It contains the launch's secret, so that no other text can be taken for a message."""
    return f"\x1edistsgd {launch} "


def launched() -> str | None:
    """The name of the launch that this process is a rank of; None where distsgd.launch didn't start it.

    The first variable alone proves nothing: a shell, a batch job or a training that a rank has started inherits it.
    On every host, a rank's parent is the shell that distsgd.launch has started around it.
    """
    launch, parent = os.environ.get(LAUNCH_VARIABLE), os.environ.get(PARENT_VARIABLE)
    return launch if launch and parent == _parent() else None


def _parent() -> str:
    """This process's parent: its number, and its start where the system reports it, since numbers are reused."""
    number = os.getppid()
    found = stat(number)
    return f"{number}-{0 if found is None else found.started}"


def say(text: str, file: TextIO | None = None) -> None:
    """Prints one line at once, to stdout by default; a line end inside is shown as \\n.

    Where the stream is no longer available, nothing is printed any more.
    """
    _print(visible(text), file)


def say_lines(text: str, file: TextIO | None = None) -> None:
    """As `say`, for a text of several lines, such as a traceback."""
    _print(visible(text, lines=True), file)


def _print(text: str, file: TextIO | None) -> None:
    stream = sys.stdout if file is None else file
    try:
        try:
            print(text + "\n", end="", file=stream, flush=True)  # in one write: ranks print concurrently
        except UnicodeEncodeError:  # a character that this terminal can't show
            print(text.encode("ascii", "backslashreplace").decode("ascii") + "\n", end="", file=stream, flush=True)
    except (OSError, ValueError) as error:  # ValueError where the stream is closed
        if stream is sys.stdout and isinstance(error, OSError):
            note_failure(error)
        silence(stream)


_failed: list[str] = []
"""Why standard output could not be written."""


def note_failure(error: OSError) -> None:
    """Note that standard output could not be written, for `status_after_output`; a reader or a terminal that is gone is
    no failure."""
    if error.errno not in (errno.EPIPE, errno.EIO) or (error.errno == errno.EIO and not _is_device()):
        _failed.append(error.strerror or str(error))


def _is_device() -> bool:
    """Whether standard output is a device, such as a terminal."""
    with suppress(OSError):
        return modes.S_ISCHR(os.fstat(1).st_mode)
    return True


def status_after_output(status: int) -> int:
    """A command's exit status: 1 in place of 0 where its output could not be written, which is reported."""
    if status or not _failed:
        return status
    say(f"distsgd: error: could not write to standard output: {_failed[0]}; all else is done", sys.stderr)
    return 1


def number(value: float) -> str:
    """Four significant digits, in ten characters at most: 0.9000, 7.200e-05, -1.23e-100."""
    if value == 0:
        return "0"
    text = f"{value:#.4g}".rstrip(".")
    return text if len(text) <= 10 else f"{value:#.3g}"


def counted(count: int, what: str) -> str:
    """A number of things: 1 epoch, 20 epochs."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def columns(text: str) -> int:
    """Columns of a text on a terminal: two for a wide character, none for one that combines with that before it."""
    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def shortened(text: str, most: int) -> str:
    """The text in this many columns at most: where it is too long, … stands for its middle."""
    if columns(text) <= most:
        return text
    first, last, left = 0, len(text), most - 1
    while left >= columns(text[first] + text[last - 1]):
        left -= columns(text[first] + text[last - 1])
        first, last = first + 1, last - 1
    if left >= columns(text[first]):
        first += 1
    return f"{text[:first].rstrip()}…{text[last:]}"


def field(name: str, text: str) -> list[str]:
    """A name and a text, in lines that end at spaces before column 80.

    A long text, and a word that is longer than a line, are shown without their middle.
    """
    width, lines = COLUMNS - _NAME - 1, [""]
    for word in visible(text).strip().split(" "):
        longer = f"{lines[-1]} {shortened(word, width)}" if lines[-1] else shortened(word, width)
        if columns(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(shortened(word, width))
    if len(lines) > _LINES:
        lines[_LINES - 2 : -1] = ["…"]
    return [f"{first:<{_NAME}} {line.rstrip()}" for first, line in zip([name, *[""] * _LINES], lines, strict=False)]


def field_of_path(name: str, path: str) -> list[str]:
    """A name and a path, which is never cut: it gets a line of its own where it is long."""
    line = f"{name:<{_NAME}} {visible(path)}"
    return [line] if columns(line) <= COLUMNS else [name, visible(path)]


def say_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an unhandled exception: a sys.excepthook."""
    say_lines("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"), sys.stderr)


def report_to_launcher(kind: str, **values: object) -> bool:
    """Send distsgd.launch a message, in a line on standard error; False where it didn't start this process."""
    launch = launched()
    if launch is None:
        return False
    _print(mark(launch) + json.dumps({"kind": kind, **values}), sys.stderr)
    return True


def report_error(error: DistsgdError) -> None:
    """Print the error's sentence, or have distsgd.launch print it."""
    if not report_to_launcher("error", text=str(error), error=type(error).__name__, status=error.exit_status):
        say_lines(f"distsgd: error: {error}", sys.stderr)  # an error's text is one line already, but for a traceback


def columns_of_launcher() -> int | None:
    """Columns of the terminal that this process's mpirun prints to; None where none is found.

    Ranks print to a pipe, which the launcher reads. A rank on the launcher's host finds the terminal among the
    launcher's open files. distsgd.launch, which reads mpirun's output, passes the columns of its own terminal.
    """
    if launched() is not None:
        columns = os.environ.get(TERMINAL_VARIABLE, "")
        return int(columns) or None if columns.isascii() and columns.isdecimal() and len(columns) < 5 else None
    process = os.getppid()
    for _ in range(_GENERATIONS):
        about = stat(process)
        if about is None:
            break
        if about.name.startswith(("mpirun", "mpiexec", "srun", "prterun")):
            with suppress(OSError):
                out = os.readlink(f"/proc/{process}/fd/1")
                return columns_of(out) if out.startswith(("/dev/pts/", "/dev/tty")) else None
            break
        process = about.parent
    return None


def columns_of(path: str) -> int:
    """Columns of a terminal, which is opened only where it is one and belongs to this user."""
    try:
        about = os.lstat(path)
        if not modes.S_ISCHR(about.st_mode) or about.st_uid != os.geteuid():
            return COLUMNS
        descriptor = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return os.get_terminal_size(descriptor).columns or COLUMNS
        finally:
            os.close(descriptor)
    except OSError:
        return COLUMNS


def leave(status: int) -> None:
    """End this process at once with this exit status, even where its output can't be printed."""
    flush()
    os._exit(status)


def flush() -> None:
    """Flush the output, as far as that is possible."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()


def silence(stream: TextIO) -> None:
    """Discard all further output, also of Python's own last flush."""
    with suppress(OSError, ValueError), open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), stream.fileno())  # a stream without a descriptor has no last flush that can fail


_NAMED = 5
"""How many ranks a sentence names at most, where they aren't consecutive."""


def rank_names(numbers: Sequence[int]) -> str:
    """`rank 3`, `ranks 0 to 3`, or `ranks 0, 2 and 5`."""
    if len(numbers) == 1:
        return f"rank {numbers[0]}"
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"ranks {numbers[0]} to {numbers[-1]}"
    names = [str(number) for number in numbers]
    last = names.pop() if len(names) <= _NAMED else f"{len(names) - _NAMED} more"
    return f"ranks {', '.join(names[:_NAMED])} and {last}"
