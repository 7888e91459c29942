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
    from distsgd.data.sources.datasets import DataSource
    from distsgd.parallel import Communicator


@dataclass(frozen=True)
class Options:
    """Score a trained model on a data set; prints one line of JSON."""

    run: str = option(REQUIRED, "The run's folder, or a checkpoint.", positional=True, path=True)
    dataset: str = option(REQUIRED, "The name of a data set, or a path.", path=True)
    split: str | None = option(
        None, "test, validation or train. Default: test, or train where the data set has no test part."
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
    from distsgd.run.build import build_metrics, confusion_matrix
    from distsgd.run.folder import finite
    from distsgd.run.placement import open_source, place_split
    from distsgd.run.stored_model import load_model
    from distsgd.training.evaluator import Evaluator

    options = communicator.on_root(lambda: parse_arguments(Options, arguments, "python -m distsgd.evaluate"))
    stored = load_model(communicator, options.run, options.model)
    config, signature = replace(stored.config, top_k=options.top_k), stored.signature
    source = open_source(communicator, options.dataset, options.data_dir)
    split = communicator.on_root(lambda: choose_split(source, options.split))
    placed = place_split(communicator, source, split)
    assert placed is not None, "choose_split names a split that is there"
    examples = replace(placed, scale=signature.scale)
    communicator.on_root(
        lambda: check_arrays(source.name, examples.x, examples.y, examples.weights, num_classes=signature.num_classes)
    )
    loader = stored.loader(examples, with_targets=True)
    if communicator.is_root and (doubt := stored.doubt(examples.x)):
        say(doubt, sys.stderr)
    metrics = build_metrics(communicator, replace(config, metric=()), signature, stored.objective)
    confusion = confusion_matrix(signature, metrics)
    evaluator = Evaluator(communicator, loader, [*metrics, *([confusion] if confusion else [])], Workers(1))
    layout = Layout.of(stored.objective.parameter_shapes())
    scratch = layout.views(np.zeros(layout.size, loader.dtype))
    scores = evaluator.run(stored.params, stored.state, [scratch])
    if communicator.is_root:
        say(json.dumps(finite({"dataset": source.name, "split": split, "examples": len(examples), **scores})))
    return 0


def choose_split(source: DataSource, wanted: str | None) -> str:
    """The part of the data set to score. Raises ConfigurationError where it hasn't any of that name."""
    from distsgd.core.errors import ConfigurationError

    there = [name.removeprefix("x_") for name in source.arrays if name.startswith("x_")]
    split = wanted or ("test" if "test" in there else "train")
    if split not in there:
        raise ConfigurationError(f"split: {source.name} has {', '.join(there)}, got {split!r}")
    return split
