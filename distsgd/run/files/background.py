"""Writes on a thread of its own, while training continues, and tries again where writing fails.

Hashing and writing let go of the interpreter, so the thread costs the run little more than its share of a core.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from distsgd.core.errors import DistsgdError, OutputError, UserCodeError

_LAST_PATIENCE = 3.0
"""Seconds for which a run that fails waits for it: other ranks wait for this one."""


@dataclass(frozen=True, eq=False)
class Task:
    """Something to write: `write` raises DistsgdError where that fails, and may be called again."""

    name: str
    write: Callable[[], None]


class BackgroundWriter:
    """Writes one task at a time; holds no other than this one.

    A task that fails is tried again, after 1 s, 2 s, 4 s and so on up to `longest_pause`, until it is written or a
    newer one takes its place. `report` gets one line when writing begins to fail, and one when it works again; the
    thread calls it.
    """

    def __init__(
        self, report: Callable[[str], None], first_pause: float = 1.0, longest_pause: float = 60.0, last_tries: int = 3
    ) -> None:
        self._report, self._last_tries = report, last_tries
        self._first_pause, self._longest_pause = first_pause, longest_pause
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._task: Task | None = None
        self._stuck: Task | None = None
        self._problem: DistsgdError | None = None
        self._tries = 0
        self._at_once = self._closing = False

    def busy(self, patience: float = 0.0) -> bool:
        """Whether a task is still being written for the first time; waits up to `patience` seconds for its end.

        A newer task replaces one that has failed. No call waits a second time for a task that took longer.
        """
        with self._changed:
            if self._is_busy() and self._stuck is not self._task:
                self._changed.wait_for(lambda: not self._is_busy(), timeout=patience)
                if self._is_busy() and patience:
                    assert self._task is not None
                    self._stuck = self._task
                    self._report(f"{self._task.name} is still being written after {patience:g} s; others are skipped")
            return self._is_busy()

    def _is_busy(self) -> bool:
        return self._task is not None and self._problem is None

    def submit(self, task: Task) -> None:
        """Submits a task; it takes the place of one that couldn't be written. Call when not `busy`."""
        with self._changed:
            self._task = task
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="distsgd-writer", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def finish(self) -> None:
        """Waits until all is written. Raises what still goes wrong after a few more tries, and gives up the task."""
        with self._changed:
            self._tries, self._at_once = 0, True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._task is None or self._tries >= self._last_tries)
            self._at_once = False
            given_up, self._task = self._task is not None, None
            if given_up and self._problem is not None:
                raise self._problem

    def close(self) -> None:
        """Lets what is being written come to its end, gives up what has failed, and ends the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_LAST_PATIENCE)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._task is not None or self._closing)
                task = self._task
            if task is None:
                return
            problem = _try(task)
            with self._changed:
                self._report_change(problem)
                self._problem = problem
                self._tries = 0 if problem is None else self._tries + 1
                if problem is None and self._task is task:
                    self._task = None
                self._changed.notify_all()
                if self._task is task:
                    self._pause(task)
                if self._closing:
                    return

    def _pause(self, task: Task) -> None:
        """Waits before the next try; not for a newer task."""
        seconds = min(self._first_pause * 2.0 ** min(self._tries - 1, 30), self._longest_pause)
        at_once = self._at_once
        self._changed.wait_for(lambda: self._task is not task or self._closing or self._at_once > at_once, seconds)

    def _report_change(self, problem: DistsgdError | None) -> None:
        if problem is not None and self._problem is None:
            self._report(f"{problem}; the last good checkpoint stays, and this is tried again")
        elif problem is None and self._problem is not None:
            self._report("checkpoints are written again")


def _try(task: Task) -> DistsgdError | None:
    """What went wrong, None where the task is done."""
    try:
        task.write()
    except DistsgdError as error:
        return error
    except OSError as error:
        return OutputError(f"{task.name} could not be written: {error.strerror or error}")
    except Exception:
        return UserCodeError.here(f"{task.name} could not be written")
    return None
