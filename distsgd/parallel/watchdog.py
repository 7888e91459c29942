"""The watchdog: a thread of each rank that ends the job, with a reason, where ranks would wait forever.

It reads its rank's line in the host's status table twice a second. Where the rank has been in one collective for too
long, it determines from the neighbours' lines and from the system which of them are missing and what they do.
`docs/reliability.md` defines a stall.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distsgd.core.output import launched, rank_names, report_to_launcher, say
from distsgd.core.processes import STACK_SIGNAL, alive, are_stacks_printed, can_look, print_stacks_when_asked, stat
from distsgd.core.status_table import Collective, Field, Phase, StatusTable, where
from distsgd.parallel.communicator import Communicator

DEFAULT_LIMIT = 120.0
OUTSIDE_STEPS = 10
"""By how much ranks may wait longer between steps, where one of them may have work of its own."""

_TICK = 0.5  # seconds
_GONE = 2.0  # seconds for the MPI launcher to notice that a process has ended
_OTHERS_FIRST = 2.0  # seconds that a host without a missing rank waits for a report from the other hosts
_REPORTER_FIRST = 3.0  # seconds that other ranks of a host wait for the report of the first
_BEATS = 2.0  # seconds within which the watchdog of a live rank runs again
_ENDED = 1.0  # seconds for the launcher to end all ranks after one rank has ended the job
_PAUSE = 2.0  # seconds without a tick: this process was stopped, or got no processor time
_STACK_SECONDS = 0.3
_AT_ONCE = 0.05  # seconds within which two ranks may decide to report
_LEFT, _ENDED_THE_JOB = 1, 2  # values of a line's LEFT
_watching: set[Watchdog] = set()
"""The watchdogs of this process, one for each group of ranks that it belongs to."""


@dataclass(frozen=True)
class Missing:
    """A rank of this host that the others wait for; `limit` is how long they may wait in seconds, or inf."""

    rank: int
    what: str
    limit: float
    waited: float


class Watchdog:
    """Watches one rank; `neighbours` are the ranks of its host, itself among them."""

    def __init__(
        self, table: StatusTable, rank: int, hosts: Sequence[str], neighbours: Sequence[int], end: Callable[[], None]
    ) -> None:
        self.limit, self.stacks = DEFAULT_LIMIT, False
        self._table, self._rank, self._hosts, self._end = table, rank, tuple(hosts), end
        self._host = self._hosts[rank]
        self._lines = {neighbour: table.line(neighbour) for neighbour in neighbours}
        self._line = self._lines[rank]
        found = stat(os.getpid())
        self._line[Field.STARTED] = 0 if found is None else found.started
        self._line[Field.PROCESS] = os.getpid()
        self._last = time.monotonic()
        self._state = 0
        self._work, self._unchanged = (0, 0, 0), self._last
        self._progress: dict[int, tuple[int, float]] = {}
        self._gone: dict[int, float] = {}
        self._ended: float | None = None
        self._stop = threading.Event()
        self._above = self._grandparent()
        self._thread = threading.Thread(target=self._run, name="distsgd-watchdog", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        if are_stacks_printed():
            print_stacks_when_asked()  # again: MPI may have taken the signal when it started
        self.look(time.monotonic())
        _watching.add(self)
        self._thread.start()

    def leave(self) -> None:
        """Record that this rank's program has ended: ranks that wait for it now would wait forever."""
        if self._line[Field.PROCESS] == os.getpid():  # and not a process that it has forked
            self._stop.set()
            self._line[Field.LEFT] = _LEFT

    def stop(self) -> None:
        """End the thread: these ranks wait for each other no more."""
        self._stop.set()
        _watching.discard(self)

    def _run(self) -> None:
        while not self._stop.wait(min(_TICK, max(self.limit / 8, 0.05)) if self.limit else _TICK):
            if self._grandparent() != self._above:
                os.kill(os.getpid(), signal.SIGKILL)
            problem = self.look(time.monotonic())
            if self.left_alone(time.monotonic()):
                os.kill(os.getpid(), signal.SIGKILL)
            if problem is not None:
                self.report(problem)

    def _grandparent(self) -> int | None:
        """Mpirun, under distsgd.launch: the rank's parent is a shell, and the kernel signals only parents' deaths."""
        found = stat(os.getppid()) if launched() is not None else None
        return None if found is None else found.parent

    def look(self, now: float) -> str | None:
        """Check once; return what is wrong where this rank is the one to report it, else None."""
        line = self._line
        line[Field.BEAT] = int(now * 1e9)
        if self._outside and self._trains_elsewhere():
            line[Field.PROGRESS] += 1
        state, paused = line[Field.STATE], now - self._last > _PAUSE
        self._last = now
        if not state % 16:
            line[Field.SINCE] = 0
            return self._held_by_files(now, (state, line[Field.PLACE], line[Field.PROGRESS]), paused)
        if state != self._state or paused:  # this process can't judge what others did while it was stopped
            self._state = state
            line[Field.SINCE] = int(now * 1e9)
            self._progress = {rank: (other[Field.PROGRESS], now) for rank, other in self._lines.items()}
            return None
        return self._judge(now, now - line[Field.SINCE] / 1e9)

    def _trains_elsewhere(self) -> bool:
        """Whether this rank trains alone, or in another group, whose watchdog judges that."""
        alone = Communicator.heartbeat.line[Field.PLACE] % 16 != Phase.OUTSIDE
        return alone or not all(other._outside for other in tuple(_watching))

    @property
    def _outside(self) -> bool:
        """Whether this rank does nothing for its group."""
        return self._line[Field.PLACE] % 16 == Phase.OUTSIDE and not self._line[Field.STATE] % 16

    def left_alone(self, now: float) -> bool:
        """Whether a neighbour has ended the job and this rank still runs: then no launcher will end it."""
        if all(line[Field.LEFT] != _ENDED_THE_JOB for line in self._lines.values()):
            return False
        self._ended = now if self._ended is None else self._ended
        return now - self._ended > _ENDED

    def _judge(self, now: float, waited: float) -> str | None:
        """The report after this rank has waited so long; None while it may wait longer."""
        if any(line[Field.LEFT] == _ENDED_THE_JOB for line in self._lines.values()):
            return None  # reported already
        missing = [found for rank in self._lines if (found := self._missing(rank, now, waited)) is not None]
        late = max((found.waited - found.limit for found in missing), default=-math.inf)
        where_waiting = f"in {Collective(self._state % 16).title} {where(self._line[Field.PLACE])}"
        if late > 0 and self._is_reporter(now, late):
            there = [rank for rank in self._lines if rank not in {found.rank for found in missing}]
            them = "it" if len(missing) == 1 else "them"
            named = "; ".join(f"rank {found.rank} on {self._host} {found.what}" for found in missing)
            return f"{named}; {_waiting(there)} waited {waited:.0f} s for {them} {where_waiting}"
        # A neighbour that has just arrived after long work keeps no rank waiting any more.
        together = min(now - line[Field.SINCE] / 1e9 if line[Field.SINCE] else 0.0 for line in self._lines.values())
        late = together - self._limit_at(self._line[Field.PLACE]) - _OTHERS_FIRST
        if missing or late <= 0 or not self._is_reporter(now, late):
            return None
        here = f"{_waiting(list(self._lines), f' on {self._host}')} waited {waited:.0f} s {where_waiting}"
        others = sorted(set(self._hosts) - {self._host})
        if others:
            return f"{here}, and all ranks of that host are there: a rank on {', '.join(others)} is missing"
        return f"{here}, and no rank is missing: they wait for each other"

    def _missing(self, rank: int, now: float, waited: float) -> Missing | None:
        """Whether and why a neighbour isn't in this rank's collective."""
        line = self._lines[rank]
        process, place = line[Field.PROCESS], where(line[Field.PLACE])
        if rank == self._rank or not process:
            return None
        if line[Field.LEFT] or _dead(line):
            return Missing(rank, f"has left early, {place}", _GONE, now - self._gone.setdefault(rank, now))
        found, limit = stat(process), self.limit or math.inf
        silent = now - line[Field.BEAT] / 1e9
        if found is not None and found.state in "tT":
            return Missing(rank, f"is stopped {place} (process {process})", limit, waited)
        if silent > max(2.0, min(limit / 4, 10.0)):
            return Missing(rank, f"shows no sign of life {place} (process {process})", limit, min(waited, silent))
        if line[Field.STATE] % 16:
            return None
        before, when = self._progress.get(rank, (0, now))
        if line[Field.PROGRESS] != before:
            when = now
            self._progress[rank] = (line[Field.PROGRESS], now)
        doing = "waits for files or devices" if found is not None and found.state == "D" else "is busy"
        what = f"{doing} {place} (process {process})"
        return Missing(rank, what, self._limit_at(line[Field.PLACE]), min(waited, now - when))

    def _limit_at(self, place: int) -> float:
        """How long others may wait for a rank that works at this place."""
        phase = place % 16
        if not self.limit:
            return math.inf
        return self.limit if phase == Phase.STEP else OUTSIDE_STEPS * self.limit

    def _is_reporter(self, now: float, late: float) -> bool:
        """Whether this is the first waiting rank of its host, which reports for all, or that rank didn't report."""
        waiting = [
            rank
            for rank, line in self._lines.items()
            if line[Field.SINCE]
            and not line[Field.LEFT]
            and now - line[Field.BEAT] / 1e9 < _BEATS
            and not _dead(line)  # such as one that has reported, and whose abort ended only itself
        ]
        return min([self._rank, *waiting]) == self._rank or late > _REPORTER_FIRST

    def _held_by_files(self, now: float, work: tuple[int, int, int], paused: bool) -> str | None:
        """Report a stuck file system, which may hold all ranks at once: then no rank waits in a collective."""
        found = stat(os.getpid()) if work == self._work and self.limit else None
        if found is None or found.state != "D" or paused:
            self._work, self._unchanged = work, now
            return None
        if now - self._unchanged <= self.limit:
            return None
        place = where(self._line[Field.PLACE])
        return (
            f"rank {self._rank} on {self._host} has waited {now - self._unchanged:.0f} s for files or devices {place}"
        )

    def report(self, problem: str) -> None:
        """Print the problem and end the job, where no other rank of this host does."""
        # Stacks take longer than a rank waits for the end.
        if not self.stacks and not self._ends_the_job():
            return
        if not report_to_launcher("stalled", rank=self._rank, host=self._host, text=problem):
            say(f"distsgd: error: {problem}", sys.stderr)
        if self.stacks:
            self._print_stacks()
        self._line[Field.LEFT] = _ENDED_THE_JOB
        self._end()

    def _ends_the_job(self) -> bool:
        """Whether it is this rank that does: the first of those that have decided to at the same moment."""
        if any(line[Field.LEFT] == _ENDED_THE_JOB for line in self._lines.values()):
            return False
        self._line[Field.LEFT] = _ENDED_THE_JOB
        time.sleep(_AT_ONCE)
        return all(line[Field.LEFT] != _ENDED_THE_JOB for rank, line in self._lines.items() if rank < self._rank)

    def _print_stacks(self) -> None:
        if STACK_SIGNAL is None:
            return
        for rank, line in self._lines.items():
            if alive(line[Field.PROCESS], line[Field.STARTED]):
                say(f"stacks of rank {rank} on {self._host}:", sys.stderr)
                os.kill(line[Field.PROCESS], STACK_SIGNAL)
                time.sleep(min(_STACK_SECONDS, _REPORTER_FIRST / 2 / len(self._lines)))


def _dead(line: memoryview) -> bool:
    return can_look() and not alive(line[Field.PROCESS], line[Field.STARTED])


def _waiting(ranks: Sequence[int], where: str = "") -> str:
    """`rank 3 has` or `ranks 0 to 3 have`, with the place after the numbers."""
    return f"{rank_names(ranks)}{where} {'has' if len(ranks) == 1 else 'have'}"
