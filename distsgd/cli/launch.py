"""python -m distsgd.launch -n 4 -- OPTIONS: start training with mpirun, supervise it, and restart it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from distsgd.cli.launch_jobs import Job, Script, Training
from distsgd.core import output, runtime
from distsgd.core.errors import DistsgdError, LauncherError
from distsgd.core.options import option, options_of
from distsgd.core.output import new_launch, say, say_lines, say_traceback, status_after_output
from distsgd.core.processes import adopt_orphans, open_closed_streams, print_stacks_when_asked
from distsgd.launching import mpirun
from distsgd.launching.causes import Cause, cause_of, kernel_kills
from distsgd.launching.cleaning import CleanupProcess, Leftovers
from distsgd.launching.start import Ending, Limits, Start, Stops
from distsgd.launching.words import RANK_SCRIPT

_PROBE_SECONDS = 15.0
_PROG = "python -m distsgd.launch"


@dataclass(frozen=True)
class Options:
    """Start distsgd.train, or a script of your own, with mpirun, supervise it, and restart it after a failure.

    Arguments after -- are passed to distsgd.train: python -m distsgd.launch -n 4 -- --dataset mnist --out runs/a. A
    script is started as it stands: python -m distsgd.launch -n 4 fit.py --width 64, or with -m and a module.
    SIGTERM, SIGINT (Ctrl-C), SIGUSR1 and SIGHUP stop the run with a checkpoint and exit status 75; a second signal ends
    it immediately. Of a script they stop the fit(out=...) that runs.
    """

    # fmt: off
    ranks: int | None = option(None,
        "Number of ranks. Default: one per core, at most --microbatches.", interval="[1, inf)", short="-n")
    max_restarts: int | None = option(None,
        "Maximum number of restarts after failures. Two failures without a new checkpoint between them end the run. "
        "Default: 3, of a script 0.", interval="[0, inf)")
    hosts: tuple[str, ...] = option((),
        "Hosts of the ranks, such as node1:4 node2:4 (ranks on each). Default: this host, or those of the batch "
        "system's job. A host that doesn't answer after a failure is excluded.")
    mpirun: str | None = option(None, path=True, help=
        "The mpirun to use. Default: the one beside this Python, or on PATH.")
    start_timeout: str | None = option(None,
        "Time limit until all ranks have connected; 0 for no limit. Default: 120s, of a script 0.")
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
        finally:
            stops.close()


def _launch(cleanup: CleanupProcess, stops: Stops, arguments: Sequence[str]) -> int:
    from distsgd.training.intervals import parse_duration

    script = script_at(arguments)
    own, passed = divide(arguments) if script is None else (list(arguments[:script]), list(arguments[script:]))
    options = parse(own)
    inside = runtime.launcher_size()
    if inside is not None and inside > 1:
        raise LauncherError(f"distsgd.launch starts mpirun itself, but {inside} copies of it run; start one")
    job = _training(passed) if script is None else Script(passed)
    start_timeout = job.start_timeout if options.start_timeout is None else options.start_timeout
    run = Run(
        job=job,
        launcher=mpirun.find_mpirun(options.mpirun),
        hosts=mpirun.with_shares(mpirun.parse_hosts(options.hosts), options.ranks) if options.hosts else (),
        ranks=options.ranks or 0,
        start_seconds=parse_duration(start_timeout, "start_timeout"),
        cleanup=cleanup,
        stops=stops,
    )
    run.choose_ranks()
    return run.to_its_end(job.max_restarts if options.max_restarts is None else options.max_restarts)


def _training(arguments: list[str]) -> Job:
    from distsgd.cli.command_line import load_config
    from distsgd.launching.folder import WatchedFolder
    from distsgd.run.config import resolved
    from distsgd.run.files.folder import run_folder

    config = resolved(load_config(arguments))
    return Training(config, arguments, WatchedFolder(run_folder(config).path))


def divide(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(this command's options, distsgd.train's)."""
    cut = list(arguments).index("--") if "--" in arguments else len(arguments)
    return list(arguments[:cut]), list(arguments[cut + 1 :])


def script_at(arguments: Sequence[str]) -> int | None:
    """Where a script, or -m and a module, begins among the arguments; None where distsgd.train is started."""
    from distsgd.cli.command_line import spellings

    options, place = options_of(Options), 0
    names = spellings(options)
    while place < len(arguments):
        word = arguments[place]
        if word == "--":
            return None
        if word == "-m" or not word.startswith("-"):
            return place
        place += 1
        name = names.get(word.replace("_", "-"))
        if name is not None and options[name].is_list:
            while place < len(arguments) and not arguments[place].startswith("-") and not _is_path(arguments[place]):
                place += 1
        elif name is not None and arguments[place : place + 1] not in ([], ["--"]):
            place += 1
    return None


