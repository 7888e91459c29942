"""The scores of a trained model on examples: for the command evaluate, and for `evaluate` in Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from distsgd.core.layout import Layout
from distsgd.data.examples import Examples
from distsgd.data.sources.checks import check_arrays, check_stored
from distsgd.parallel import Communicator
from distsgd.parallel.thread_pool import Workers
from distsgd.run.build_metrics import build_metrics, confusion_matrix
from distsgd.run.trained.stored_model import StoredModel
from distsgd.training.evaluator import Evaluator
from distsgd.training.metrics.base import Metric


def score(
    communicator: Communicator,
    stored: StoredModel,
    examples: Examples,
    names: tuple[str, ...] = (),
    metrics: Sequence[Metric] = (),
) -> dict[str, Any]:
    """The loss, the usual metrics, those with these names and these ones, of examples that were checked. Collective.

    A configuration comes from a file, and what it names is not run: its own `metric` is left out.
    """
    config = replace(stored.config, metric=names)
    measured = build_metrics(communicator, config, stored.signature, stored.objective, stored.task, metrics)
    confusion = confusion_matrix(stored.task, measured)
    loader = stored.loader(examples, with_targets=True)
    evaluator = Evaluator(communicator, loader, [*measured, *([confusion] if confusion else [])], Workers(1))
    layout = Layout.of(stored.objective.parameter_shapes())
    return dict(evaluator.run(stored.params, stored.state, [layout.views(np.zeros(layout.size, loader.dtype))]))


def checked(stored: StoredModel, given: Examples) -> Examples:
    """Examples of a program, scaled as those of training were. Raises DataError where they don't fit the model."""
    stored.check_targets("evaluate", given.y)
    dtype, classes = np.dtype(stored.config.dtype), stored.signature.num_classes
    if given.as_stored:
        check_stored("evaluate", given.x, given.y, given.weights, num_classes=classes, dtype=dtype)
        return given
    check_arrays(
        "evaluate",
        given.x,
        given.y,
        given.weights,
        num_classes=classes,
        values=stored.task.kind == "regression",
        dtype=dtype,
    )
    return stored.signature.examples(given.x, given.y, given.weights)
