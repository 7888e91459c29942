"""python -m distsgd.launch -n 4 -- OPTIONS: start training with mpirun, supervise it, and restart it."""

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

from distsgd.core import output, runtime
from distsgd.core.errors import DistsgdError, LauncherError
from distsgd.core.options import option
from distsgd.core.output import new_launch, say, say_lines, say_traceback, status_after_output
from distsgd.core.processes import adopt_orphans, open_closed_streams, print_stacks_when_asked
from distsgd.launching import mpirun
from distsgd.launching.causes import Cause, cause_of, kernel_kills
from distsgd.launching.cleaning import CleanupProcess, Leftovers
from distsgd.launching.start import Ending, Limits, Start, Stops
from distsgd.launching.words import RANK_SCRIPT

if TYPE_CHECKING:
    from distsgd.launching.folder import WatchedFolder
    from distsgd.run.config import TrainConfig

STOPPED = 75
_PROBE_SECONDS = 15.0
_PROG = "python -m distsgd.launch"
_DONE = {"completed": 0, "early_stopped": 0, "stopped": STOPPED}


@dataclass(frozen=True)
class Options:
    """Start distsgd.train with mpirun, supervise it, and restart it from its newest checkpoint after a failure.

    Arguments after -- are passed to distsgd.train: python -m distsgd.launch -n 4 -- --dataset mnist --out runs/a.
    SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 stop the run with a checkpoint and exit status 75; a second signal ends it
    immediately.
    """

    # fmt: off
    ranks: int | None = option(None,
        "Number of ranks. Default: one per core, at most --microbatches.", interval="[1, inf)", short="-n")
    max_restarts: int = option(3,
        "Maximum number of restarts after failures. Two failures without a new checkpoint between them end the run.",
        interval="[0, inf)")
    hosts: tuple[str, ...] = option((),
        "Hosts of the ranks, such as node1:4 node2:4 (ranks on each). Default: this host, or those of the batch "
        "system's job. A host that doesn't answer after a failure is excluded.")
    mpirun: str | None = option(None, path=True, help=
        "The mpirun to use. Default: the one beside this Python, or on PATH.")
    start_timeout: str = option("120s", "Time limit until all ranks have connected; 0 for no limit.")
    # fmt: on


def main() -> int:
    """The command; returns the exit status."""
    for name in output.LAUNCH_VARIABLES:
        os.environ.pop(name, None)  # of another launch, in which this one may have been started
    open_closed_streams()  # before there are pipes and files
    adopt_orphans()
    print_stacks_when_asked()
    sys.excepthook = say_traceback
    with CleanupProcess(Leftovers(new_launch())) as cleanup:  # before there are threads
        stops = Stops()
        runtime.prepare()
        try:
            return status_after_output(_launch(cleanup, stops, sys.argv[1:]))
        except DistsgdError as error:
            if str(error):
                say(f"distsgd: error: {error}", sys.stderr)
            return status_after_output(error.exit_status)


