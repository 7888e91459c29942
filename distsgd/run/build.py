"""From a configuration to what is trained: loss, objective, task; and what doesn't go together is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from distsgd.core.components import field_names
from distsgd.core.device import Shape
from distsgd.core.errors import ConfigurationError, DataError, users_code
from distsgd.data.examples import Signature
from distsgd.data.targets import blocks
from distsgd.nn.layers import Layer
from distsgd.nn.losses import LOSSES
from distsgd.nn.losses.base import Loss
from distsgd.nn.models import ModelOptions, accepted_shape, build_model
from distsgd.nn.objective import Objective, Supervised
from distsgd.nn.task import Task, true_classes
from distsgd.optim.registry import OPTIMIZERS
from distsgd.optim.schedules import has_horizon
from distsgd.parallel import Communicator
from distsgd.run.config import OPTIONS, OWN_LOSS, PATIENCE, TrainConfig, own_optimizer
from distsgd.run.config_checks import class_names
from distsgd.run.data.loading import Data
from distsgd.run.user_code import CodeName, import_function
from distsgd.training.evaluator import CHUNK
from distsgd.training.metrics.base import Metric

if TYPE_CHECKING:
    from distsgd.training.trainer import Trainer

OWN_MODEL = "own"
"""The name, in a configuration, of a model that was handed to fit as an object."""

OF_LOSSES = {
    "label_smoothing": "label_smoothing", "class_weights": "class_weights", "pos_weight": "pos_weight",
    "huber_delta": "delta", "quantiles": "quantiles", "focal_gamma": "gamma", "focal_alpha": "alpha",
}  # fmt: skip
"""Options of the losses that have names, and the fields that they set."""
_OF_VALIDATION = ["monitor", "min_delta", "ties", "early_stopping", "patience", "validate_every"]
_LOOKED_AT = 4096
"""Targets that are looked at before all are."""


def user_code(communicator: Communicator, name: str, option: str) -> Any:
    """The object that a CodeName names, on every rank; its own errors come with their traceback, once. Collective."""

    def load() -> Any:
        with users_code(f"{option}: importing {name} failed"):
            return import_function(name, option)

    return communicator.everywhere(load)


def as_loss(given: Any) -> Any:
    """A function as a loss; anything else as it is."""
    if not callable(given) or isinstance(given, Loss | type):
        return given
    from distsgd.nn.losses.function import loss_from

    return loss_from(given)


def build_loss(config: TrainConfig, data: Signature) -> Loss:
    """The loss of the configuration: by the targets where it is auto."""
    name = config.loss
    if name == "auto":
        name = "softmax-cross-entropy" if data.num_classes is not None else "squared-error"
    if name == OWN_LOSS:
        raise ConfigurationError(
            "loss own: the loss is an object of a program; the model's function can return it in a "
            "distsgd.nn.Supervised(model, loss, input_shape)"
        )
    kind = LOSSES[name]
    values = {}
    for option, field in OF_LOSSES.items():
        value = getattr(config, option)
        if value == OPTIONS[option].default:
            continue
        if field not in field_names(kind):
            having = " or ".join(one for one, other in LOSSES.items() if field in field_names(other))
            raise ConfigurationError(f"{option} needs {having}, the loss is {name}")
        values[field] = value
    loss: Loss = kind(**values)
    return loss


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
    if config.output_activation != "linear" and type(loss) is not LOSSES["squared-error"]:
        raise ConfigurationError(
            f"output_activation {config.output_activation}: goes with --loss squared-error alone, the cross-entropies "
            "and other losses take linear outputs"
        )
    options = ModelOptions(**{option.name: getattr(config, option.name) for option in fields(ModelOptions)})
    return as_objective(build_model(config.model, data.example_shape, outputs, options), loss, data)


def as_objective(model: Any, loss: Loss, data: Signature) -> Objective:
    """A layer with the loss, or an objective as it is. Raises ConfigurationError for anything else."""
    if isinstance(model, Objective):
        return model
    if not isinstance(model, Layer):
        got = f"the class {model.__name__}; make an object of it" if isinstance(model, type) else type(model).__name__
        raise ConfigurationError(
            f"a model must be a distsgd.Layer or a distsgd.FunctionObjective, got {got}; see docs/extending.md"
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
        return replace(declared, names=_names(config, data, declared.num_classes))
    loss = objective.loss if isinstance(objective, Supervised) else build_loss(config, data)
    task = loss.task(data.target_shape, data.num_classes)
    if not isinstance(objective, Supervised) and task.kind in ("classification", "multilabel"):
        task = replace(task, answer="score" if task.answer == "logit" else task.answer)
    return replace(task, names=_names(config, data, task.num_classes))


def _names(config: TrainConfig, data: Signature, classes: int) -> tuple[str, ...]:
    """The names of so many classes: as --classes says them, else as the data do."""
    return class_names(config.classes, classes) or (data.class_names if len(data.class_names) == classes else ())


def note_on_targets(communicator: Communicator, task: Task, data: Data) -> list[str]:
    """A line about values that look like classes: floats that are 0 or 1. Collective."""

    def look() -> list[str]:
        y, found = data.train.y, data.targets
        if found is None or task.kind not in ("regression", "other") or y.dtype.kind != "f" or not found.binary:
            return []
        what, taken = "0.0 and 1.0", "values" if task.kind == "regression" else "what the model's own loss takes"
        remedy = "y.astype(int)"
        if y.ndim > 1 and y.shape[1] > 1:
            what, remedy = (
                ("one-hot rows", "y.argmax(axis=1)") if found.one_hot else (what, "--loss binary-cross-entropy")
            )
        return [f"note: the targets are {what}, and taken as {taken}, not as classes; {remedy} makes classes of them"]

    return communicator.on_root(look)


def note_on_shape(shape: Shape | None) -> str | None:
    """A line about images that look as if their channels came last."""
    if shape is None or len(shape) != 3 or shape[0] <= 4 or shape[2] not in (1, 3, 4):
        return None
    channels, height, width = shape
    return (
        f"note: examples of shape {shape} are images of {channels} channels, {height} by {width}; "
        "if their channels come last, put them first"
    )


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


def refuse_without_effect(config: TrainConfig, data: Data, own_metrics: Sequence[Metric] = ()) -> None:
    """Raises ConfigurationError for an option that another option or the data leave nothing to change, and for metrics
    of a program's own that nothing is measured by."""
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
    if unmeasured and own_metrics:
        raise ConfigurationError(
            "metrics: would change nothing, for there are no validation and no test examples to measure; leave it out, "
            "or give validation="
        )


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
    if not isinstance(objective, Supervised) or config.loss == OWN_LOSS:
        return [*OF_LOSSES]
    return [] if objective.loss == build_loss(config, data) else ["loss", *OF_LOSSES]


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


