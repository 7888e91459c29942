"""Runs commands side by side, each with a log of its own and until a given moment, and ends all that they started."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from benchmarks.processes import ROOT, environment
from distsgd.core.processes import with_variable

GRACE = 5.0
"""Seconds between SIGINT, at which pytest and benchmarks write what they have, and SIGKILL."""
_TAG = "DESCENDS_FROM_COMMAND"
"""An environment variable by which what a command started is found, in whichever process group it is.

Launchers and benchmarks give their children groups of their own, and would leave them behind when they are killed.
Its name is none of those that `environment` takes away.
"""
_BANNER = re.compile(r"^=+\n= +BAD TERMINATION", re.MULTILINE)
_PAUSE, _ROUNDS = 0.05, 20
_NOT_FOUND = 127
"""The exit status by which a shell says that there is no such program."""


@dataclass(frozen=True)
class Ended:
    """How a command ended; its `status` is None where it was ended at its limit, or not started for lack of time."""

    name: str
    status: int | None
    seconds: float
    log: Path

    @property
    def right(self) -> bool:
        return self.status == 0

    @property
    def text(self) -> str:
        """What it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def last_line(self) -> str:
        """The last one that it printed itself: below it MPICH's mpirun says at length that a process ended."""
        lines = [line for line in _BANNER.split(self.text)[0].splitlines() if line.strip()]
        return lines[-1].strip() if lines else "it printed nothing"

    def __str__(self) -> str:
        if self.status is not None:
            return f"exit status {self.status} after {self.seconds:.1f} s: {self.last_line}"
        return f"ended at its limit, after {self.seconds:.1f} s" if self.seconds else "no time was left for it"


class Running:
    """A command that runs in a session of its own, and writes what it prints to FOLDER/NAME.log."""

    def __init__(self, name: str, command: Sequence[str], folder: Path) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        self.tag = uuid4().hex  # process numbers come again: after a check that was killed, and in each container
        self.began = time.monotonic()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                env={**environment(), _TAG: self.tag, "PYTHONUNBUFFERED": "1"},  # a killed one leaves its lines
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, until: float) -> Ended:
        """Waits for its end, and ends it at the moment `until` of the monotonic clock, with all that it started."""
        status: int | None = None
        try:
            with suppress(subprocess.TimeoutExpired):
                status = self.process.wait(max(0.0, until - time.monotonic()))
        finally:
            self.end()
        return Ended(self.name, status, time.monotonic() - self.began, self.log)

    def end(self) -> None:
        """Ends what is left of it: asks first where the command itself runs."""
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE)
        for _ in range(_ROUNDS):  # what is killed may have started another process just before
            left = with_variable(_TAG, self.tag)
            for process in left:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(process, signal.SIGKILL)
            with suppress(ProcessLookupError, PermissionError):  # systems without /proc
                if self.process.poll() is None:
                    os.killpg(self.process.pid, signal.SIGKILL)
            if not left and self.process.poll() is not None:
                return
            time.sleep(_PAUSE)


def side_by_side(commands: Mapping[str, Sequence[str]], folder: Path, until: float, width: int) -> dict[str, Ended]:
    """Runs the commands, `width` at a time, until the moment `until`; how each ended, by name, in the given order."""
    started: list[Running] = []

    def run(name: str) -> Ended:
        log = folder / f"{name}.log"
        if time.monotonic() >= until:
            log.write_text("", encoding="utf-8")
            return Ended(name, None, 0.0, log)
        try:
            running = Running(name, commands[name], folder)
        except OSError as error:
            log.write_text(f"{commands[name][0]}: {error.strerror}\n", encoding="utf-8")
            return Ended(name, _NOT_FOUND, 0.0, log)
        started.append(running)
        return running.wait(until)

    pool = ThreadPoolExecutor(width)
    try:
        return dict(zip(commands, pool.map(run, commands), strict=True))
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for one in tuple(started):  # threads may still add to it
            one.end()
        raise
    finally:
        pool.shutdown()
