"""One start of mpirun, supervised from its beginning to its end."""

from __future__ import annotations

import mmap
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

from distsgd.core.output import LAUNCH_VARIABLE, STATUS_TABLE_VARIABLE, mark, note_failure, secret
from distsgd.core.processes import alive, can_look
from distsgd.core.status_table import Field, StatusTable
from distsgd.launching.words import Stream, Words

STOPPED = 75
"""The exit status of a run that a request has stopped with a checkpoint."""
_TICK = 0.25  # seconds
_SHOWN_SOON = 0.05
_LEFT_SECONDS = 2.0  # for mpirun to end the job after one rank has failed, or all have exited
_EXPLAINED_SECONDS = 5.0  # for mpirun to end the job after all ranks have reported the same error
_ENDED_SECONDS = 30.0  # for mpirun to end the job after the run is done
_PAUSE = 2.0
_STOPPING = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")


@dataclass(frozen=True)
class Limits:
    """Seconds until all ranks have connected, and without a heartbeat of any rank; 0 for no limit.

    of_script   ranks may end one after the other, and need not connect
    """

    start: float
    silence: float
    of_script: bool = False


@dataclass
class Ending:
    """How a start of `ranks` ranks ended.

    forced     why the launcher ended it
    places     each rank's PLACE, of those on this host
    passed_on  the signal to the launcher that it has passed on as SIGUSR1
    """

    status: int = 0
    words: Words = field(default_factory=Words)
    forced: str | None = None
    places: dict[int, int] = field(default_factory=dict)
    ranks: int = 0
    passed_on: int | None = None

    @property
    def rank_statuses(self) -> list[int]:
        """The exit statuses that the ranks' shells have reported."""
        return [int(message["status"]) for message in self.words.of("exit")]


class Stops:
    """Signals to the launcher: the first requests a checkpoint and an orderly end, the second an immediate end."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self._before: dict[int, Any] = {}
        self.wakes, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self.wakes, False)
        for name in _STOPPING:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # such as under nohup
                self._before[number] = signal.signal(number, lambda number, frame: self.asked.append(number))
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)

    def close(self) -> None:
        """Close the pipe, and restore the handlers of before, unless a signal came: another would end the launcher."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items() if not self.asked else ():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        os.close(self.wakes)
        os.close(self._wake)

    def drain(self) -> None:
        """Empty the pipe that wakes a waiting launcher."""
        with suppress(BlockingIOError):
            os.read(self.wakes, 4096)


