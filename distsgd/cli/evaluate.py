"""python -m distsgd.evaluate RUN --dataset …: score a trained model, on one rank or many."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distsgd.cli.commands import run_command
from distsgd.core.options import REQUIRED, option
from distsgd.core.output import say

if TYPE_CHECKING:
    from distsgd.data.examples import Examples
    from distsgd.data.sources.base import DataSource
    from distsgd.parallel import Communicator
    from distsgd.run.trained.stored_model import StoredModel


@dataclass(frozen=True)
class Options:
    """Score a trained model on a data set; prints one line of JSON."""

    run: str = option(REQUIRED, "The run's folder, or a checkpoint.", positional=True, path=True)
    dataset: str = option(REQUIRED, "The name of a data set, or a path.", path=True)
    split: str | None = option(
        None,
        "test; validation: also the part that training split off; train: what was trained on; all: the whole training "
        "part. Default: test, or what the data set has: validation of the run's own data, all of others.",
    )
    data_dir: str | None = option(None, "Where data-set files are.", path=True)
    x: tuple[str, ...] = option((), "The inputs, as the option --x of training names them. Default: as in training.")
    y: tuple[str, ...] = option((), "The targets, as --y of training. Default: as in training.")
    weights: str | None = option(None, "The sample weights, as --weights of training. Default: as in training.")
    axis: str = option("0", "The axis of examples, as --axis of training. Default: as in training.")
    top_k: int | None = option(None, "Adds top-k accuracy.", interval="[1, inf)")
    model: str | None = option(None, "file.py:function, where the run's model is your own code.", code=True, path=True)


def main() -> int:
    """The command; returns the exit status."""
    return run_command(evaluate)


def evaluate(communicator: Communicator, arguments: Sequence[str]) -> int:
    """Scores, and prints on rank 0. Collective."""
    import json
    from dataclasses import replace

    import numpy as np

    from distsgd.cli.command_line import parse_arguments
    from distsgd.data.checks import check_rows
    from distsgd.data.sources.base import ReadOptions
    from distsgd.run.data.loading import open_source
    from distsgd.run.data.options import asked_by
    from distsgd.run.data.placement import place_or_read
    from distsgd.run.files.records import finite
    from distsgd.run.kernels import choose_for
    from distsgd.run.trained.predicting import in_use, looked_at
    from distsgd.run.trained.scoring import score
    from distsgd.run.trained.stored_model import load_model

    options = communicator.on_root(lambda: parse_arguments(Options, arguments, "python -m distsgd.evaluate"))
    choose_for(communicator, options.run)
    stored = load_model(communicator, options.run, options.model)
    config, signature = replace(stored.config, top_k=options.top_k), stored.signature
    given = ReadOptions(
        x=options.x,
        y=options.y,
        weights=options.weights,
        axis=options.axis,
        streamed=not options.dataset.lower().endswith(".gz"),
    )
    asked = communicator.on_root(lambda: asked_by(config, signature, options.dataset, given))
    source = open_source(communicator, options.dataset, options.data_dir, config.seed, (), asked)
    communicator.on_root(lambda: check_names(source, signature.class_names))
    split, part = communicator.on_root(lambda: choose_split(source, options.split))
    are_finite = check_rows(source.name, np.dtype(config.dtype))
    placed = place_or_read(communicator, source, part, are_finite)
    assert placed is not None, "choose_split names a part that is there"
    with in_use(placed.x):
        examples = signature.examples(placed.x, placed.y, placed.weights)
        if part == "train" and split != "all":
            split, examples = communicator.everywhere(lambda: of_the_run(stored, source.name, examples, split))
        communicator.on_root(lambda: check(stored, source.name, examples))
        if communicator.is_root and (doubt := signature.doubt(looked_at(examples.x))):
            say(f"warning: {doubt}", sys.stderr)
        scores = score(communicator, replace(stored, config=config), examples)
    if communicator.is_root:
        say(json.dumps(finite({"dataset": source.name, "split": split, "examples": len(examples), **scores})))
    return 0


def check_names(source: DataSource, trained: Sequence[str]) -> None:
    """Raises DataError where the data have other names of classes than the model."""
    from distsgd.core.errors import DataError

    if source.class_names and trained and tuple(source.class_names) != tuple(trained):
        raise DataError(
            f"{source.name}: the model was trained on the classes {', '.join(trained[:8])}, got "
            f"{', '.join(source.class_names[:8])}; give examples of the same classes"
        )


def check(stored: StoredModel, name: str, examples: Examples) -> None:
    """Raises DataError where examples can't be scored."""
    import numpy as np

    from distsgd.data.checks import check_arrays

    stored.check_targets(name, examples.y)
    classes, values = stored.signature.num_classes, stored.task.kind == "regression"
    x, y, weights, dtype = examples.x, examples.y, examples.weights, np.dtype(stored.config.dtype)
    check_arrays(name, x, y, weights, num_classes=classes, values=values, dtype=dtype)


def choose_split(source: DataSource, wanted: str | None) -> tuple[str | None, str]:
    """(which examples to score, the part of the data set that they are in). Raises ConfigurationError where it hasn't
    any of that name."""
    from distsgd.core.errors import ConfigurationError

    there = [name.removeprefix("x_") for name in source.arrays if name.startswith("x_")]
    if wanted is None:
        return ("test", "test") if "test" in there else (None, "train")
    if wanted not in ("test", "validation", "train", "all"):
        raise ConfigurationError(f"split: expected test, validation, train or all, got {wanted!r}")
    if wanted == "test" and "test" not in there:
        raise ConfigurationError(f"split: {source.name} has {', '.join(there)}, got {wanted!r}")
    return wanted, wanted if wanted in there else "train"


def of_the_run(stored: StoredModel, name: str, examples: Examples, wanted: str | None) -> tuple[str, Examples]:
    """The examples of the training part that the run trained on, or split off, if the data set is the run's own; by
    default its validation examples, and all examples of another data set."""
    from distsgd.core.errors import ConfigurationError
    from distsgd.run.data.splitting import split_of

    split = None if stored.metadata.split is None else split_of(examples, stored.signature.num_classes, stored.config)
    if split is None or split.digest(examples) != stored.metadata.split:
        if wanted is None or (wanted == "train" and stored.metadata.split is None):
            return "all", examples
        why = "split nothing off" if stored.metadata.split is None else "was trained on other data"
        if stored.metadata.split is not None and stored.config.group is not None:
            why = "split whole groups off, which its data don't say here (its folder has validation_rows.npy)"
        raise ConfigurationError(f"split: this run {why}, so that {name} has no {wanted} part of it; use --split all")
    part = split.training if wanted == "train" else split.validation
    return wanted or "validation", examples.subset(part)
