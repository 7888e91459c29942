"""python -m distsgd.launch -n 4 -- OPTIONS: training under mpirun that is watched, restarted and cleaned up behind."""

from __future__ import annotations

import math
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from distsgd.core import runtime
from distsgd.core.errors import ConfigurationError, DistsgdError, LauncherError
from distsgd.core.output import (
    LAUNCH_VARIABLE,
    LAUNCH_VARIABLES,
    PROGRAM_VARIABLE,
    TERMINAL_VARIABLE,
    new_launch,
    say,
    say_lines,
    say_traceback,
)
from distsgd.core.processes import adopt_orphans, print_stacks_when_asked
from distsgd.launching.causes import Cause, cause_of, kernel_kills
from distsgd.launching.cleaning import CleanupProcess, Leftovers
from distsgd.launching.folder import WatchedFolder
from distsgd.launching.mpirun import (
    Host,
    Mpirun,
    allocated_hosts,
    command,
    environment,
    find_mpirun,
    parse_hosts,
    still_there,
    this_host,
    with_shares,
)
from distsgd.launching.start import Ending, Limits, Start, Stops
from distsgd.launching.words import RANK_SCRIPT

if TYPE_CHECKING:
    from distsgd.run.config import TrainConfig

STOPPED = 75
_PROBE_SECONDS = 15.0
_PROG = "python -m distsgd.launch"
_DONE = {"completed": 0, "early_stopped": 0, "stopped": STOPPED}


@dataclass(frozen=True)
class Options:
    """Start distsgd.train with mpirun, watch it, and go on from its newest checkpoint when it fails.

    What stands behind -- goes to distsgd.train: python -m distsgd.launch -n 4 -- --dataset mnist --out runs/a. SIGTERM,
    SIGINT (Ctrl-C) and SIGUSR1 stop the run with a checkpoint and exit status 75, twice at once.
    """

    ranks: int | None = None
    """-n for short. Default: one a core, at most --microbatches."""
    max_restarts: int = 3
    """How often to go on after a failure. A second one without a new checkpoint in between ends the run."""
    hosts: tuple[str, ...] = ()
    """Where ranks run, such as node1:4 node2:4 (ranks on each). Default: this host, or those of the batch system's job.
    A host that no longer answers after a failure is left out."""
    mpirun: str | None = None
    """Another mpirun than that beside this Python, or on PATH."""
    start_timeout: str = "120s"
    """How long ranks may take to find each other; 0 for ever."""


def main() -> int:
    """The command; returns the exit status."""
    for name in LAUNCH_VARIABLES:
        os.environ.pop(name, None)  # of another launch, which this one may have been started from
    adopt_orphans()
    print_stacks_when_asked()
    sys.excepthook = say_traceback
    with CleanupProcess(Leftovers(new_launch())) as cleanup:  # before there are threads
        stops = Stops()
        runtime.prepare()
        try:
            return _launch(cleanup, stops, sys.argv[1:])
        except DistsgdError as error:
            if str(error):
                say(f"distsgd: error: {error}", sys.stderr)
            return error.exit_status


def _launch(cleanup: CleanupProcess, stops: Stops, arguments: Sequence[str]) -> int:
    from distsgd.cli.command_line import load_config
    from distsgd.run.config import resolved
    from distsgd.run.folder import run_folder
    from distsgd.training.intervals import parse_duration

    own, passed = divide(arguments)
    options = parse(own)
    inside = runtime.launcher_size()
    if inside is not None and inside > 1:
        raise LauncherError(f"distsgd.launch starts mpirun itself, and {inside} of it were started; start it once")
    config = resolved(load_config(passed))
    run = Run(
        config=config,
        arguments=passed,
        mpirun=find_mpirun(options.mpirun),
        hosts=with_shares(parse_hosts(options.hosts), options.ranks) if options.hosts else (),
        ranks=options.ranks or 0,
        start_seconds=parse_duration(options.start_timeout, "start_timeout"),
        folder=WatchedFolder(run_folder(config).path),
        cleanup=cleanup,
        stops=stops,
    )
    run.choose_ranks()
    return run.to_its_end(options.max_restarts)