def _is_path(word: str) -> bool:
    """Whether this is no host's name, but a script's."""
    return word.endswith(".py") or os.sep in word


def parse(own: Sequence[str]) -> Options:
    """This command's options. Raises ConfigurationError."""
    from distsgd.cli.command_line import TrainOptions, parse_arguments, spellings
    from distsgd.core.components import suggestion

    def hint(name: str, after: str) -> str | None:
        flag, trains = name.replace("_", "-"), spellings(options_of(TrainOptions))
        if flag in trains:
            return f"{name} is an option of distsgd.train: put it after --, as in {_PROG} -n 4 -- {name} …"
        near = "" if suggestion(flag, spellings(options_of(Options))) else suggestion(flag, trains)
        return f"unknown option {name}{near} Options of distsgd.train stand after --" if near else None

    return parse_arguments(Options, own, _PROG, hint)


@dataclass
class Run:
    """A job, from its first start to its end."""

    job: Job
    launcher: mpirun.Mpirun
    hosts: tuple[mpirun.Host, ...]
    ranks: int
    start_seconds: float
    cleanup: CleanupProcess
    stops: Stops
    _shown: str = ""
    _met: bool = False

    def choose_ranks(self) -> None:
        """Choose the number of ranks where no option names it."""
        if not self.ranks:
            inside_job = os.environ.get("SLURM_NTASKS", "")
            here = int(inside_job) if inside_job.isdecimal() else len(runtime.affinity())
            self.ranks = sum(host.slots or 1 for host in self.hosts) or here
            self.ranks = min(self.ranks, self.job.most_ranks or self.ranks)

    def to_its_end(self, max_restarts: int) -> int:
        """Start, and restart as long as that may help; return the exit status."""
        failures = 0
        while True:
            killed = kernel_kills()
            ending = self._start(again=failures > 0)
            status = self.job.status(ending, self.stops)
            if status is not None:
                return status
            cause = cause_of(ending, kernel_kills() > killed)
            failures += 1
            reason = self._reason_to_stop(cause, failures, max_restarts)
            if reason is not None:
                self._print(cause, f"distsgd: error: {cause.sentence}{reason}")
                return self.job.failed_status(cause, ending, self.stops)
            self._drop_lost_hosts(bool(ending.words.of("rank_table")))
            self._print(
                cause,
                f"distsgd.launch: {cause.sentence}; continuing {self.job.place()} with {self.ranks} rank(s), restart "
                f"{failures} of {max_restarts}",
            )

    def _start(self, again: bool) -> Ending:
        """Start mpirun once, wait for its end, and clean up."""
        allocated = () if self.hosts else mpirun.allocated_hosts(os.environ)
        one_host = len(allocated) < 2 and all(mpirun.this_host(host.name) for host in self.hosts)
        settings = mpirun.environment(self.launcher, one_host, os.environ)
        settings[output.LAUNCH_VARIABLE] = self.cleanup.leftovers.name
        program = self.job.program(again)
        if one_host:
            folder = str(self.cleanup.new_folder())
            settings |= {"TMPDIR": folder, output.PROGRAM_VARIABLE: shlex.join(program)} | _terminal()
            program = []
        program = ["sh", "-c", RANK_SCRIPT, "distsgd-rank", *program]
        line = mpirun.command(self.launcher, self.ranks, self.hosts, program, (output.LAUNCH_VARIABLE,))
        self.job.look()
        limits = Limits(self.start_seconds, self.job.stall_seconds, self.job.is_script)
        try:
            start = Start(line, settings, self.ranks, self.stops, limits)
        except OSError as error:
            raise LauncherError(f"could not start {self.launcher.path}: {error.strerror or error}") from None
        ending = start.run()
        self.job.follow(ending)
        self.cleanup.clean_up()
        return ending

    def _reason_to_stop(self, cause: Cause, failures: int, max_restarts: int) -> str | None:
        """Why a restart doesn't help, None where it may."""
        if cause.final:
            return ""
        if self.stops.asked:
            return ", after a request to stop"
        if (reason := self.job.why_not_again()) is not None:
            return reason
        if failures > max_restarts:
            return f"; it was restarted {max_restarts} time(s), see --max-restarts" if max_restarts else ""
        return None

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
