"""python -m distsgd.evaluate RUN --dataset …: score a trained model, on one rank or many."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distsgd.cli.commands import run_command
from distsgd.core.device_options import device_option, precision_option
from distsgd.core.options import REQUIRED, option
from distsgd.core.output import say

if TYPE_CHECKING:
    from distsgd.data.sources.base import ReadOptions
    from distsgd.parallel import Communicator
    from distsgd.run.trained.stored_model import StoredModel


@dataclass(frozen=True)
class Options:
    """Score a trained model on a data set; prints one line of JSON."""

    run: str = option(REQUIRED, "The run's folder, or a checkpoint.", positional=True, path=True)
    dataset: str | None = option(
        None, "The name of a data set, or a path. Default: the one that the run was trained on.", path=True
    )
    split: str | None = option(
        None,
        "test; validation: also the part that training split off; train: what was trained on; all: the whole training "
        "part. Default: test, or what the data set has: validation of the run's own data, all of others.",
    )
    data_dir: str | None = option(None, "Where data-set files are. Default: as in training.", path=True)
    x: tuple[str, ...] = option((), "The inputs, as the option --x of training names them. Default: as in training.")
    y: tuple[str, ...] = option((), "The targets, as --y of training. Default: as in training.")
    weights: str | None = option(
        None, "The sample weights, as --weights of training, '' for none. Default: as in training.", empty=True
    )
    axis: str | None = option(None, "The axis of examples, as --axis of training. Default: as in training.")
    top_k: int | None = option(None, "Adds top-k accuracy.", interval="[1, inf)")
    model: str | None = option(None, "file.py:function, where the run's model is your own code.", code=True, path=True)
    device: str = device_option("cpu")
    precision: str = precision_option()


def main() -> int:
    """The command; returns the exit status."""
    return run_command(evaluate)


def evaluate(communicator: Communicator, arguments: Sequence[str]) -> int:
    """Scores, and prints on rank 0. Collective."""
    import json
    from dataclasses import replace

    from distsgd.cli.command_line import parse_arguments
    from distsgd.run.data.loading import open_source
    from distsgd.run.files.records import finite
    from distsgd.run.kernels import choose_for
    from distsgd.run.trained.held_out import rows_of_run, score_source
    from distsgd.run.trained.stored_model import load_model, on_devices

    options = communicator.on_root(lambda: parse_arguments(Options, arguments, "python -m distsgd.evaluate"))
    choose_for(communicator, options.run)
    stored = load_model(communicator, options.run, options.model)
    stored = replace(stored, config=replace(stored.config, top_k=options.top_k))
    (stored,) = on_devices(communicator, [stored], options.device, options.precision)
    dataset, data_dir, asked = communicator.on_root(lambda: chosen(options, stored))
    source = open_source(communicator, dataset, data_dir, stored.config.seed, (), asked)

    def warn(doubt: str) -> None:
        say(f"warning: {doubt}", sys.stderr)

    split, count, scores = score_source(
        communicator, stored, source, options.split, lambda: rows_of_run(options.run, stored), warn
    )
    if communicator.is_root:
        say(json.dumps(finite({"dataset": source.name, "split": split, "examples": count, **scores})))
    return 0


def chosen(options: Options, stored: StoredModel) -> tuple[str, str | None, ReadOptions]:
    """(the name or path of the data set, the folder of those with names, what is asked of it). Raises
    ConfigurationError where the run doesn't say which."""
    from distsgd.core.errors import ConfigurationError
    from distsgd.data.sources.base import ReadOptions
    from distsgd.data.sources.registry import looks_like_path
    from distsgd.run.data.options import asked_by

    config, name, data_dir = stored.config, options.dataset, options.data_dir
    if name is None:
        if config.dataset == "arrays":
            raise ConfigurationError(f"dataset: {options.run} was trained on arrays of a program; give --dataset PATH")
        others = {"test": config.test, "validation": config.validation}
        wanted = next((key for key, path in others.items() if path is not None and options.split in (None, key)), None)
        if wanted is not None:
            raise ConfigurationError(
                f"dataset: {options.run} has {wanted} examples of another file; give --dataset {others[wanted]}"
            )
        name, data_dir = config.dataset, data_dir or (None if looks_like_path(config.dataset) else config.data_dir)
    given = ReadOptions(
        x=options.x,
        y=options.y,
        weights=options.weights,
        axis=options.axis or "",
        streamed=not name.lower().endswith(".gz"),
    )
    return name, data_dir, asked_by(config, stored.signature, name, given)
