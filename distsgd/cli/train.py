"""python -m distsgd.train: train a model on all ranks of an MPI job, or in this process alone."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from distsgd.cli.commands import run_command
from distsgd.core.output import counted, field, field_of_path, report_to_launcher, say, say_lines

if TYPE_CHECKING:
    from distsgd.parallel import Communicator
    from distsgd.run.config import TrainConfig
    from distsgd.run.folder import RunFolder
    from distsgd.run.lifecycle import Attempt
    from distsgd.training.callbacks import Callback
    from distsgd.training.trainer import Trainer


def main() -> int:
    """The command; returns the exit status."""
    signals = Signals()  # before MPI begins, for a signal may come at any time
    return run_command(lambda communicator, arguments: train(communicator, arguments, signals))


def train(communicator: Communicator, arguments: Sequence[str], signals: Signals) -> int:
    """Parses, and runs; returns the exit status. Collective."""
    from distsgd.cli.command_line import load_config
    from distsgd.run.build import build_objective
    from distsgd.run.config import own_optimizer, resolved
    from distsgd.run.folder import run_folder
    from distsgd.run.lifecycle import RunSpec, run
    from distsgd.run.placement import load_data
    from distsgd.run.summary import EXIT_STATUS

    config = communicator.on_root(lambda: resolved(load_config(arguments)))
    config = replace(config, max_time=config.max_time or "auto")
    command = Command(config, run_folder(config), signals)
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
        from distsgd.run.progress import make_progress

        users = {name: user_code(communicator, name, "callback") for name in self.config.callback}
        own = communicator.everywhere(lambda: [_callback(name, users[name]) for name in self.config.callback])
        return [*(make_progress(self.config.quiet) if communicator.is_root else []), *own]

    def finished(self, line: str) -> None:
        """Draws and reports a run that is finished already, on rank 0."""
        if self.config.plot:
            from distsgd.run.pictures import draw_finished

            draw_finished(self.folder.path, self.config)
        report_to_launcher("ended", status="finished")
        say_lines(line)

    def before_training(self, communicator: Communicator, attempt: Attempt) -> bool:
        """Checks the gradient, or prints the header; whether to train. From then on signals stop it. Collective."""
        if self.config.check_gradient:
            self.status = check_gradient(communicator, attempt)
            return False
        announce(communicator, attempt)
        self.signals.watch(attempt.trainer)
        return not self.config.dry_run

    def ended(self, attempt: Attempt) -> None:
        """Reports the end and prints the last line, on rank 0."""
        from distsgd.run.summary import last_line

        report_to_launcher("ended", status=attempt.summary["status"])
        say_lines(last_line(attempt.summary, str(self.folder.place()), quiet=self.config.quiet))


def _callback(name: str, given: Any) -> Callback:
    from distsgd.core.errors import ConfigurationError
    from distsgd.training.callbacks import Callback

    callback = given() if isinstance(given, type) else given
    if not isinstance(callback, Callback):
        raise ConfigurationError(f"callback: {name} must be a distsgd.Callback, got {type(callback).__name__}")
    return callback


class Signals:
    """SIGTERM, SIGINT and SIGUSR1 to any rank: a checkpoint after the next step, exit status 75."""

    def __init__(self) -> None:
        self._asked = False
        self._trainer: Trainer | None = None
        for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        self._asked = True
        if self._trainer is not None:
            self._trainer.stop()

    def watch(self, trainer: Trainer) -> None:
        """From now on signals stop this trainer; one that came before stops it after its first step."""
        self._trainer = trainer
        if self._asked:
            trainer.stop()


def announce(communicator: Communicator, attempt: Attempt) -> None:
    """Prints notes, a warning where hosts compute other bits, and the header. Collective."""
    from distsgd.run.lifecycle import say_notes

    config, folder = attempt.config, attempt.spec.folder
    probes = communicator.gather_object(attempt.trainer.progress.metadata.probe)
    say_notes(communicator, attempt)
    if probes is None or folder is None:
        return
    odd = sorted({host for host, probe in zip(communicator.hosts, probes, strict=True) if probe != probes[0]})
    if odd:
        say(
            f"warning: {', '.join(odd)} compute other bits than {communicator.hosts[0]}; replicas agree, but another "
            "number of ranks may give other results; one OPENBLAS_CORETYPE and NPY_DISABLE_CPU_FEATURES would not",
            sys.stderr,
        )
    if config.quiet:
        return
    for name, text in _header(communicator, attempt).items():
        for line in field(name, text):
            say(line)
    for line in field_of_path("run", str(folder.path)):
        say(line)


def _header(communicator: Communicator, attempt: Attempt) -> dict[str, str]:
    """What the run is, with all that was chosen for the user, but for its folder."""
    from distsgd.core.device import FULL
    from distsgd.core.errors import visible
    from distsgd.core.runtime import blas_description
    from distsgd.run.summary import early_end

    config, data, trainer = attempt.config, attempt.data, attempt.trainer
    step, hosts = trainer.step, ", ".join(sorted(set(communicator.hosts)))
    counts = [f"{0 if part is None else len(part):,}" for part in (data.train, data.validation, data.test)]
    way = step.reduction.transport.description
    arithmetic = config.dtype if config.precision == FULL else f"{config.dtype}, products in {config.precision}"
    augmented = f"; training images: {', '.join(config.augment)}" if config.augment else ""
    used = (", weighted" if data.train.weights is not None else "") + augmented
    if data.unused:
        used += f"; not used: {', '.join(map(visible, data.unused[:8]))}"
    header = {
        "ranks": f"{communicator.size} on {hosts}, {step.workers.count} thread(s) each, "
        f"{config.microbatches} microbatches",
        "compute": f"{blas_description() if step.device.host_memory else step.device}, {arithmetic}"
        + (f"; gradients travel {way}" if way else ""),
        "data": f"{data.name}: {counts[0]} training, {counts[1]} validation, {counts[2]} test examples{used}",
        "validation": "" if data.split is None else data.split.words,
        "model": f"{describe(config, trainer)}: {step.layout.size:,} parameters",
        "optimizer": f"{step.optimizer}, batch {config.batch_size}",
        "best": _best_by(trainer),
        "stop": _stops_at(trainer),
        "early stop": early_end(trainer) or "",
        "time": trainer.limits.why,
        "start": f"from step {trainer.progress.step}" if trainer.progress.step else "",
    }
    return {name: text for name, text in header.items() if text}


def _best_by(trainer: Trainer) -> str:
    """Which parameters are kept."""
    monitor = trainer.selection.monitor.replace("_", " ")
    if trainer.selection.rule is None:
        return "nothing is validated: the last parameters are kept"
    return f"by {monitor}{'' if monitor == 'validation loss' else ', then by validation loss'}; marked *"


def _stops_at(trainer: Trainer) -> str:
    """What ends the run, besides the stopping rule."""
    limits, target = trainer.limits, trainer.selection.target
    ends = [f"after {counted(limits.epochs, 'epoch')}"]
    ends += [] if limits.max_steps is None else [f"after {counted(limits.max_steps, 'step')}"]
    ends += [] if target is None else [f"when {target[0].replace('_', ' ')} reaches {target[1]:g}"]
    return ", or ".join(ends)


def describe(config: TrainConfig, trainer: Trainer) -> str:
    """The model in a few words: its name, and the layers."""
    from distsgd.nn.models.describe import describe as describe_layer
    from distsgd.nn.models.text import is_text
    from distsgd.nn.objective import Supervised

    objective = trainer.step.objective
    name = config.model.partition(":")[0] if is_text(config.model) and ":" in config.model else config.model
    layers = describe_layer(objective.model) if isinstance(objective, Supervised) else "(own function)"
    return layers if "," in name else f"{name} {layers}"


def check_gradient(communicator: Communicator, attempt: Attempt) -> int:
    """Compares the gradient with central differences in float64 on rank 0; 0 where it is right. Collective."""
    from distsgd.cli.gradient_check import check_objective

    def check() -> bool:
        result = check_objective(attempt.trainer.step.objective.scaled(1), attempt.data.train, attempt.config.seed)
        say(str(result))
        return result.ok

    return 0 if communicator.on_root(check) else 1