def _launch(cleanup: CleanupProcess, stops: Stops, arguments: Sequence[str]) -> int:
    from distsgd.cli.command_line import load_config
    from distsgd.launching.folder import WatchedFolder
    from distsgd.run.config import resolved
    from distsgd.run.folder import run_folder
    from distsgd.training.intervals import parse_duration

    own, passed = divide(arguments)
    options = parse(own)
    inside = runtime.launcher_size()
    if inside is not None and inside > 1:
        raise LauncherError(f"distsgd.launch starts mpirun itself, but {inside} copies of it run; start one")
    config = resolved(load_config(passed))
    run = Run(
        config=config,
        arguments=passed,
        launcher=mpirun.find_mpirun(options.mpirun),
        hosts=mpirun.with_shares(mpirun.parse_hosts(options.hosts), options.ranks) if options.hosts else (),
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
    cut = list(arguments).index("--") if "--" in arguments else len(arguments)
    return list(arguments[:cut]), list(arguments[cut + 1 :])


def parse(own: Sequence[str]) -> Options:
    """This command's options. Raises ConfigurationError."""
    from distsgd.cli.command_line import TrainOptions, parse_arguments, spellings
    from distsgd.core.components import suggestion
    from distsgd.core.options import options_of

    def hint(name: str, after: str) -> str | None:
        flag, trains = name.replace("_", "-"), spellings(options_of(TrainOptions))
        if flag in trains:
            return f"{name} is an option of distsgd.train: put it after --, as in {_PROG} -n 4 -- {name} …"
        near = "" if suggestion(flag, spellings(options_of(Options))) else suggestion(flag, trains)
        return f"unknown option {name}{near} Options of distsgd.train stand after --" if near else None

    return parse_arguments(Options, own, _PROG, hint)


@dataclass
class Run:
    """A run of training, from its first start to its end."""

    config: TrainConfig
    arguments: Sequence[str]
    launcher: mpirun.Mpirun
    hosts: tuple[mpirun.Host, ...]
    ranks: int
    start_seconds: float
    folder: WatchedFolder
    cleanup: CleanupProcess
    stops: Stops
    began: float = field(default_factory=time.monotonic)
    _shown: str = ""
    _met: bool = False

    def choose_ranks(self) -> None:
        """Choose the number of ranks where no option names it."""
        if not self.ranks:
            inside_job = os.environ.get("SLURM_NTASKS", "")
            here = int(inside_job) if inside_job.isdecimal() else len(runtime.affinity())
            self.ranks = min(sum(host.slots or 1 for host in self.hosts) or here, self.config.microbatches)

    def to_its_end(self, max_restarts: int) -> int:
        """Start, and restart as long as that may help; return the exit status."""
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
                self._print(cause, f"distsgd: error: {cause.sentence}{reason}")
                return self._failed_status(cause)
            self._drop_lost_hosts(bool(ending.words.of("rank_table")))
            step = failures[-1]
            place = "from the beginning" if step is None else f"from step {step}"
            self._print(
                cause,
                f"distsgd.launch: {cause.sentence}; continuing {place} with {self.ranks} rank(s), restart "
                f"{len(failures)} of {max_restarts}",
            )

    def _start(self, again: bool) -> Ending:
        """Start mpirun once, wait for its end, and clean up."""
        from distsgd.cli.command_line import with_options

        changed = {}
        if again and self.folder.begun and self._step() is not None:
            changed["resume"] = "auto"
        if again and self.folder.moved:
            changed["out"] = str(self.folder.path)
        if again and self._time_left() < math.inf:
            changed["max-time"] = f"{max(self._time_left(), 0):.1f}"
        arguments = with_options(self.arguments, changed)
        allocated = () if self.hosts else mpirun.allocated_hosts(os.environ)
        one_host = len(allocated) < 2 and all(mpirun.this_host(host.name) for host in self.hosts)
        settings = mpirun.environment(self.launcher, one_host, os.environ)
        settings[output.LAUNCH_VARIABLE] = self.cleanup.leftovers.name
        program = [sys.executable, "-m", "distsgd.train", *arguments]
        if one_host:
            folder = str(self.cleanup.new_folder())
            settings |= {"TMPDIR": folder, output.PROGRAM_VARIABLE: shlex.join(program)} | _terminal()
            program = []
        program = ["sh", "-c", RANK_SCRIPT, "distsgd-rank", *program]
        line = mpirun.command(self.launcher, self.ranks, self.hosts, program, (output.LAUNCH_VARIABLE,))
        self.folder.look()
        try:
            start = Start(line, settings, self.ranks, self.stops, Limits(self.start_seconds, self.config.stall_seconds))
        except OSError as error:
            raise LauncherError(f"could not start {self.launcher.path}: {error.strerror or error}") from None
        ending = start.run()
        for message in ending.words.of("folder"):
            self.folder.follow(Path(str(message["path"])))
        self.cleanup.clean_up()
        return ending

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

    def _status(self, ending: Ending) -> int | None:
        """The exit status where the run has ended, None where it failed. Only its summary proves an end."""
        status = self.folder.status()
        if len(self.stops.asked) > 1 and status not in _DONE:
            return 128 + self.stops.asked[-1]
        refused = bool(ending.words.of("error"))
        if (self.config.dry_run or self.config.check_gradient) and not refused:
            return ending.status or next((found for found in ending.rank_statuses if found), 0)
        if not refused and any(message.get("status") == "finished" for message in ending.words.of("ended")):
            return 0
        if status in _DONE and not refused:
            if ending.status not in (0, STOPPED):
                say(f"distsgd.launch: mpirun exited with status {ending.status}; the run is {status}", sys.stderr)
            return _DONE[status]
        return None

    def _reason_to_stop(self, cause: Cause, failures: Sequence[int | None], max_restarts: int) -> str | None:
        """Why a restart doesn't help, None where it may."""
        if cause.final:
            return ""
        if self.stops.asked:
            return ", after a request to stop"
        if len(failures) > 1 and failures[-1] == failures[-2]:
            step = failures[-1]
            newest = "no checkpoint so far" if step is None else f"still at the checkpoint of step {step}"
            return f"; that is the second failure without progress, {newest}"
        if len(failures) > max_restarts:
            return f"; it was restarted {max_restarts} time(s), see --max-restarts" if max_restarts else ""
        if self._time_left() <= 0:
            return f"; max_time {self.config.max_time} has passed"
        return None

    def _failed_status(self, cause: Cause) -> int:
        """75 where a signal or --max-time has stopped the run and it can continue from a checkpoint; else 1, or the
        status that the ranks have reported."""
        stopped = self.stops.asked or self._time_left() <= 0
        if stopped and not cause.final and self._step() is not None:
            return STOPPED
        return cause.status or 1

    def _print(self, cause: Cause, sentence: str) -> None:
        """Print the sentence, and above it the details where they differ from those of the last failure."""
        if cause.details and cause.details != self._shown:
            self._shown = cause.details
            say_lines(cause.details.rstrip(), sys.stderr)
        say(sentence, sys.stderr)

    def _drop_lost_hosts(self, met: bool) -> None:
        """Exclude hosts that no longer answer: the bits are the same with fewer ranks. Where ranks have never `met`, a
        host that doesn't answer is an error."""
        hosts = self.hosts or mpirun.with_shares(mpirun.allocated_hosts(os.environ), self.ranks)
        self._met = self._met or met
        if len(hosts) < 2 and (self._met or not self.hosts):
            return
        there = mpirun.still_there(
            self.launcher, hosts, mpirun.environment(self.launcher, False, os.environ), _PROBE_SECONDS
        )
        if len(there) == len(hosts):
            return
        lost = ", ".join(host.name for host in hosts if host not in there)
        if not self._met:
            raise LauncherError(
                f"mpirun can't start a process on {lost}; check the name, and that ssh connects without a password"
            )
        if not there:
            raise LauncherError(f"none of the hosts answers: {lost}")
        self.hosts = tuple(there)
        self.ranks = min(self.ranks, sum(host.slots or 1 for host in there))
        say(f"distsgd.launch: {lost} no longer answers and is excluded", sys.stderr)


def _terminal() -> dict[str, str]:
    """What ranks receive about the terminal that shows their output, if there is one."""
    try:
        return {output.TERMINAL_VARIABLE: str(os.get_terminal_size(sys.stdout.fileno()).columns or 80)}
    except (OSError, ValueError):
        return {}