def divide(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(this command's options, distsgd.train's)."""
    arguments = list(arguments)
    if "--" not in arguments:
        return arguments, []
    cut = arguments.index("--")
    return arguments[:cut], arguments[cut + 1 :]


def parse(own: Sequence[str]) -> Options:
    """This command's options. Raises ConfigurationError."""
    from distsgd.cli.command_line import parse_arguments
    from distsgd.run.config import field_names

    short = ["--ranks" if argument == "-n" else argument for argument in own]
    for argument in short:
        name = argument.partition("=")[0]
        if name.startswith("--") and name[2:].replace("-", "_") in (*field_names(), "lr", "config"):
            raise ConfigurationError(f"{name} is distsgd.train's: put it behind --, as in {_PROG} -n 4 -- {name} …")
    options = parse_arguments(Options, short, prog=_PROG)
    for name, least in (("ranks", 1), ("max_restarts", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ConfigurationError(f"{name}: expected at least {least}, got {value}")
    return options


@dataclass
class Run:
    """A run of training, from its first start to its end."""

    config: TrainConfig
    arguments: Sequence[str]
    mpirun: Mpirun
    hosts: tuple[Host, ...]
    ranks: int
    start_seconds: float
    folder: WatchedFolder
    cleanup: CleanupProcess
    stops: Stops
    began: float = field(default_factory=time.monotonic)
    _shown: str = ""
    _met: bool = False

    def choose_ranks(self) -> None:
        """Where the user didn't say how many."""
        if not self.ranks:
            inside_job = os.environ.get("SLURM_NTASKS", "")
            here = int(inside_job) if inside_job.isdecimal() else len(runtime.affinity())
            self.ranks = min(sum(host.slots or 1 for host in self.hosts) or here, self.config.microbatches)

    def to_its_end(self, max_restarts: int) -> int:
        """Starts, and starts again as long as that helps; returns the exit status."""
        failures: list[int | None] = []
        while True:
            killed = kernel_kills()
            ending = self._start(again=bool(failures))
            status = self._status(ending)
            if status is not None:
                return status
            cause = cause_of(ending, kernel_kills() > killed)
            failures.append(self._step())
            reason = self._reason_to_stop(cause, failures, max_restarts)
            if reason is not None:
                self._tell(cause, f"distsgd: error: {cause.sentence}{reason}")
                return self._failed_status(cause)
            self._drop_lost_hosts(bool(ending.words.of("rank_table")))
            step = failures[-1]
            place = "from the beginning" if step is None else f"from step {step}"
            self._tell(
                cause,
                f"distsgd.launch: {cause.sentence}; going on {place} with {self.ranks} rank(s), restart "
                f"{len(failures)} of {max_restarts}",
            )

    def _start(self, again: bool) -> Ending:
        """One start, and what it leaves behind is cleaned up."""
        arguments = [*self.arguments]
        if again and self.folder.begun and self._step() is not None:
            arguments += ["--resume", "auto"]
        if again and self.folder.moved:
            arguments += ["--out", str(self.folder.path)]
        if again and self._time_left() < math.inf:
            arguments += ["--max-time", f"{max(self._time_left(), 0):.1f}"]
        one_host = (
            all(this_host(host.name) for host in self.hosts) if self.hosts else len(allocated_hosts(os.environ)) < 2
        )
        settings = environment(self.mpirun, one_host, os.environ) | {LAUNCH_VARIABLE: self.cleanup.leftovers.name}
        if one_host:
            settings["TMPDIR"] = str(self.cleanup.new_folder())
            settings |= _terminal()
        program = [sys.executable, "-m", "distsgd.train", *arguments]
        if one_host:
            settings[PROGRAM_VARIABLE] = shlex.join(program)
            program = []
        program = ["sh", "-c", RANK_SCRIPT, "distsgd-rank", *program]
        line = command(self.mpirun, self.ranks, self.hosts, program, (LAUNCH_VARIABLE,))
        self.folder.look()
        try:
            start = Start(line, settings, self.ranks, self.stops, Limits(self.start_seconds, self.config.stall_seconds))
        except OSError as error:
            raise LauncherError(f"could not start {self.mpirun.path}: {error.strerror or error}") from None
        ending = start.run()
        for message in ending.words.of("folder"):
            self.folder.follow(Path(str(message["path"])))
        self.cleanup.clean_up()
        return ending

    def _step(self) -> int | None:
        """The step of this run's newest checkpoint; those of a run that is yet to be moved aside don't count."""
        return None if self.config.resume == "never" and not self.folder.begun else self.folder.step()

    def _time_left(self) -> float:
        """Seconds that --max-time leaves; inf where that is no time, but the batch system's business, or nobody's."""
        from distsgd.training.intervals import parse_duration

        given = self.config.max_time or "auto"
        if given == "never" or given.startswith("auto"):
            return math.inf
        return parse_duration(given, "max_time") - (time.monotonic() - self.began)

    def _status(self, ending: Ending) -> int | None:
        """The exit status where the run is over, None where it failed. Only its summary is believed."""
        outcome = self.folder.outcome()
        if len(self.stops.asked) > 1 and outcome.status not in _DONE:
            return 128 + self.stops.asked[-1]
        refused = bool(ending.words.of("error"))
        if (self.config.dry_run or self.config.check_gradient) and not refused:
            return ending.status or next((found for found in ending.rank_statuses if found), 0)
        if not refused and any(message.get("status") == "finished" for message in ending.words.of("ended")):
            return 0
        if outcome.status in _DONE and not refused:
            if ending.status not in (0, STOPPED):
                say(f"distsgd.launch: mpirun left with status {ending.status}; the run is {outcome.status}", sys.stderr)
            return _DONE[outcome.status]
        return None

    def _reason_to_stop(self, cause: Cause, failures: Sequence[int | None], max_restarts: int) -> str | None:
        """Why not to start again, None where it may help."""
        if cause.final:
            return ""
        if self.stops.asked:
            return ", after it was told to stop"
        if len(failures) > 1 and failures[-1] == failures[-2]:
            where = (
                "no checkpoint so far" if failures[-1] is None else f"still at the checkpoint of step {failures[-1]}"
            )
            return f"; that is the second failure without progress, {where}"
        if len(failures) > max_restarts:
            return f"; it was restarted {max_restarts} time(s), see --max-restarts" if max_restarts else ""
        if self._time_left() <= 0:
            return f"; max_time {self.config.max_time} is over"
        return None

    def _failed_status(self, cause: Cause) -> int:
        """1 as a rule; 75 where the run was told to stop, or its time is over, and it can go on from a checkpoint."""
        over = self._time_left() <= 0
        if (self.stops.asked or over) and not cause.final and self._step() is not None:
            return STOPPED
        return cause.status or 1

    def _tell(self, cause: Cause, sentence: str) -> None:
        """Prints the sentence, and above it the details, where the last failure hadn't the same."""
        if cause.details and cause.details != self._shown:
            self._shown = cause.details
            say_lines(cause.details.rstrip(), sys.stderr)
        say(sentence, sys.stderr)

    def _drop_lost_hosts(self, met: bool) -> None:
        """With fewer ranks where a host is gone: microbatches keep the bits the same. One that has never been there,
        for the ranks haven't `met` in the only start so far, is an error."""
        hosts = self.hosts or with_shares(allocated_hosts(os.environ), self.ranks)
        self._met = self._met or met
        if len(hosts) < 2 and (self._met or not self.hosts):
            return
        there = still_there(self.mpirun, hosts, environment(self.mpirun, False, os.environ), _PROBE_SECONDS)
        if len(there) == len(hosts):
            return
        lost = ", ".join(host.name for host in hosts if host not in there)
        if not self._met:
            raise LauncherError(
                f"mpirun can't start anything on {lost}; check the name, and that ssh reaches it without a password"
            )
        if not there:
            raise LauncherError(f"none of the hosts answers any more: {lost}")
        self.hosts = tuple(there)
        self.ranks = min(self.ranks, sum(host.slots or 1 for host in there))
        say(f"distsgd.launch: {lost} no longer answers and is left out", sys.stderr)


def _terminal() -> dict[str, str]:
    """What ranks receive about the terminal that shows their output, if there is one."""
    try:
        return {TERMINAL_VARIABLE: str(os.get_terminal_size(sys.stdout.fileno()).columns or 80)}
    except (OSError, ValueError):
        return {}