class Start:
    """Runs an mpirun command; `run` returns when all of its processes have ended."""

    def __init__(
        self, line: Sequence[str], settings: Mapping[str, str], ranks: int, stops: Stops, limits: Limits
    ) -> None:
        self._ranks, self._stops, self._limits = ranks, stops, limits
        self._ending = Ending(ranks=ranks)
        launch = settings.get(LAUNCH_VARIABLE, "")
        self._table, descriptor = _make_status_table(ranks, secret(launch))
        variables = {} if self._table is None else {STATUS_TABLE_VARIABLE: f"/proc/{os.getpid()}/fd/{descriptor}"}
        self._process = subprocess.Popen(
            line,
            env={**settings, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C is for the launcher alone
        )
        pipes = {self._process.stdout: 1, self._process.stderr: 2}
        self._streams = {
            pipe: (Stream(self._ending.words, mark(launch).encode()), target)
            for pipe, target in pipes.items()
            if pipe is not None
        }
        self._descriptor = descriptor
        self._began = self._last = self._awake = time.monotonic()
        self._over: tuple[float, float] | None = None  # (seconds that are left, since when)

    def run(self) -> Ending:
        """Wait for the end, pass on what ranks print, and end the job where it would never end."""
        gone: float | None = None
        with selectors.DefaultSelector() as selector:
            selector.register(self._stops.wakes, selectors.EVENT_READ)
            for pipe in self._streams:
                selector.register(pipe, selectors.EVENT_READ)
            is_open = list(self._streams)
            while is_open or self._process.poll() is None:
                pending = any(stream.pending for stream, _ in self._streams.values())
                ready = {key.fileobj for key, _ in selector.select(_SHOWN_SOON if pending else _TICK)}
                if self._stops.wakes in ready:
                    self._stops.drain()
                for pipe in [*is_open]:
                    if not self._listen(pipe, pipe in ready):
                        selector.unregister(pipe)
                        is_open.remove(pipe)
                self._act(time.monotonic())
                if self._process.poll() is not None:
                    gone = gone or time.monotonic()
                    if time.monotonic() - gone > 2 * _TICK:
                        break  # a process that has outlived mpirun holds its pipes
        return self._finish()

    def _listen(self, pipe: IO[bytes], ready: bool) -> bool:
        """Pass on the available output; return whether there can be more."""
        stream, target = self._streams[pipe]
        data = os.read(pipe.fileno(), 1 << 16) if ready else b""
        _pass_on(target, stream.feed(data) if ready else stream.flush())
        return bool(data) or not ready

    def _act(self, now: float) -> None:
        """Handle signals, and end the job where a limit has passed."""
        if now - self._last > _PAUSE:
            self._awake = now  # this process was stopped, and can't judge what others did meanwhile
        self._last = now
        if len(self._stops.asked) > 1:
            self._kill("received two requests to stop")
        elif self._stops.asked and self._ending.passed_on is None and (self._limits.of_script or self._all_there()):
            self._ending.passed_on = self._stops.asked[0]
            self._ask_ranks()
        left = self._seconds_left()
        if left is not None and (self._over is None or left != self._over[0]):
            self._over = (left, now)
        if self._over is not None and now - self._over[1] > self._over[0]:
            self._kill(None)
        if not self._all_there() and self._limits.start and now - self._began > self._limits.start:
            self._kill(f"the ranks did not find each other within {self._limits.start:g} s")
        silent = self._silence(now)
        if self._limits.silence and silent > self._limits.silence:
            self._kill(f"no rank on this host has shown a sign of life for {silent:.0f} s")

    def _seconds_left(self) -> float | None:
        """How long mpirun may take to end after the messages so far; None where it may continue."""
        words = self._ending.words
        exits = words.of("exit")
        if len(exits) >= self._ranks:
            return _LEFT_SECONDS
        if self._limits.of_script:
            exits = [message for message in exits if message["status"] not in (0, STOPPED)]
        if words.of("ended"):
            return _ENDED_SECONDS
        if words.of("error"):
            return _EXPLAINED_SECONDS
        return _LEFT_SECONDS if exits or words.of("raised") or words.of("stalled") else None

    def _all_there(self) -> bool:
        return sum(len(message["ranks"]) for message in self._ending.words.of("rank_table")) >= self._ranks

    def _ask_ranks(self) -> None:
        """Forward a stop as SIGUSR1, which every mpirun forwards; to a rank on this host where there is one.

        A script's ranks may train in groups, and all of them receive it.
        """
        for _, line in self._started() if not self._limits.of_script else ():
            if alive(line[Field.PROCESS], line[Field.STARTED]):
                os.kill(line[Field.PROCESS], signal.SIGUSR1)
                return
        self._process.send_signal(signal.SIGUSR1)

    def _started(self) -> list[tuple[int, memoryview]]:
        """(rank, line of the status table) of the ranks on this host that have started."""
        lines = [] if self._table is None else [(rank, self._table.line(rank)) for rank in range(self._ranks)]
        return [(rank, line) for rank, line in lines if line[Field.PROCESS]]

    def _silence(self, now: float) -> float:
        """Seconds since the last heartbeat of a rank on this host; 0 where none has started."""
        beats = [line[Field.BEAT] / 1e9 for _, line in self._started() if line[Field.BEAT]]
        return now - max(*beats, self._awake) if beats and self._all_there() else 0.0

    def _kill(self, why: str | None) -> None:
        if self._ending.forced is None:
            self._ending.forced = why
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _finish(self) -> Ending:
        ending = self._ending
        for stream, target in self._streams.values():
            _pass_on(target, stream.flush(at_end=True))
        ending.status = self._process.wait()
        for pipe in self._streams:
            pipe.close()
        ending.places = {rank: line[Field.PLACE] for rank, line in self._started()}
        self._table = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
        return ending


def _make_status_table(ranks: int, key: int) -> tuple[StatusTable | None, int]:
    """(a status table that ranks on this host can open, its descriptor), or (None, -1)."""
    if not hasattr(os, "memfd_create") or not can_look():
        return None, -1
    descriptor = os.memfd_create("distsgd-status-table", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, StatusTable.bytes_for(ranks))
    table = StatusTable(memoryview(mmap.mmap(descriptor, StatusTable.bytes_for(ranks))), ranks)
    table.mark(key)
    return table, descriptor


def _pass_on(target: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(target, data) :]
    except OSError as error:
        if target == 1:
            note_failure(error)
