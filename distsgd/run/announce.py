"""What rank 0 prints before training: notes, and a header that names all that was chosen for the user."""

from __future__ import annotations

import sys

from distsgd.core.device_options import FULL
from distsgd.core.errors import visible
from distsgd.core.output import counted, field, field_of_path, say
from distsgd.core.runtime import blas_description
from distsgd.nn.models.describe import describe as describe_layer
from distsgd.nn.models.text import is_text
from distsgd.nn.objective import Supervised
from distsgd.parallel import Communicator
from distsgd.run.config import TrainConfig
from distsgd.run.data.loading import Data
from distsgd.run.files.summary import early_end
from distsgd.run.lifecycle import Attempt, say_notes
from distsgd.training.trainer import Trainer


def announce(communicator: Communicator, attempt: Attempt) -> None:
    """Prints notes, a warning where hosts compute other bits, and the header. Collective."""
    config, folder = attempt.config, attempt.spec.folder
    probes = communicator.gather_object(attempt.trainer.progress.metadata.probe)
    say_notes(communicator, attempt)
    if probes is None:
        return
    odd = sorted({host for host, probe in zip(communicator.hosts, probes, strict=True) if probe != probes[0]})
    if odd:
        say(
            f"warning: {', '.join(odd)} compute other bits than {communicator.hosts[0]}; replicas agree, but another "
            "number of ranks may give other results; use one version of NumPy and of the C library on all hosts",
            sys.stderr,
        )
    if config.quiet:
        return
    for name, text in _header(communicator, attempt).items():
        for line in field(name, text):
            say(line)
    for line in [] if folder is None else field_of_path("run", str(folder.path)):
        say(line)


def _header(communicator: Communicator, attempt: Attempt) -> dict[str, str]:
    """What the run is, with all that was chosen for the user, but for its folder."""
    config, data, trainer = attempt.config, attempt.data, attempt.trainer
    step, hosts = trainer.step, ", ".join(sorted(set(communicator.hosts)))
    counts = [f"{0 if part is None else len(part):,}" for part in (data.train, data.validation, data.test)]
    way = step.reduction.transport.description
    arithmetic = config.dtype if config.precision == FULL else f"{config.dtype}, products in {config.precision}"
    if groups := step.reduction.partition.wire_groups:
        arithmetic += f", the sums of {counted(groups, 'group')} of microbatches and the parameters rounded to bfloat16"
    augmented = f"; training images: {', '.join(config.augment)}" if config.augment else ""
    used = augmented
    if data.unused:
        used += f"; not used: {', '.join(map(visible, data.unused[:8]))}"
    header = {
        "ranks": f"{communicator.size} on {hosts}, {step.workers.count} thread(s) each, "
        f"{config.microbatches} microbatches{'' if config.shares == 'equal' else f', shares {config.shares}'}",
        "compute": (f"{blas_description()}, kernels {config.kernels}" if step.device.host_memory else f"{step.device}")
        + f", {arithmetic}"
        + (f"; gradients travel {way}" if way else ""),
        "data": f"{data.name}: {counts[0]} training, {counts[1]} validation, {counts[2]} test examples{used}",
        "order": _order(config, data),
        "weights": _weights(data, trainer),
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


def _order(config: TrainConfig, data: Data) -> str:
    """The order of the examples, where options say it."""
    if config.shuffle_buffer is None and config.sampling not in ("weighted", "balanced"):
        return ""
    from distsgd.run.data.ordering import order_in_words

    return order_in_words(config, data.train)


def _weights(data: Data, trainer: Trainer) -> str:
    """What losses are multiplied by, and where that comes from."""
    sets = {"training": data.train, "validation": data.validation, "test": data.test}
    weighted = [name for name, part in sets.items() if part is not None and part.weights is not None]
    objective = trainer.step.objective
    classes = getattr(objective.loss, "class_weights", None) if isinstance(objective, Supervised) else None
    used = [f"example weights: yes, of {' and '.join(weighted)} examples, from {data.name}"] if weighted else []
    used += [f"class weights: {', '.join(f'{weight:g}' for weight in classes)}"] if classes else []
    return "; ".join(used)


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
    objective = trainer.step.objective
    name = config.model.partition(":")[0] if is_text(config.model) and ":" in config.model else config.model
    layers = describe_layer(objective.model) if isinstance(objective, Supervised) else "(own function)"
    return layers if "," in name else f"{name} {layers}"
