"""Signals that stop training after a step, with a checkpoint: of a command, and of `fit` under a batch system.

docs/decisions/0036-signals-and-the-callers-process.md has the reasons. This module imports nothing heavy: a command
takes the signals before it loads NumPy and MPI.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from distsgd.core.errors import Interrupted
from distsgd.core.output import launched, say
from distsgd.core.processes import c_function

if TYPE_CHECKING:
    from distsgd.parallel import Communicator
    from distsgd.run.lifecycle import Attempt, RunSpec
    from distsgd.training.trainer import Trainer

OF_COMMANDS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
OF_FITS = ("SIGTERM", "SIGUSR1")
ONE_REQUEST = 0.5
"""Seconds within which signals count as one: a terminal's Ctrl-C reaches a rank directly and through mpirun."""
_ENDING = tuple(number for name in ("SIGTERM", "SIGINT") if (number := getattr(signal, name, None)) is not None)
"""Before the first step, the second of these ends the process."""
_BATCH_VARIABLES = ("SLURM_JOB_ID", "SLURM_JOBID", "PBS_JOBID", "LSB_JOBID")
_OF_GRID_ENGINE = ("SGE_TASK_ID", "SGE_ROOT", "SGE_CELL", "NSLOTS")

_late: int | None = None
"""A signal to a fit that came with its last step: it stops the next one."""


class Signals:
    """The signals to one run: the first asks for a checkpoint after the step that runs, and an end.

    Before the first step, the first SIGINT or SIGTERM also restores the default action of both after ONE_REQUEST
    seconds, so that the second ends the process, whatever it waits for. A thread does so, for a Python handler doesn't
    run while the main thread is in C, such as in a collective of MPI.

    names     of the signals
    as_guest  in a caller's process: signals that the caller handles or ignores are left alone, and there is no thread
    speaks    whether this rank reports the first signal that comes before the first step
    asked     the first signal that came
    """

    def __init__(self, names: Sequence[str] = OF_COMMANDS, *, as_guest: bool = False, speaks: bool = False) -> None:
        self.asked: int | None = None
        self._speaks = speaks
        self._trainer: Trainer | None = None
        self._first: float | None = None
        self._closed = False
        self._changing = threading.Lock()
        self._default = c_function("signal")
        self._before: dict[int, Any] = {}
        for number in filter(None, (getattr(signal, name, None) for name in names)):
            if _is_free(number, as_guest):
                self._before[number] = signal.signal(number, self._handle)
        self._wake = -1
        if not as_guest:
            wakes, self._wake = os.pipe()
            os.set_blocking(self._wake, False)
            signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
            threading.Thread(target=self._restore, args=(wakes,), name="distsgd-signals", daemon=True).start()

    def _handle(self, number: int, frame: Any) -> None:
        self.asked = self.asked or number
        if self._trainer is not None:
            self._trainer.stop()
        elif number in _ENDING:
            now = time.monotonic()
            if self._first is None:
                self._first = now
            elif now - self._first > ONE_REQUEST:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)

    def _restore(self, wakes: int) -> None:
        """The thread: restores the default action, and reads the numbers of signals until no one writes them."""
        while numbers := os.read(wakes, 64):
            if self._speaks and self._trainer is None:
                self._speaks = False
                say(_answer(numbers[0]), sys.stderr)
            if self._default is not None and any(number in _ENDING for number in numbers):
                time.sleep(ONE_REQUEST)
                with self._changing:
                    for number in _ENDING if self._trainer is None and not self._closed else ():
                        self._default(number, None)
        os.close(wakes)

    def watch(self, trainer: Trainer) -> None:
        """From now on signals stop this trainer; one that came before stops it after its first step."""
        with self._changing:
            self._trainer = trainer
            for number in self._before:
                signal.signal(number, self._handle)
        if self.asked is not None:
            trainer.stop()
        self._end_thread()

    def _end_thread(self) -> None:
        if self._wake >= 0:
            signal.set_wakeup_fd(-1)
            os.close(self._wake)
            self._wake = -1

    def give_back(self) -> None:
        """Put the handlers of before in place."""
        with self._changing:
            self._closed = True
            for number, handler in self._before.items():
                if signal.getsignal(number) == self._handle:  # else the program has set another one since
                    signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._end_thread()


def _answer(number: int) -> str:
    """The line about a signal that comes before the first step."""
    again = ""
    if launched() is not None:
        again = "; a second signal to distsgd.launch ends it now"
    elif number in _ENDING:
        again = "; a second signal ends it now"
    return f"distsgd: asked to stop by {_sender(number)}: training stops after its first step, with a checkpoint{again}"


def _sender(number: int) -> str:
    """The signal's name. distsgd.launch passes each request on as SIGUSR1, whatever signal it got."""
    name = signal.Signals(number).name
    return "distsgd.launch" if name == "SIGUSR1" and launched() is not None else name


def _is_free(number: int, as_guest: bool) -> bool:
    """Whether this signal may be taken. A SIGHUP that is ignored stays so, as nohup wants it."""
    before = signal.getsignal(number)
    if as_guest:
        return before is signal.SIG_DFL
    return before is not signal.SIG_IGN or number != getattr(signal, "SIGHUP", None)


def in_batch_job(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether Slurm, PBS, LSF, Grid Engine or distsgd.launch has started this process, and may ask it to stop."""
    if any(environment.get(name) for name in _BATCH_VARIABLES):
        return True
    of_grid_engine = environment.get("JOB_ID") and any(environment.get(name) for name in _OF_GRID_ENGINE)
    return bool(of_grid_engine) or launched() is not None


def run_until_signalled(communicator: Communicator, spec: RunSpec) -> Attempt | None:
    """`run`, for `fit`: raises Interrupted on all ranks where a signal to any of them has stopped it. Collective."""
    global _late
    from distsgd.run.lifecycle import run

    signals = None
    if in_batch_job() and threading.current_thread() is threading.main_thread():
        signals = Signals(OF_FITS, as_guest=True)
        signals.asked, _late = _late, None

    def before_training(communicator: Communicator, attempt: Attempt) -> bool:
        if signals is not None:
            signals.watch(attempt.trainer)
        return spec.before_training(communicator, attempt)

    try:
        attempt = run(communicator, replace(spec, before_training=before_training))
    finally:
        if signals is not None:
            signals.give_back()
            _late = signals.asked
    if attempt is None or attempt.summary["status"] != "stopped":
        return attempt
    asked = communicator.allgather_object(None if signals is None else signals.asked)
    number = next((number for number in asked if number is not None), None)
    if number is None:  # a callback or a limit of time has stopped it
        return attempt
    _late = None
    assert spec.folder is not None
    place, step = spec.folder.place(), attempt.summary["steps"]
    text = f"stopped by {_sender(number)} at step {step}, with a checkpoint in {place}"
    if communicator.is_root:
        say(f"distsgd: {text}; the same call continues", sys.stderr)
    communicator.barrier()
    raise Interrupted(text)
