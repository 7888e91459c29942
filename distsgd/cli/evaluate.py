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
    from distsgd.core.device import Array
    from distsgd.data.examples import Examples
    from distsgd.data.sources.datasets import DataSource
    from distsgd.parallel import Communicator
    from distsgd.run.stored_model import StoredModel


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
    from distsgd.core.layout import Layout
    from distsgd.data.sources.datasets import check_arrays
    from distsgd.parallel.thread_pool import Workers
    from distsgd.run.build_metrics import build_metrics, confusion_matrix
    from distsgd.run.kernels import choose_for
    from distsgd.run.placement import open_source, place_split
    from distsgd.run.records import finite
    from distsgd.run.stored_model import load_model
    from distsgd.training.evaluator import Evaluator

    options = communicator.on_root(lambda: parse_arguments(Options, arguments, "python -m distsgd.evaluate"))
    choose_for(communicator, options.run)
    stored = load_model(communicator, options.run, options.model)
    config, signature = replace(stored.config, top_k=options.top_k), stored.signature
    source = open_source(communicator, options.dataset, options.data_dir, stored.config.seed, others=())
    split, part = communicator.on_root(lambda: choose_split(source, options.split))
    placed = place_split(communicator, source, part)
    assert placed is not None, "choose_split names a part that is there"
    examples = signature.examples(placed.x, placed.y, placed.weights)
    if part == "train" and split != "all":
        split, examples = communicator.everywhere(lambda: of_the_run(stored, source.name, examples, split))
    communicator.on_root(lambda: check_like_training(stored, source.name, examples.y))
    communicator.on_root(
        lambda: check_arrays(
            source.name,
            examples.x,
            examples.y,
            examples.weights,
            num_classes=signature.num_classes,
            values=stored.task.kind == "regression",
            dtype=np.dtype(config.dtype),
        )
    )
    loader = stored.loader(examples, with_targets=True)
    if communicator.is_root and (doubt := stored.signature.doubt(examples.x)):
        say(f"warning: {doubt}", sys.stderr)
    metrics = build_metrics(communicator, replace(config, metric=()), signature, stored.objective, stored.task)
    confusion = confusion_matrix(stored.task, metrics)
    evaluator = Evaluator(communicator, loader, [*metrics, *([confusion] if confusion else [])], Workers(1))
    layout = Layout.of(stored.objective.parameter_shapes())
    scratch = layout.views(np.zeros(layout.size, loader.dtype))
    scores = evaluator.run(stored.params, stored.state, [scratch])
    if communicator.is_root:
        say(json.dumps(finite({"dataset": source.name, "split": split, "examples": len(examples), **scores})))
    return 0


def check_like_training(stored: StoredModel, name: str, y: Array) -> None:
    """Raises DataError where targets are others than those that the model was trained on."""
    import numpy as np

    from distsgd.core.errors import DataError

    signature, classes = stored.signature, stored.signature.num_classes
    trained = "values" if classes is None else f"integer labels from 0 to {classes - 1}"
    if classes is not None and y.dtype.kind == "f":
        raise DataError(f"{name}: the model was trained on {trained}, the targets are floats; give y.astype(int)")
    if classes is None and stored.task.kind != "regression" and y.dtype.kind != "f":
        shape = ("n", *signature.target_shape)
        one_hot = "np.eye(classes)[y]" if stored.task.kind == "classification" and len(shape) > 1 else "y.astype(float)"
        raise DataError(
            f"{name}: the model was trained on floats ({', '.join(map(str, shape))}), the targets are integers; give "
            f"{one_hot}"
        )
    if y.shape[1:] not in (signature.target_shape, (*signature.target_shape, 1)):
        raise DataError(
            f"{name}: the model was trained on targets of shape {signature.target_shape} an example, the data has "
            f"{y.shape[1:]}; give the same"
        )
    if classes is not None and len(y) and not 0 <= y.min() <= y.max() < classes:
        row = int(np.argmax((y.reshape(len(y)) < 0) | (y.reshape(len(y)) >= classes)))
        raise DataError(
            f"{name}: the model was trained on {trained}, example {row} has {int(y[row])}; remove the examples of "
            "other classes"
        )


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
    from distsgd.run.placement import split_of

    split = None if stored.split is None else split_of(examples, stored.signature.num_classes, stored.config)
    if split is None or split.digest(examples) != stored.split:
        if wanted is None or (wanted == "train" and stored.split is None):
            return "all", examples
        why = "split nothing off" if stored.split is None else "was trained on other data"
        raise ConfigurationError(f"split: this run {why}, so that {name} has no {wanted} part of it; use --split all")
    part = split.training if wanted == "train" else split.validation
    return wanted or "validation", examples.subset(part)
