"""python -m distsgd.train: train a model on all ranks of an MPI job, or in this process alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from distsgd.cli.commands import launcher_rank, run_command
from distsgd.core.output import report_to_launcher, say, say_lines
from distsgd.run.signals import Signals

if TYPE_CHECKING:
    from distsgd.parallel import Communicator
    from distsgd.run.config import TrainConfig
    from distsgd.run.files.folder import RunFolder
    from distsgd.run.lifecycle import Attempt
    from distsgd.training.callbacks import Callback


def main() -> int:
    """The command; returns the exit status."""
    signals = Signals(speaks=launcher_rank() == 0)  # before MPI begins, for a signal may come at any time
    try:
        return run_command(lambda communicator, arguments: train(communicator, arguments, signals))
    finally:
        if signals.asked is None:  # else a second one, as launchers send it, would change the exit status
            signals.give_back()


def train(communicator: Communicator, arguments: Sequence[str], signals: Signals) -> int:
    """Parses, and runs; returns the exit status. Collective."""
    from distsgd.cli.command_line import load_config
    from distsgd.run.build import build_objective
    from distsgd.run.config import own_optimizer, resolved
    from distsgd.run.data.loading import load_data
    from distsgd.run.files.folder import run_folder
    from distsgd.run.files.summary import EXIT_STATUS
    from distsgd.run.kernels import choose, recorded_for
    from distsgd.run.lifecycle import RunSpec, run

    config = communicator.on_root(lambda: resolved(load_config(arguments)))
    config = replace(config, max_time=config.max_time or "auto")
    folder = run_folder(config)
    choose(communicator, config.kernels, recorded_for(config, folder) if communicator.is_root else None)
    command = Command(config, folder, signals)
    spec = RunSpec(
        config,
        command.folder,
        load_data,
        build_objective,
        own_optimizer(config),
        callbacks=command.callbacks,
        finished=command.finished,
        before_training=command.before_training,
        ended=command.ended,
    )
    attempt = run(communicator, spec)
    return command.status if attempt is None else EXIT_STATUS[attempt.summary["status"]]


@dataclass
class Command:
    """What the command does in a run's life, where `fit` does nothing; `status` is that of a run that doesn't train."""

    config: TrainConfig
    folder: RunFolder
    signals: Signals
    status: int = 0

    def callbacks(self, communicator: Communicator) -> list[Callback]:
        """What shows the run's progress, and the user's own. Collective."""
        if self.config.check_gradient:
            return []
        from distsgd.run.build import user_code
        from distsgd.run.files.progress import make_progress

        users = {name: user_code(communicator, name, "callback") for name in self.config.callback}
        own = communicator.everywhere(lambda: [_callback(name, users[name]) for name in self.config.callback])
        return [*(make_progress(self.config.quiet, self.config.profile) if communicator.is_root else []), *own]

    def finished(self, line: str) -> None:
        """Draws and reports a run that is finished already, on rank 0."""
        if self.config.plot:
            from distsgd.run.pictures import draw_finished

            draw_finished(self.folder.path, self.config)
        if self.config.profile or self.config.trace is not None:
            say("note: the run is finished already, so there is no step to profile or to trace", sys.stderr)
        report_to_launcher("ended", status="finished")
        say_lines(line)

    def before_training(self, communicator: Communicator, attempt: Attempt) -> bool:
        """Checks the gradient, or prints the header; whether to train. From then on signals stop it. Collective."""
        if self.config.check_gradient:
            self.status = check_gradient(communicator, attempt)
            return False
        from distsgd.run.announce import announce

        announce(communicator, attempt)
        self.signals.watch(attempt.trainer)
        return not self.config.dry_run

    def ended(self, attempt: Attempt) -> None:
        """Reports the end and prints the last line, on rank 0."""
        from distsgd.run.files.summary import last_line

        report_to_launcher("ended", status=attempt.summary["status"])
        say_lines(last_line(attempt.summary, str(self.folder.place()), quiet=self.config.quiet))


def _callback(name: str, given: Any) -> Callback:
    from distsgd.core.errors import ConfigurationError
    from distsgd.training.callbacks import Callback

    callback = given() if isinstance(given, type) else given
    if not isinstance(callback, Callback):
        raise ConfigurationError(f"callback: {name} must be a distsgd.Callback, got {type(callback).__name__}")
    return callback


def check_gradient(communicator: Communicator, attempt: Attempt) -> int:
    """Compares the gradient with central differences on rank 0; 0 where it is right. Collective."""
    from distsgd.cli.gradient_check import check_step

    def check() -> bool:
        result, where = check_step(attempt.trainer.step, attempt.data.train, attempt.config.seed)
        say(f"{result}; computed in {where}")
        return result.ok

    return 0 if communicator.on_root(check) else 1
