"""What an exception does that nothing catches on a rank for which others wait: it is reported once, and all ranks end.

A command's process is distsgd's own: its hooks stay. A program that calls `fit` keeps its own hooks: distsgd's are
there as long as an exception exists that `fit` has raised, pass all other exceptions on, and are then taken back. Of
an exception that the program raises itself, between two fits, its own hook prints the traceback, and the end of the
process ends all ranks.
"""

from __future__ import annotations

import atexit
import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

from distsgd.core.errors import DistsgdError, UserCodeError, text_of
from distsgd.core.output import report_error, report_to_launcher, say_lines
from distsgd.parallel.communicator import Communicator
from distsgd.parallel.mpi import MPICommunicator

_FIRST_REPORTS = 1.0  # seconds
_MARK = "__distsgd_raised__"
"""The attribute of an exception that `fit` has raised."""

_guarding = threading.RLock()  # an exception may end while its thread holds the lock
_alive = 0
_before: dict[str, Callable[..., object]] = {}
"""The hooks before distsgd's, as long as these are there."""
_crashes = 0
_ends_all = False
"""Whether the end of this process does."""


def abort_on_unhandled_errors(communicator: Communicator) -> None:
    """Have an unhandled exception of this command end all ranks, which would otherwise wait for this one."""
    if not faulthandler.is_enabled():
        _enable()

    def show(text: str) -> None:
        rank = communicator.rank
        say_lines(f"rank {rank} on {communicator.hosts[rank]}:\n{text}", sys.stderr)

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        # Most errors are raised on all ranks, and rank 0 reports them. Another rank reports what rank 0 didn't raise.
        if isinstance(error, DistsgdError) and communicator.rank != 0:
            time.sleep(_FIRST_REPORTS)
        _end_all(communicator, error, show)

    def thread_hook(arguments: threading.ExceptHookArgs) -> None:
        if isinstance(arguments.exc_value, DistsgdError):
            hook(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
        else:
            threading.__excepthook__(arguments)

    sys.excepthook, threading.excepthook = hook, thread_hook


def _end_all(communicator: Communicator, error: BaseException, show: Callable[[str], object]) -> None:
    """Report an error, and end all ranks; `show` prints its traceback."""
    status = 1
    try:
        if isinstance(error, DistsgdError):
            status = error.exit_status
            report_error(error)
        else:
            text = "".join(traceback.format_exception(error))
            about = {"rank": communicator.rank, "host": communicator.hosts[communicator.rank]}
            if not report_to_launcher("raised", **about, error=_in_words(error), text=text):
                show(text)
    finally:
        communicator.abort(status)


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {text_of(error)}"


class _Raised:
    """Goes with an exception that `fit` has raised on ranks that wait for each other, and ends with it."""

    def __init__(self, communicator: Communicator, reports: bool) -> None:
        self.communicator, self.reports = communicator, reports
        _put_in_place()

    def __del__(self) -> None:
        _take_back()

    def __reduce__(self) -> tuple[Any, ...]:
        return str, ()  # a copy of the exception is one that anybody may raise


def end_all_where_unhandled(communicator: Communicator, caught: BaseException, raised: BaseException) -> None:
    """Have `raised`, which `fit` is about to raise on these ranks for `caught`, end all of them if nothing catches it.

    One rank reports it, and another one does so where that one has caught it. A traceback is printed by the program's
    own hook, so that its rank needs none of distsgd's.
    """
    if communicator.size == 1 or not isinstance(communicator, MPICommunicator):
        return
    reports = not caught.is_copy if isinstance(caught, UserCodeError) else communicator.is_root
    if isinstance(caught, DistsgdError):
        _clear_frames(caught)
    if isinstance(caught, UserCodeError):
        caught.error = None
    if isinstance(raised, DistsgdError) or not reports:
        with suppress(Exception):  # of a class without an ordinary __dict__, which the process's end reports
            vars(raised)[_MARK] = _Raised(communicator, reports)


def _clear_frames(error: BaseException) -> None:
    """Let go of what distsgd's functions held: among it the error itself, which would live on in a circle."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").startswith("distsgd."):
            with suppress(RuntimeError):  # it still runs
                trace.tb_frame.clear()
        trace = trace.tb_next


def _put_in_place() -> None:
    global _alive
    with _guarding:
        _alive += 1
        if _alive == 1:
            _before.update(main=sys.excepthook, thread=threading.excepthook)
            sys.excepthook, threading.excepthook = _main_hook, _thread_hook


def _take_back() -> None:
    global _alive
    with _guarding:
        _alive -= 1
        if not _alive:
            if sys.excepthook is _main_hook:  # else the program has set another one since
                sys.excepthook = _before["main"]
            if threading.excepthook is _thread_hook:
                threading.excepthook = _before["thread"]


def _main_hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _hook(error, _before["main"], sys.__excepthook__, (kind, error, trace))


def _thread_hook(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is not None:
        _hook(arguments.exc_value, _before["thread"], threading.__excepthook__, (arguments,))


def _hook(
    error: BaseException, before: Callable[..., object], default: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    raised = None
    with suppress(Exception):
        raised = vars(error).get(_MARK)
    if not isinstance(raised, _Raised):
        before(*arguments)
        return
    if not raised.reports:
        time.sleep(_FIRST_REPORTS)
    if before is not default and isinstance(error, DistsgdError):
        with suppress(Exception):  # of the program's own hook
            before(*arguments)
    _end_all(raised.communicator, error, lambda text: before(*arguments))


def end_all_at_an_unhandled_end(communicator: Communicator) -> None:
    """Have the end of this process end all processes of the job where an exception of the program's own is the reason.

    The first of a process's communicators does it.
    """

    global _ends_all
    if _ends_all:
        return
    _ends_all, process = True, os.getpid()

    def at_exit() -> None:
        if os.getpid() != process:  # forked from a rank
            return
        error, trace = getattr(sys, "last_value", None), getattr(sys, "last_traceback", None)
        # Debuggers and test runners set them as well, for exceptions that they have caught in a function.
        if error is None or trace is None or trace.tb_frame.f_back is not None:
            return
        if hasattr(sys, "ps1") or sys.flags.interactive:
            return
        rank = communicator.rank
        report_to_launcher("raised", rank=rank, host=communicator.hosts[rank], error=_in_words(error), text="")
        communicator.abort(1)

    atexit.register(at_exit)


@contextmanager
def crashes_shown(communicator: Communicator) -> Iterator[None]:
    """Inside, a crash of this rank prints where it was, unless the program has set faulthandler otherwise."""
    global _crashes
    if communicator.size == 1 or not isinstance(communicator, MPICommunicator):
        yield
        return
    with _guarding:
        mine = _crashes > 0 or not faulthandler.is_enabled()
        if mine:
            _crashes += 1
            if _crashes == 1:
                _enable()
    try:
        yield
    finally:
        with _guarding:
            if mine:
                _crashes -= 1
                if not _crashes:
                    faulthandler.disable()


def _enable() -> None:
    with suppress(ValueError, OSError, AttributeError, RuntimeError):  # a standard error without a descriptor
        faulthandler.enable(all_threads=False)
