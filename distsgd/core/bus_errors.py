"""A sentence in place of the signal that ends a process where a file that it has mapped gets shorter.

To read a mapped file past its end raises SIGBUS. Python's own handlers run after the instruction, which would be made
again, for ever. So this handler is a C function, as ctypes makes them: it runs at once, in the thread that reads.
"""

from __future__ import annotations

import ctypes
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from distsgd.core.device import Array
from distsgd.core.errors import DataError, DistsgdError
from distsgd.core.files import FileStamp, mapped_files
from distsgd.core.output import report_error

_ROOT_FIRST = 1.0
"""Seconds that other ranks wait, for most of them read the same file."""

_LOCK = threading.Lock()
_watched: dict[str, FileStamp] = {}
_former: list[int | None] = []
"""The handler of before, while this one is in place."""
_handlers: list[object] = []
"""Kept, or ctypes would free what the system calls."""
_users = 0


def watch(arrays: Sequence[Array], rank: int, abort: Callable[[int], object]) -> None:
    """Have a read that fails in the mapped files of these arrays end the job, by `abort` with the exit status."""
    stamps = mapped_files(arrays)
    with _LOCK:
        _watched.update({stamp.path: stamp for stamp in stamps})
        if _former or not stamps:
            return

        def end(number: int) -> None:
            if rank:
                time.sleep(_ROOT_FIRST)
            report_error(_error())
            abort(DataError.exit_status)

        handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(end)
        _handlers.append(handler)
        _former.append(_signal()(signal.SIGBUS, ctypes.cast(handler, ctypes.c_void_p)))


def _signal() -> Callable[[int, object], int | None]:
    found = ctypes.CDLL(None).signal
    found.argtypes, found.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    return found


def _error() -> DistsgdError:
    for stamp in _watched.values():
        try:
            stamp.check()
        except DataError as error:
            return error
    return DataError(
        f"expected to read {' or '.join(_watched)} as it is mapped, that failed (a bus error); look after its "
        "disk and after /dev/shm, which may be full"
    )


@contextmanager
def watched(arrays: Sequence[Array], rank: int, abort: Callable[[int], object]) -> Iterator[None]:
    """The same until this block ends, and every other one; then the handler of before is in place again."""
    global _users
    with _LOCK:
        _users += 1
    try:
        watch(arrays, rank, abort)
        yield
    finally:
        with _LOCK:
            _users -= 1
            if not _users and _former:
                _signal()(signal.SIGBUS, _former.pop())
                _watched.clear()
                _handlers.clear()
