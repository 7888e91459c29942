"""What distsgd.launch starts: training, whose folder proves how it ended, or a script, whose exit status does."""

from __future__ import annotations

import math
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from distsgd.core.errors import ConfigurationError
from distsgd.core.output import say
from distsgd.launching.causes import Cause
from distsgd.launching.start import STOPPED, Ending, Stops

if TYPE_CHECKING:
    from distsgd.launching.folder import WatchedFolder
    from distsgd.run.config import TrainConfig

_DONE = {"completed": 0, "early_stopped": 0, "stopped": STOPPED}
_LAST_STATUS = 125
"""The highest exit status of a program's own; a shell's others say that it couldn't be started, or a signal's number.
"""


class Job(ABC):
    """What is started on all ranks, and what is known of it.

    max_restarts, start_timeout   the defaults of these options
    stall_seconds  without a heartbeat of any rank; 0 for no limit
    most_ranks     how many it can use; None for any number
    """

    is_script: ClassVar[bool]
    max_restarts: ClassVar[int]
    start_timeout: ClassVar[str]
    stall_seconds: float
    most_ranks: int | None

    @abstractmethod
    def program(self, again: bool) -> list[str]:
        """The command of a rank; `again` after a failure."""

    @abstractmethod
    def look(self) -> None:
        """Called before each start."""

    @abstractmethod
    def follow(self, ending: Ending) -> None:
        """Called after each start."""

    @abstractmethod
    def status(self, ending: Ending, stops: Stops) -> int | None:
        """The exit status where it has ended, None where it failed."""

    @abstractmethod
    def failed_status(self, cause: Cause, ending: Ending, stops: Stops) -> int:
        """The exit status where it failed, and isn't started again."""

    @abstractmethod
    def why_not_again(self) -> str | None:
        """Why another start doesn't help after the last failure, None where it may."""

    @abstractmethod
    def place(self) -> str:
        """Where another start continues, after `continuing`."""


@dataclass
class Training(Job):
    """A run of distsgd.train. Only its summary proves an end."""

    config: TrainConfig
    arguments: Sequence[str]
    folder: WatchedFolder
    began: float = field(default_factory=time.monotonic)
    _failed_at: list[int | None] = field(default_factory=list)

    is_script = False
    max_restarts = 3
    start_timeout = "120s"

    def __post_init__(self) -> None:
        self.stall_seconds, self.most_ranks = self.config.stall_seconds, self.config.microbatches

    def program(self, again: bool) -> list[str]:
        from distsgd.cli.command_line import with_options

        changed = {}
        if again and self.folder.begun and self._step() is not None:
            changed["resume"] = "auto"
        if again and self.folder.moved:
            changed["out"] = str(self.folder.path)
        if again and self._time_left() < math.inf:
            changed["max-time"] = f"{max(self._time_left(), 0):.1f}"
        return [sys.executable, "-m", "distsgd.train", *with_options(self.arguments, changed)]

    def look(self) -> None:
        self.folder.look()

    def follow(self, ending: Ending) -> None:
        for message in ending.words.of("folder"):
            self.folder.follow(Path(str(message["path"])))

    def _step(self) -> int | None:
        """The step of this run's newest checkpoint; those of an earlier run, which will be moved aside, don't count."""
        return None if self.config.resume == "never" and not self.folder.begun else self.folder.step()

    def _time_left(self) -> float:
        """Seconds that --max-time leaves; inf where it names no time, such as `auto`, which the ranks look up."""
        from distsgd.training.intervals import parse_duration

        given = self.config.max_time or "auto"
        if given == "never" or given.startswith("auto"):
            return math.inf
        return parse_duration(given, "max_time") - (time.monotonic() - self.began)

    def status(self, ending: Ending, stops: Stops) -> int | None:
        status = self.folder.status()
        if len(stops.asked) > 1 and status not in _DONE:
            return 128 + stops.asked[-1]
        refused = bool(ending.words.of("error"))
        if (self.config.dry_run or self.config.check_gradient) and not refused:
            return ending.status or next((found for found in ending.rank_statuses if found), 0)
        if not refused and any(message.get("status") == "finished" for message in ending.words.of("ended")):
            return 0
        if status in _DONE and not refused:
            if ending.status not in (0, STOPPED):
                say(f"distsgd.launch: mpirun exited with status {ending.status}; the run is {status}", sys.stderr)
            return _DONE[status]
        self._failed_at.append(self._step())
        return None

    def failed_status(self, cause: Cause, ending: Ending, stops: Stops) -> int:
        """75 where a signal or --max-time has stopped the run and it can continue from a checkpoint; else 1, or the
        status that the ranks have reported."""
        stopped = stops.asked or self._time_left() <= 0
        if stopped and not cause.final and self._step() is not None:
            return STOPPED
        return cause.status or 1

    def why_not_again(self) -> str | None:
        failures = self._failed_at
        if len(failures) > 1 and failures[-1] == failures[-2]:
            step = failures[-1]
            newest = "no checkpoint so far" if step is None else f"still at the checkpoint of step {step}"
            return f"; that is the second failure without progress, {newest}"
        return f"; max_time {self.config.max_time} has passed" if self._time_left() <= 0 else None

    def place(self) -> str:
        return "from the beginning" if self._failed_at[-1] is None else f"from step {self._failed_at[-1]}"


@dataclass
class Script(Job):
    """A Python program: a path, or -m and a module, and its arguments. It has ended well where all ranks say so."""

    words: list[str]
    most_ranks: int | None = None
    stall_seconds: float = 0.0  # how long it computes without a fit is its own business

    is_script = True
    max_restarts = 0
    start_timeout = "0"

    def __post_init__(self) -> None:
        """Raises ConfigurationError where there is no such program."""
        first = self.words[0]
        if first == "-m":
            name = self.words[1] if len(self.words) > 1 else ""
            if not name or PathFinder.find_spec(name.partition(".")[0], [os.getcwd(), *sys.path]) is None:
                raise ConfigurationError(f"-m: expected a module that Python finds, got {name!r}")
        elif not os.path.exists(first):
            raise ConfigurationError(
                f"there is no script {first}; expected the path of a Python program, -m and a module, or -- and "
                "options of distsgd.train"
            )

    def program(self, again: bool) -> list[str]:
        return [sys.executable, *self.words]

    def look(self) -> None:
        pass

    def follow(self, ending: Ending) -> None:
        pass

    def status(self, ending: Ending, stops: Stops) -> int | None:
        statuses, words = ending.rank_statuses, ending.words
        failed = ending.forced or any(words.of(kind) for kind in ("error", "raised", "stalled"))
        if not failed and len(statuses) >= ending.ranks and set(statuses) <= {0, STOPPED}:
            return max(statuses)
        return 128 + stops.asked[-1] if len(stops.asked) > 1 else None

    def failed_status(self, cause: Cause, ending: Ending, stops: Stops) -> int:
        """The program's own; 128 + n where it was ended by a request to stop."""
        if stops.asked:
            return 128 + stops.asked[-1]
        own = (status for status in ending.rank_statuses if 0 < status <= _LAST_STATUS)
        return cause.status or next(own, 1)

    def why_not_again(self) -> str | None:
        return None

    def place(self) -> str:
        return "from the beginning of the script"
