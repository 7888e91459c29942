"""From a configuration to what is trained and measured: loss, objective, metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from math import prod
from typing import Any

import numpy as np

from distsgd.core.errors import ConfigurationError, DataError, users_code
from distsgd.data.examples import Signature
from distsgd.nn.layers import Layer
from distsgd.nn.losses import LOSSES, BinaryCrossEntropy, Loss, SoftmaxCrossEntropy, SquaredError
from distsgd.nn.models import ModelOptions, accepted_shape, build_model
from distsgd.nn.objective import FunctionObjective, Objective, Supervised
from distsgd.parallel import Communicator
from distsgd.run.config import TrainConfig
from distsgd.run.placement import Data
from distsgd.run.user_code import CodeName, import_function
from distsgd.training.metrics import METRICS, ConfusionMatrix, Metric, UserMetric, default_metrics

OWN_MODEL = "own"
"""The name, in a configuration, of a model that was handed to fit as an object."""

_CONFUSION_CLASSES = 100
"""Above this many classes a confusion matrix is no longer something to read in a summary."""


def user_code(communicator: Communicator, name: str, option: str) -> Any:
    """The object that a CodeName names, on every rank; its own errors come with their traceback, once. Collective."""

    def load() -> Any:
        with users_code(f"{option}: importing {name} failed"):
            return import_function(name, option)

    return communicator.everywhere(load)


def build_loss(config: TrainConfig, data: Signature) -> Loss:
    """The loss of the configuration: by the targets where it is auto."""
    name = config.loss
    if name == "auto":
        name = "softmax-cross-entropy" if data.num_classes is not None else "squared-error"
    if name == "softmax-cross-entropy":
        return SoftmaxCrossEntropy(label_smoothing=config.label_smoothing, class_weights=config.class_weights or None)
    if config.label_smoothing or config.class_weights:
        raise ConfigurationError(f"label_smoothing and class_weights need softmax-cross-entropy, the loss is {name}")
    return LOSSES[name]()


def build_objective(communicator: Communicator, config: TrainConfig, data: Signature) -> Objective:
    """The named model with its loss, or what the user's own function returns. Collective."""
    if isinstance(config.model, CodeName):
        builder = user_code(communicator, config.model, "model")
        loss = build_loss(config, data)

        def call() -> Any:
            with users_code(f"{config.model} failed"):
                return builder(data.example_shape, loss.output_size(data.target_shape, data.num_classes))

        return as_objective(communicator.everywhere(call), loss, data)
    loss = build_loss(config, data)
    if config.output_activation != "linear" and not isinstance(loss, SquaredError):
        raise ConfigurationError(
            f"output_activation {config.output_activation}: goes with --loss squared-error alone, the cross-entropies "
            "take linear outputs"
        )
    outputs = loss.output_size(data.target_shape, data.num_classes)
    options = ModelOptions(**{option.name: getattr(config, option.name) for option in fields(ModelOptions)})
    return as_objective(build_model(config.model, data.example_shape, outputs, options), loss, data)


def as_objective(model: Any, loss: Loss, data: Signature) -> Objective:
    """A layer with the loss, or an objective as it is. Raises ConfigurationError for anything else."""
    if isinstance(model, Objective):
        return model
    if not isinstance(model, Layer):
        raise ConfigurationError(
            f"a model must be a distsgd.Layer or a distsgd.FunctionObjective, got {type(model).__name__}; "
            "see docs/extending.md"
        )
    shape = accepted_shape(model, data.example_shape)
    outputs, needed = model.output_shape(shape), loss.output_size(data.target_shape, data.num_classes)
    if outputs != (needed,):
        raise ConfigurationError(f"the model puts out shape {outputs}, this loss needs ({needed},) for these targets")
    return Supervised(model, loss, shape)


def build_metrics(
    communicator: Communicator, config: TrainConfig, data: Signature, objective: Objective
) -> list[Metric]:
    """What is measured besides the loss. Collective, for it may load the user's functions."""
    if isinstance(objective, FunctionObjective) and objective.outputs is None:
        if config.metric:
            raise ConfigurationError(
                "metric: this model gives no outputs to measure; give distsgd.FunctionObjective outputs="
            )
        return []
    loss = objective.loss if isinstance(objective, Supervised) else build_loss(config, data)
    outputs = loss.output_size(data.target_shape, data.num_classes)
    standard = _standard_metrics(config, data, loss, outputs)
    asked = [_metric(communicator, name, outputs) for name in config.metric]
    return [*standard, *(metric for metric in asked if metric.name not in [known.name for known in standard])]


def _metric(communicator: Communicator, name: str, outputs: int) -> Metric:
    if name in METRICS:
        return METRICS[name](outputs)
    return UserMetric(name.rpartition(":")[2], user_code(communicator, name, "metric"))


def _standard_metrics(config: TrainConfig, data: Signature, loss: Loss, outputs: int) -> Sequence[Metric]:
    kind = next((name for name, loss_class in LOSSES.items() if isinstance(loss, loss_class)), None)
    if kind is None:
        return _metrics_of_own_loss(config, data, outputs)
    if kind == "softmax-cross-entropy":
        return default_metrics("classification", outputs, config.top_k)
    binary = outputs == 1 and (kind == "binary-cross-entropy" or data.num_classes == 2)
    if binary:
        return default_metrics("classification", 1, config.top_k, threshold=0.0 if kind.startswith("binary") else 0.5)
    if kind == "binary-cross-entropy":
        return []  # several yes-or-no targets at once: the loss says what there is to say
    return default_metrics("regression", outputs, config.top_k)


def _metrics_of_own_loss(config: TrainConfig, data: Signature, outputs: int) -> Sequence[Metric]:
    """For a loss of the user's own: what outputs stand for is known where there is one for each class or value."""
    if data.num_classes is not None and outputs == data.num_classes > 1:
        return default_metrics("classification", outputs, config.top_k)
    if data.num_classes is None and outputs == prod(data.target_shape):
        return default_metrics("regression", outputs, config.top_k)
    if config.top_k is not None:
        raise ConfigurationError("metrics: top-k needs one output for each class, which this loss doesn't take")
    return []


def confusion_matrix(data: Signature, metrics: Sequence[Metric]) -> ConfusionMatrix | None:
    """The confusion matrix for the summary, where there are classes, and not too many."""
    accuracy = next((metric for metric in metrics if metric.name == "accuracy"), None)
    if accuracy is None or data.num_classes is None or data.num_classes > _CONFUSION_CLASSES:
        return None
    return ConfusionMatrix(max(data.num_classes, 2), accuracy.threshold)  # type: ignore[attr-defined]


def check_targets(communicator: Communicator, objective: Objective, data: Data) -> None:
    """Raises DataError where float targets aren't the probabilities that a cross-entropy takes. Collective."""

    def check() -> None:
        loss = objective.loss if isinstance(objective, Supervised) else None
        if not isinstance(loss, SoftmaxCrossEntropy | BinaryCrossEntropy):
            return
        sets = {"training": data.train, "validation": data.validation, "test": data.test}
        for name, part in sets.items():
            if part is None or part.y.dtype.kind != "f":
                continue
            if np.any(part.y < 0) or np.any(part.y > 1):
                raise DataError(f"{data.name}: {name} targets must be probabilities from 0 to 1 for a cross-entropy")
            if isinstance(loss, SoftmaxCrossEntropy) and not np.allclose(part.y.sum(axis=-1), 1, atol=1e-3):
                raise DataError(f"{data.name}: the {name} targets of each example must add up to 1 for a softmax")

    communicator.on_root(check)
