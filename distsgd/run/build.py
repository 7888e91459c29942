"""From a configuration to what is trained and measured: loss, objective, metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from distsgd.core.errors import ConfigurationError, DataError, users_code
from distsgd.data.examples import Signature
from distsgd.nn.layers import Layer
from distsgd.nn.losses import LOSSES, BinaryCrossEntropy, Loss, SoftmaxCrossEntropy, SquaredError
from distsgd.nn.models import ModelOptions, accepted_shape, build_model
from distsgd.nn.objective import Objective, Supervised
from distsgd.nn.task import Task, true_classes
from distsgd.optim.optimizers import OPTIMIZERS
from distsgd.optim.schedules import has_horizon
from distsgd.parallel import Communicator
from distsgd.run.config import OPTIONS, OWN_LOSS, PATIENCE, TrainConfig, class_names, own_optimizer
from distsgd.run.placement import Data
from distsgd.run.user_code import CodeName, import_function
from distsgd.training.evaluator import CHUNK
from distsgd.training.metrics import (
    METRICS,
    R2,
    Accuracy,
    ConfusionMatrix,
    Error,
    LabelAccuracy,
    MeanAbsoluteError,
    MeanSquaredError,
    Metric,
    TopK,
    UserMetric,
    standard_metrics,
)

if TYPE_CHECKING:
    from distsgd.training.trainer import Trainer

OWN_MODEL = "own"
"""The name, in a configuration, of a model that was handed to fit as an object."""

_OF_VALIDATION = ["monitor", "min_delta", "ties", "early_stopping", "patience", "validate_every"]
_LOOKED_AT = 4096
"""Targets that are looked at before all are."""
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
    by_targets = "softmax-cross-entropy" if data.num_classes is not None else "squared-error"
    name = by_targets if config.loss == "auto" else config.loss
    if name == "softmax-cross-entropy":
        return SoftmaxCrossEntropy(label_smoothing=config.label_smoothing, class_weights=config.class_weights or None)
    if config.label_smoothing or config.class_weights:
        raise ConfigurationError(f"label_smoothing and class_weights need softmax-cross-entropy, the loss is {name}")
    return LOSSES[name]()


def build_objective(
    communicator: Communicator, config: TrainConfig, data: Signature, loss: Loss | None = None
) -> Objective:
    """The named model with its loss, or what the user's own function returns. Collective."""
    loss = loss or build_loss(config, data)
    outputs = loss.output_size(data.target_shape, data.num_classes)
    if isinstance(config.model, CodeName):
        builder = user_code(communicator, config.model, "model")

        def call() -> Any:
            with users_code(f"{config.model} failed"):
                return builder(data.example_shape, outputs)

        return as_objective(communicator.everywhere(call), loss, data)
    if config.output_activation != "linear" and not isinstance(loss, SquaredError):
        raise ConfigurationError(
            f"output_activation {config.output_activation}: goes with --loss squared-error alone, the cross-entropies "
            "take linear outputs"
        )
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


def build_task(config: TrainConfig, data: Signature, objective: Objective) -> Task:
    """What the outputs stand for: by the loss and the targets.

    A model of the user's own that isn't a layer predicts what it puts out, so that its single output is a score.
    Raises ConfigurationError where the targets have other classes than --classes.
    """
    if (declared := objective.task(data.target_shape, data.num_classes)) is not None:
        return replace(declared, names=class_names(config.classes, declared.num_classes))
    own = not isinstance(objective, Supervised)
    loss = objective.loss if isinstance(objective, Supervised) else build_loss(config, data)
    outputs = loss.output_size(data.target_shape, data.num_classes)
    if not isinstance(loss, SoftmaxCrossEntropy | BinaryCrossEntropy | SquaredError):
        task = _task_of_own_loss(data, outputs)
    elif isinstance(loss, SoftmaxCrossEntropy):
        task = Task("classification", data.num_classes or outputs, answer="score" if own else "logit")
    elif isinstance(loss, BinaryCrossEntropy) and outputs > 1:
        task = Task("multilabel", outputs, answer="score" if own else "logit")
    elif isinstance(loss, BinaryCrossEntropy):
        task = Task("classification", 2, answer="score" if own else "logit")
    elif data.num_classes == 2 and outputs == 1:
        task = Task("classification", 2, answer="probability")
    else:
        task = Task("regression")
    return replace(task, names=class_names(config.classes, task.num_classes))


