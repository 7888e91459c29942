"""The scores of a trained model on examples: for the command evaluate, and for `evaluate` in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from distsgd.core.device import Array, Shape
from distsgd.core.layout import Layout, Views
from distsgd.data.checks import check_arrays, check_stored
from distsgd.data.examples import Examples
from distsgd.nn.batch import Batch
from distsgd.nn.objective import Objective
from distsgd.parallel import Communicator
from distsgd.parallel.serial import SerialCommunicator
from distsgd.parallel.thread_pool import Workers
from distsgd.run.build_metrics import build_metrics, confusion_matrix
from distsgd.run.data.given import has_columns
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

    A configuration comes from a file, and what it names is not run: its own `metric` is ignored.
    """
    config = replace(stored.config, metric=names)
    measured = build_metrics(communicator, config, stored.signature, stored.objective, stored.task, metrics)
    confusion = confusion_matrix(stored.task, measured)
    loader = stored.loader(examples, with_targets=True)
    evaluator = Evaluator(communicator, loader, [*measured, *([confusion] if confusion else [])], Workers(1))
    layout = Layout.of(stored.objective.parameter_shapes())
    return dict(
        evaluator.run(stored.params, stored.state, [layout.views(stored.device.empty((layout.size,), loader.dtype))])
    )


def score_predictions(
    stored: StoredModel,
    predictions: Array,
    examples: Examples,
    names: tuple[str, ...] = (),
    metrics: Sequence[Metric] = (),
) -> dict[str, Any]:
    """The usual metrics, and these, of predictions (n, k) for examples that were checked. There is no loss: it takes
    outputs, which predictions are made from."""
    task, config = stored.task, replace(stored.config, metric=names)
    if task.answer == "logit":
        task = replace(task, answer="probability")
    alone = SerialCommunicator()
    measured = build_metrics(alone, config, stored.signature, stored.objective, task, metrics)
    confusion = confusion_matrix(task, measured)
    objective = _Predicted(stored.objective, np.ascontiguousarray(predictions.T))
    loader = stored.loader(replace(examples, targets=None), with_targets=True)
    evaluator = Evaluator(
        alone, replace(loader, objective=objective), [*measured, *([confusion] if confusion else [])], Workers(1)
    )
    nothing = Layout.of({}).views(np.zeros(0))
    values = dict(evaluator.run(nothing, nothing, [nothing]))
    del values["loss"]
    return values


@final
@dataclass(frozen=True)
class _Predicted(Objective):
    """Predictions (k, n) that are there already, in place of a model's outputs."""

    model: Objective
    predictions: Array

    def parameter_shapes(self) -> Mapping[str, Shape]:
        return {}

    def initialize(self, params: Views, state: Views, seed: int) -> None:
        pass

    def loss_and_grad(self, params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        return 0.0, len(batch)

    def score(self, params: Views, scratch: Views, batch: Batch) -> tuple[float, int, Array | None]:
        return 0.0, len(batch), self.predictions[:, batch.indices]

    def targets(self, y: Array, dtype: np.dtype) -> Array:
        return self.model.targets(y, dtype)


def arrays_of(stored: StoredModel, x: Any, y: Any, weights: Any = None) -> tuple[Any, ...]:
    """(x, y) or (x, y, weights) of a program; frames and series of text as arrays of numbers."""
    if has_columns(x, y):
        from distsgd.run.data.frames import targets_for

        return targets_for(x, y, weights, stored.signature, "evaluate: ")
    return (x, y) if weights is None else (x, y, weights)


def as_trained(stored: StoredModel, given: Examples) -> Examples:
    """Examples whose missing values are treated as those of training were."""
    columns = stored.signature.columns
    if columns is not None and columns.fill:
        from distsgd.run.data.filling import filled_in

        return replace(given, x=filled_in(given.x, columns))
    if columns is None and stored.config.missing == "drop" and not given.as_stored:
        from distsgd.run.data.filling import without_missing

        return without_missing(given)
    return given


def checked(stored: StoredModel, given: Examples) -> Examples:
    """Examples of a program, scaled as those of training were. Raises DataError where they don't fit the model."""
    given = as_trained(stored, given)
    if given.as_stored:
        stored.check_targets("evaluate", given.y)
        dtype, classes = np.dtype(stored.config.dtype), stored.signature.num_classes
        check_stored("evaluate", given.x, given.y, given.weights, num_classes=classes, dtype=dtype)
        return given
    check(stored, "evaluate", given)
    return stored.signature.examples(given.x, given.y, given.weights)


def check(stored: StoredModel, name: str, examples: Examples) -> None:
    """Raises DataError where the model can't score these examples, by their name in messages."""
    stored.check_targets(name, examples.y)
    classes, values = stored.signature.num_classes, stored.task.kind == "regression"
    x, y, weights, dtype = examples.x, examples.y, examples.weights, np.dtype(stored.config.dtype)
    check_arrays(name, x, y, weights, num_classes=classes, values=values, dtype=dtype)