def refuse_one_class(
    communicator: Communicator, config: TrainConfig, objective: Objective, task: Task, data: Data
) -> None:
    """Raises DataError where all training examples are of one class, which a model need only repeat. Collective."""

    def check() -> None:
        if config.classes or task.kind != "classification" or not objective.has_outputs():
            return
        train, total = data.train, len(data.train)
        labels = None if data.targets is None else data.targets.labels
        if labels is not None and np.count_nonzero(labels) > 1:
            return
        for count in (min(total, _LOOKED_AT), total):
            y = train.y[train.row_indices(np.arange(count))].reshape(count, -1)
            first = y[0]
            if (y != first).any() or (y.dtype.kind == "f" and not np.isin(first, (0, 1)).all()):
                return
        label = true_classes(first[:, None])[0] if y.dtype.kind == "f" else first[0]
        alike = all((block == train.y[0]).all() for _, block in blocks(train.y))
        where = "" if alike else ", once the validation examples are split off"
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
    """Raises DataError where targets aren't what the loss takes. Collective."""

    def check() -> None:
        loss = objective.loss if isinstance(objective, Supervised) else build_loss(config, data.signature)
        loss.output_size(data.signature.target_shape, data.signature.num_classes)
        if config.standardize_targets and not loss.standardizable:
            raise ConfigurationError(
                f"standardize_targets: would give the targets the mean 0, and --loss {config.loss} takes none below 0; "
                "leave it out"
            )
        sets = {"training": data.train, "validation": data.validation, "test": data.test}
        for name, part in sets.items():
            found = (loss.wrong_targets(block) for _, block in (() if part is None else blocks(part.y)))
            if (wrong := next(filter(None, found), None)) is not None:
                raise DataError(f"{data.name}: the {name} targets {wrong}")

    communicator.on_root(check)