def _task_of_own_loss(data: Signature, outputs: int) -> Task:
    """For a loss of the user's own: what outputs stand for is known where there is one for each class or value."""
    if data.num_classes is not None and outputs == data.num_classes > 1:
        return Task("classification", data.num_classes)
    if data.num_classes is None and outputs == prod(data.target_shape):
        return Task("regression")
    return Task("other")


def note_on_targets(communicator: Communicator, task: Task, data: Data) -> list[str]:
    """A line about values that look like classes: floats that are 0 or 1. Collective."""

    def look() -> list[str]:
        y = data.train.y
        if task.kind not in ("regression", "other") or y.dtype.kind != "f":
            return []
        for part in (y[:_LOOKED_AT], y):
            if not np.logical_or(part == 0, part == 1).all():
                return []
        what, taken = "0.0 and 1.0", "values" if task.kind == "regression" else "what the model's own loss takes"
        remedy = "y.astype(int)"
        if y.ndim > 1 and y.shape[1] > 1:
            one_hot = (y.sum(axis=1) == 1).all()
            what, remedy = ("one-hot rows", "y.argmax(axis=1)") if one_hot else (what, "--loss binary-cross-entropy")
        return [f"note: the targets are {what}, and taken as {taken}, not as classes; {remedy} makes classes of them"]

    return communicator.on_root(look)


def refuse_unused(config: TrainConfig, objective: Objective, data: Data) -> None:
    """Raises ConfigurationError for an option that is given, and would change nothing."""
    validates, splits = data.validation is not None, data.split is not None and config.validation_last is None
    own = config.model == OWN_MODEL or isinstance(config.model, CodeName)
    layers = [option.name for option in fields(ModelOptions)]
    rules = {
        "a model of your own has what it is built with; put it there": layers if own else [],
        "model softmax has no hidden layers": layers[:4] if config.model == "softmax" else [],
        "the model has a loss of its own; put it there": _of_another_loss(config, data.signature, objective),
        "nothing is penalized; give l1, l2 or weight_decay": [] if _penalties(config) else ["penalize"],
        f"schedule {config.schedule} has no horizon": [] if has_horizon(config.schedule) else ["schedule_epochs"],
        "it belongs to the patience rule: --early-stopping patience": ["patience_increase", "improvement_threshold"],
        "nothing is validated": [] if validates else _OF_VALIDATION,
        "no validation examples are split off at random": [] if splits else ["split_seed"],
        "replacement draws each minibatch alone": ["shuffle", "drop_last"] * (config.sampling == "replacement"),
        "validation_last says which examples validate": ["validation_fraction"] * (config.validation_last is not None),
        "this model gives no outputs to measure": [] if objective.has_outputs() else ["top_k"],
    }
    if config.early_stopping == "patience":
        rules["it belongs to the patience rule: --early-stopping patience"] = []
        rules["the patience rule has --improvement-threshold in its place"] = ["min_delta"]
    defaults: dict[str, tuple[Any, ...]] = {
        "patience": (0, *PATIENCE.values()),
        "validation_fraction": (0, OPTIONS["validation_fraction"].default),
        "early_stopping": ("epochs", "none"),
    }
    _refuse_given(config, rules, defaults)
    _refuse_penalties_of_nothing(config, objective)


def refuse_without_effect(config: TrainConfig, data: Data) -> None:
    """Raises ConfigurationError for an option that another option or the data leave nothing to change."""
    unmeasured = data.validation is None and data.test is None and config.train_metrics != "full"
    flat = config.model == "mlp" and not config.hidden
    beside = data.validation is not None and data.split is None
    rules = {
        "there are validation data beside it": ["validation_last"] if beside else [],
        "this mlp has no hidden layers": ["dropout", "batch_norm"] if flat else [],
        "there are no biases": [] if config.bias else ["bias_initializer"],
        "a full batch leaves no examples over": ["drop_last"] if config.batch_size == "full" else [],
        "nothing is measured, for there are no validation and no test examples": ["metric", "top_k"] * unmeasured,
    }
    _refuse_given(config, rules, {})


def _refuse_given(
    config: TrainConfig, rules: Mapping[str, Sequence[str]], usual: Mapping[str, tuple[Any, ...]]
) -> None:
    """Raises ConfigurationError for an option, by reason, that is given; `usual` are the defaults where several are."""
    for reason, names in rules.items():
        for name in names:
            if getattr(config, name) not in usual.get(name, (OPTIONS[name].default,)):
                raise ConfigurationError(f"{name}: would change nothing, for {reason}; leave it out")


