"""The file of --trace: what all ranks did in some steps, in Chrome's trace event format.

Reference: Trace Event Format, the documentation of chrome://tracing; Perfetto (ui.perfetto.dev) reads it, too.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distsgd.core.errors import ConfigurationError, OutputError
from distsgd.core.files import expanded, open_regular
from distsgd.core.folders import write_atomically

if TYPE_CHECKING:
    from distsgd.training.profile import RankTrace

_MICROSECONDS = 1e6
_BEGIN = '{"displayTimeUnit": "ms",\n"otherData": '
"""What each file begins with, by which an earlier one is known."""
_COLORS = {
    "compute": "thread_state_running",
    "wait": "thread_state_iowait",
    "communicate": "thread_state_runnable",
    "gather": "thread_state_uninterruptible",
    "other": "generic_work",
}
"""The color of each part by chrome://tracing's name. Where none is given, a hash of the event's name chooses it, and
`wait` and `finish` look alike."""


def check_trace(given: str) -> None:
    """Raises ConfigurationError where no file can be written at this path, or one would be lost that is no trace."""
    path = expanded(given)
    try:
        folder = path.parent.stat().st_mode
        there = path.stat().st_mode if path.exists() else stat.S_IFREG
    except OSError as error:
        raise ConfigurationError(
            f"trace: expected the path of a file in a folder that is there, got {given} ({error.strerror}); make the "
            "folder first, or give another path"
        ) from None
    if not stat.S_ISDIR(folder) or stat.S_ISDIR(there):
        what = "which is a folder" if stat.S_ISDIR(there) else f"and {path.parent} is no folder"
        raise ConfigurationError(f"trace: expected the path of a file, got {given}, {what}; give another path")
    if not stat.S_ISREG(there):
        raise ConfigurationError(
            f"trace: expected the path of a regular file, got {given}, a pipe, a socket or a device, which would be "
            "replaced; give another path"
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"trace: expected a folder to write into, may not write in {path.parent}; give another path"
        )
    if not _may_be_replaced(path):
        raise ConfigurationError(
            f"trace: expected the path of a new file or of an earlier trace, got {given}, which holds something else "
            "and would be lost; give another path"
        )


def _may_be_replaced(path: Path) -> bool:
    """Whether nothing is there, or a file that `write_trace` wrote, or an empty one."""
    try:
        with open_regular(path) as file:
            return file.read(len(_BEGIN)) in (b"", _BEGIN.encode())
    except FileNotFoundError:
        return True
    except OSError:
        return False


def writer_of(given: str | None) -> Callable[[Sequence[RankTrace]], None] | None:
    """What writes all ranks' events to the file of this path; None where none is given."""
    return None if given is None else partial(write_trace, expanded(given))


def write_trace(path: Path, ranks: Sequence[RankTrace]) -> None:
    """Writes the file, whole or not at all. Raises OutputError."""
    lines = ",\n".join(json.dumps(event, ensure_ascii=False) for event in events(ranks))
    uncertainty = max(rank.uncertainty for rank in ranks) * _MICROSECONDS
    about = json.dumps({"ranks": len(ranks), "clocks_differ_by_us": round(uncertainty, 3)})
    text = f'{_BEGIN}{about},\n"traceEvents": [\n{lines}\n]}}\n'
    try:
        write_atomically(path, text.encode("utf-8", "replace"))
    except OSError as error:
        raise OutputError(
            f"trace: could not write {path}: {error.strerror or error}; put that right, or give another path"
        ) from None


def events(ranks: Sequence[RankTrace]) -> Iterator[dict[str, Any]]:
    """The file's events: the names of the ranks, each a process with one thread, then what they did, in order.

    Times are microseconds since the first event.
    """
    for number, rank in enumerate(ranks):
        name = f"rank {number} on {rank.host}"
        yield {"name": "process_name", "ph": "M", "pid": number, "tid": 0, "args": {"name": name}}
        yield {"name": "process_sort_index", "ph": "M", "pid": number, "tid": 0, "args": {"sort_index": number}}
        yield {"name": "thread_name", "ph": "M", "pid": number, "tid": 0, "args": {"name": "main thread"}}
    found = [(event, number) for number, rank in enumerate(ranks) for event in rank.events]
    found.sort(key=lambda one: (one[0].begin, -one[0].end, one[1]))  # what holds other events comes before them
    zero = found[0][0].begin if found else 0.0
    for event, number in found:
        begin, end = (round((time - zero) * _MICROSECONDS, 3) for time in (event.begin, event.end))
        yield {
            "name": event.name, "cat": event.part, "cname": _COLORS[event.part], "ph": "X", "ts": begin,
            "dur": round(end - begin, 3), "pid": number, "tid": 0,
        }  # fmt: skip