def _of_another_loss(config: TrainConfig, data: Signature, objective: Objective) -> Sequence[str]:
    """Options of the loss that the objective doesn't have."""
    smoothing = ["label_smoothing", "class_weights"]
    if not isinstance(objective, Supervised) or config.loss == OWN_LOSS:
        return smoothing
    return [] if objective.loss == build_loss(config, data) else ["loss", *smoothing]


def _penalties(config: TrainConfig) -> Sequence[str]:
    """The options that penalize parameters."""
    return [name for name in ("l1", "l2", "weight_decay") if getattr(config, name)]


def _refuse_penalties_of_nothing(config: TrainConfig, objective: Objective) -> None:
    """Raises ConfigurationError where l1, l2 or a weight decay hold for none of the parameters."""
    usual = own_optimizer(replace(config, weight_decay=None)) if config.optimizer in OPTIMIZERS else None
    asked = [name for name in _penalties(config) if getattr(config, name) != getattr(usual, name, 0.0)]
    shapes = objective.parameter_shapes()
    if asked and config.penalize == ("weights",) and all(len(shape) < 2 for shape in shapes.values()):
        raise ConfigurationError(
            f"{asked[0]}: would change nothing, for it holds for matrices alone, and none of the parameters "
            f"{', '.join(shapes)} is one; name those that it is for with penalize, such as '*'"
        )


def build_metrics(
    communicator: Communicator,
    config: TrainConfig,
    data: Signature,
    objective: Objective,
    task: Task,
    own: Sequence[Metric] = (),
) -> list[Metric]:
    """What is measured besides the loss, with the `own` metrics of a program. Collective."""
    if not objective.has_outputs():
        if config.metric or own:
            raise ConfigurationError(
                "metric: this model gives no outputs to measure; give distsgd.FunctionObjective outputs="
            )
        return []
    loss = objective.loss if isinstance(objective, Supervised) else build_loss(config, data)
    outputs = loss.output_size(data.target_shape, data.num_classes)
    standard = standard_metrics(task, outputs, config.top_k, data.target_mean)
    asked = [_metric(communicator, name, data, task, outputs) for name in config.metric]
    own = [_of_task(metric, data, task, outputs) for metric in own]
    return [*standard, *(metric for metric in asked if metric.name not in [known.name for known in standard]), *own]


def _metric(communicator: Communicator, name: str, data: Signature, task: Task, outputs: int) -> Metric:
    if name in METRICS:
        metric = METRICS[name](task, outputs, data.target_mean)
        _refuse_of_other_tasks(metric, task, outputs)
        return metric
    return UserMetric(name.rpartition(":")[2], user_code(communicator, name, "metric"))


def _of_task(metric: Metric, data: Signature, task: Task, outputs: int) -> Metric:
    """The metric, with what its maker leaves to the task."""
    if getattr(metric, "threshold", None) is None:
        _refuse_of_other_tasks(metric, task, outputs)
    if isinstance(metric, Accuracy | Error | LabelAccuracy | ConfusionMatrix) and metric.threshold is None:
        return replace(metric, threshold=task.output_threshold)
    if isinstance(metric, R2) and not metric.center and task.kind == "regression":
        if metric.num_outputs != outputs:
            raise ConfigurationError(f"metric r2: expected R2({outputs}) for {outputs} values, got {metric}")
        return replace(metric, center=data.target_mean)
    return metric


def _refuse_of_other_tasks(metric: Metric, task: Task, outputs: int) -> None:
    """Raises ConfigurationError for a metric whose value would mean nothing of this task's outputs."""
    if isinstance(metric, Accuracy | Error | TopK | ConfusionMatrix):
        fits = task.kind == "classification" and (not isinstance(metric, TopK) or outputs >= max(metric.k, 2))
    elif isinstance(metric, LabelAccuracy):
        fits = task.kind == "multilabel" or (task.kind == "classification" and outputs == 1)
    elif isinstance(metric, MeanAbsoluteError | MeanSquaredError | R2):
        fits = task.kind == "regression" or task.answer == "probability"
    else:
        return
    if fits or task.kind == "other":
        return
    what, remedy = {
        "classification": ("classes", "values are floats (y.astype(float)) under --loss squared-error"),
        "multilabel": ("several answers", "label_accuracy is measured of them"),
        "regression": ("values", "classes are integers (y.astype(int)), or 0 and 1 under --loss binary-cross-entropy"),
    }[task.kind]
    if isinstance(metric, TopK) and task.kind == "classification":
        what, remedy = f"classes of which the model has {outputs} outputs", "leave it out"
    raise ConfigurationError(f"metric {metric.name}: would mean nothing, for the targets are {what}; {remedy}")


def confusion_matrix(task: Task, metrics: Sequence[Metric]) -> ConfusionMatrix | None:
    """The confusion matrix for the summary, where classes are measured, and there aren't too many."""
    if task.kind != "classification" or task.num_classes > _CONFUSION_CLASSES or not metrics:
        return None
    return ConfusionMatrix(max(task.num_classes, 2), task.output_threshold)


def refuse_one_class(
    communicator: Communicator, config: TrainConfig, objective: Objective, task: Task, data: Data
) -> None:
    """Raises DataError where all training examples are of one class, which a model need only repeat. Collective."""

    def check() -> None:
        if config.classes or task.kind != "classification" or not objective.has_outputs():
            return
        train, total = data.train, len(data.train)
        for count in (min(total, _LOOKED_AT), total):
            y = train.y[train.row_indices(np.arange(count))].reshape(count, -1)
            first = y[0]
            if (y != first).any() or (y.dtype.kind == "f" and not np.isin(first, (0, 1)).all()):
                return
        label = true_classes(first[:, None])[0] if y.dtype.kind == "f" else first[0]
        where = "" if (train.y == train.y[0]).all() else ", once the validation examples are split off"
        raise DataError(
            f"the training targets are labels of a single class, {label}{where}: there is nothing to learn from them; "
            "give examples of every class, or say with --classes how many there are"
        )

    communicator.on_root(check)


def check_outputs(communicator: Communicator, trainer: Trainer, task: Task) -> None:
    """Raises ConfigurationError where a model of the user's own has other outputs than the task. Collective.

    It is asked for those of the first examples that will be scored, as often as they are scored.
    """
    step, objective = trainer.step, trainer.step.objective
    predicts = objective.has_outputs() and type(objective).predict is not Objective.predict
    if isinstance(objective, Supervised) or not predicts or task.kind == "other":
        return
    loaders = [evaluator.loader for evaluator in trainer.evaluators.values()]
    loader = loaders[0] if loaders else replace(step.loader, augmentation=None)

    def check() -> None:
        rows = np.arange(min(CHUNK, len(loader.examples)))
        state = step.statistics.for_model()
        with users_code("the model's outputs failed"), np.errstate(all="ignore"):
            outputs = objective.predict(step.params.read_only(), loader.batch(rows, state.read_only()))
        shape: tuple[int, ...] = getattr(outputs, "shape", ())
        if len(shape) != 2 or shape[1] != len(rows):
            expected = f"(outputs, {len(rows)}) of as many examples; put examples last"
            raise ConfigurationError(f"the model's outputs have shape {shape}, expected {expected}")
        task.check_outputs(len(outputs))

    communicator.everywhere(check)


def check_targets(communicator: Communicator, config: TrainConfig, objective: Objective, data: Data) -> None:
    """Raises DataError where targets aren't the labels or probabilities that a cross-entropy takes. Collective."""

    def check() -> None:
        loss = objective.loss if isinstance(objective, Supervised) else build_loss(config, data.signature)
        if not isinstance(loss, SoftmaxCrossEntropy | BinaryCrossEntropy):
            return
        loss.output_size(data.signature.target_shape, data.signature.num_classes)
        sets = {"training": data.train, "validation": data.validation, "test": data.test}
        for name, part in sets.items():
            if part is None or part.y.dtype.kind != "f":
                continue
            if np.any(part.y < 0) or np.any(part.y > 1):
                raise DataError(
                    f"{data.name}: {name} targets must be probabilities from 0 to 1 for a cross-entropy; (y + 1) / 2 "
                    "makes them of -1 and +1, and other values take --loss squared-error"
                )
            if isinstance(loss, SoftmaxCrossEntropy) and not np.allclose(part.y.sum(axis=-1), 1, atol=1e-3):
                raise DataError(
                    f"{data.name}: the {name} targets of each example must add up to 1 for a softmax; several answers "
                    "take --loss binary-cross-entropy"
                )

    communicator.on_root(check)
