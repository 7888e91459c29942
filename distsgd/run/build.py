"""From a configuration to the objects that train: model, objective, metrics, trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from distsgd.core.device import CPU, Device, Shape, may_be_gpu
from distsgd.core.errors import ConfigurationError, DataError, users_code
from distsgd.core.layout import Layout
from distsgd.core.runtime import affinity, check_memory, cores_per_rank
from distsgd.data.augmentation import parse_augmentation
from distsgd.data.examples import Examples, Signature
from distsgd.data.loader import Loader
from distsgd.data.sampling import Sampler
from distsgd.nn.layers import Layer
from distsgd.nn.losses import LOSSES, BinaryCrossEntropy, Loss, SoftmaxCrossEntropy, SquaredError
from distsgd.nn.models import ModelOptions, accepted_shape, build_model
from distsgd.nn.objective import FunctionObjective, Objective, Supervised
from distsgd.optim.optimizers import OPTIMIZERS, Optimizer
from distsgd.optim.regularization import Regularization
from distsgd.optim.schedules import Schedule, build_schedule
from distsgd.parallel import Communicator
from distsgd.parallel.reduction import Partition, Plan
from distsgd.parallel.thread_pool import Workers, worker_count
from distsgd.parallel.tree import scratch_levels
from distsgd.run.choose_reduction import make_reduction
from distsgd.run.config import TrainConfig
from distsgd.run.placement import Data, on_device
from distsgd.run.user_code import CodeName, import_function
from distsgd.training.callbacks import Callback
from distsgd.training.checkpoint_store import CheckpointStore
from distsgd.training.early_stopping import EpochsRule, PatienceRule, StoppingRule, monitor_mode
from distsgd.training.evaluator import Evaluator
from distsgd.training.intervals import Intervals, Limits, parse_interval, parse_target
from distsgd.training.metrics import METRICS, ConfusionMatrix, Metric, UserMetric, default_metrics
from distsgd.training.non_finite import NonFinitePolicy
from distsgd.training.selection import Selection
from distsgd.training.step import TrainingStep
from distsgd.training.steps import Steps
from distsgd.training.trainer import Trainer

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
    kind = next(name for name, loss_class in LOSSES.items() if isinstance(loss, loss_class))
    if kind == "softmax-cross-entropy":
        return default_metrics("classification", outputs, config.top_k)
    binary = outputs == 1 and (kind == "binary-cross-entropy" or data.num_classes == 2)
    if binary:
        return default_metrics("classification", 1, config.top_k, threshold=0.0 if kind.startswith("binary") else 0.5)
    if kind == "binary-cross-entropy":
        return []  # several yes-or-no targets at once: the loss says what there is to say
    return default_metrics("regression", outputs, config.top_k)


def confusion_matrix(data: Signature, metrics: Sequence[Metric]) -> ConfusionMatrix | None:
    """The confusion matrix for the summary, where there are classes, and not too many."""
    accuracy = next((metric for metric in metrics if metric.name == "accuracy"), None)
    if accuracy is None or data.num_classes is None or data.num_classes > _CONFUSION_CLASSES:
        return None
    return ConfusionMatrix(max(data.num_classes, 2), accuracy.threshold)  # type: ignore[attr-defined]


def build_own_schedule(config: TrainConfig) -> Schedule:
    """The schedule of the configuration."""
    return build_schedule(
        config.schedule,
        warmup_steps=config.warmup_steps,
        decay_rate=config.decay_rate,
        decay_epochs=config.decay_epochs,
        factor=config.decay_factor,
        staircase=config.staircase,
        epochs=config.schedule_epochs or max(config.epochs, 1),
    )


def monitored(config: TrainConfig, metrics: Sequence[Metric]) -> str:
    """What the best parameters go by. Raises ConfigurationError where nothing of that name is measured.

    By default that is the error where there are classes: cross-entropy begins to rise, as the model grows too sure of
    itself, while it still learns to separate more examples.
    """
    names = [f"validation_{name}" for name in ("loss", *(metric.name for metric in metrics))]
    for option, name in (("monitor", config.monitor), ("target", config.target and parse_target(config.target)[0])):
        if name is not None and name not in names:
            raise ConfigurationError(f"{option}: expected one of {', '.join(names)}, got {name!r}")
    return config.monitor or ("validation_error" if "validation_error" in names else "validation_loss")


def build_rule(config: TrainConfig, metrics: Sequence[Metric], monitor: str) -> StoppingRule:
    """The early-stopping rule, which also says by `monitor` which parameters are best."""
    name = monitor.partition("_")[2]
    mode = next((metric.mode for metric in metrics if metric.name == name), None) or monitor_mode(monitor)
    if config.early_stopping == "epochs":
        return EpochsRule(config.patience or 0, config.min_delta, mode)
    if mode == "max":
        raise ConfigurationError(
            f"early_stopping patience watches what gets smaller, such as validation_error; monitor is {monitor}"
        )
    return PatienceRule(config.patience or 0, config.patience_increase, config.improvement_threshold)


def check_ranks(communicator: Communicator, config: TrainConfig) -> None:
    """Raises ConfigurationError where there are more ranks than microbatches for them."""
    microbatches = config.microbatches
    if communicator.size > microbatches:
        raise ConfigurationError(
            f"{communicator.size} ranks share {microbatches} microbatches: start at most {microbatches} ranks, or set "
            f"--microbatches {communicator.size} (which gives other bits than {microbatches})"
        )


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


def device_for(communicator: Communicator, config: TrainConfig) -> tuple[Device, list[str]]:
    """(this rank's device, lines to print, the same on every rank). Collective.

    Nothing of gpu/ is imported where no rank can have a GPU.
    """
    if not any(communicator.allgather_object(may_be_gpu(config.device))):
        return CPU.multiplying_in(config.precision), []
    from distsgd.gpu.devices import device_of_rank

    return device_of_rank(communicator, config.device, config.precision)


def build_trainer(
    communicator: Communicator,
    config: TrainConfig,
    data: Data,
    device: Device,
    objective: Objective,
    optimizer: Optimizer,
    schedule: Schedule,
    metrics: Sequence[Metric],
    callbacks: Sequence[Callback] = (),
    store: CheckpointStore | None = None,
) -> Trainer:
    """The trainer, with freshly initialized parameters on every rank. Collective."""
    batch_size = len(data.train) if config.batch_size == "full" else config.batch_size
    sampler = Sampler(
        len(data.train), batch_size, config.seed, config.shuffle, config.drop_last, config.sampling == "replacement"
    )
    objective = objective.scaled(config.loss_scale or 1)
    data = on_device(communicator, data, device, augmented=bool(config.augment))
    step, note = _build_step(
        communicator, config, device, data.train, objective, optimizer, min(batch_size, len(data.train))
    )
    loader, workers = step.loader, step.workers
    threads = workers.note(objective, optimizer, *metrics)
    notes = [line for line in (note, threads, _doubt(objective.input_shape)) if line]

    def evaluator(examples: Examples) -> Evaluator:
        feed = replace(loader, examples=examples, augmentation=None)
        return Evaluator(communicator, feed, metrics, workers, config.validation_on == "rank0")

    evaluators = {
        name: evaluator(examples)
        for name, examples in (
            ("train_full", data.train if config.train_metrics == "full" else None),
            ("validation", data.validation),
            ("test", data.test),
        )
        if examples is not None
    }
    selection = _selection(config, metrics, data.validation is not None)
    return Trainer(
        communicator=communicator,
        step=step,
        steps=_steps(step, min(batch_size, len(data.train)), config.cuda_graphs),
        sampler=sampler,
        schedule=schedule,
        limits=_limits(communicator, config),
        intervals=_intervals(config, sampler, selection.rule),
        selection=selection,
        evaluators=evaluators,
        non_finite=NonFinitePolicy(config.on_non_finite),
        check_replicas=config.check_replicas,
        callbacks=callbacks,
        store=store,
        notes=notes,
    )


def _doubt(shape: Shape | None) -> str | None:
    """A line about images that look as if their channels came last."""
    if shape is None or len(shape) != 3 or shape[0] <= 4 or shape[2] not in (1, 3, 4):
        return None
    channels, height, width = shape
    return (
        f"note: examples of shape {shape} are images of {channels} channels, {height} by {width}; "
        "if their channels come last, put them first"
    )


def _build_step(
    communicator: Communicator,
    config: TrainConfig,
    device: Device,
    train: Examples,
    objective: Objective,
    optimizer: Optimizer,
    batch_length: int,
) -> tuple[TrainingStep, str | None]:
    """(the step with freshly initialized parameters on every rank, a line to print about its reduction). Collective."""
    dtype = np.dtype(config.dtype)
    layout = Layout.of(objective.parameter_shapes())
    if layout.size == 0:
        raise ConfigurationError("the model has no parameters to train")
    threads = _threads(communicator, config, objective.multiply_adds(), batch_length)
    workers = Workers(threads if device.host_memory else 1)
    partition = Partition(config.microbatches, communicator.size, layout.size)
    least = layout.size * dtype.itemsize * (2 + len(optimizer.slots))
    communicator.everywhere(lambda: check_memory(least, f"a model of {layout.size:,} parameters"))
    there = least + layout.size * dtype.itemsize * (3 + scratch_levels(config.microbatches))
    what = f"a model of {layout.size:,} parameters, with gradients and the optimizer's state,"
    communicator.everywhere(lambda: device.check_free_memory(there, what))
    record = 2 + Layout.of(objective.statistics_shapes()).size
    plan = Plan(partition, workers.that_may_call(objective).count, dtype, len(optimizer.slots), record, device)
    reduction, note = make_reduction(communicator, plan, config.communication)
    running_layout = Layout.of(objective.state_shapes())
    running = running_layout.views(np.zeros(running_layout.size, dtype))
    loader = Loader(train, objective, dtype, config.seed, True, parse_augmentation(config.augment), device)
    loader.check()
    regularization = Regularization(config.l1, config.l2, config.penalize, config.freeze)
    step = TrainingStep(
        objective, optimizer, regularization, reduction, workers, loader, layout, running, config.clip_norm,
        guarded=config.on_non_finite != "stop",
    )  # fmt: skip
    params = step.params_buffer()
    communicator.on_root(lambda: objective.initialize(params, running, config.seed))
    step.load(params)
    communicator.transport.broadcast(running.flat)
    return step, note


def _threads(communicator: Communicator, config: TrainConfig, multiply_adds: int, batch_length: int) -> int:
    node = communicator.node()
    masks = node.allgather_object(affinity())
    cores = cores_per_rank(masks, node.rank)
    microbatches = Partition(config.microbatches, communicator.size, 1).microbatches_of(communicator.rank)
    mine = microbatches[1] - microbatches[0]
    if config.threads is not None:
        return max(1, min(config.threads, mine))
    longest = -(-batch_length // config.microbatches)
    return worker_count(cores, mine, multiply_adds, longest)


def _steps(step: TrainingStep, batch_length: int, record: bool) -> Steps:
    """Recorded steps where GPUs make all of a step and the host has nothing to do or to read in between; else direct
    ones."""
    on_gpus = record and not step.device.host_memory and step.reduction.is_asynchronous
    if not on_gpus or step.guarded or step.clip_norm is not None or not step.objective.repeats_itself():
        return step
    if type(step.optimizer) not in OPTIMIZERS.values():
        return step  # a user's own may read its scalars, and ignores NaN, which stops updates
    from distsgd.gpu.graph_steps import RecordedSteps

    return RecordedSteps(step, batch_length)


def _selection(config: TrainConfig, metrics: Sequence[Metric], validates: bool) -> Selection:
    """What validations are judged by, where there are any."""
    target = None if config.target is None else parse_target(config.target)
    if not validates:
        if target is not None:
            raise ConfigurationError("target: there is nothing to measure it on; give validation data")
        return Selection()
    monitor = monitored(config, metrics)
    return Selection(build_rule(config, metrics, monitor), monitor, target, config.test_at_best)


def _limits(communicator: Communicator, config: TrainConfig) -> Limits:
    seconds, why = communicator.on_root(lambda: _time_limit(config.max_time))
    return Limits(config.epochs, config.max_steps, seconds, why)


def _time_limit(max_time: str | None) -> tuple[float | None, str]:
    if max_time is None:
        return None, ""
    from distsgd.run.batch_job import time_limit

    return time_limit(max_time)


def _intervals(config: TrainConfig, sampler: Sampler, rule: StoppingRule | None) -> Intervals:
    every = parse_interval(config.validate_every, "validate_every", seconds=False)
    steps = int(every.amount) * (sampler.steps_per_epoch if every.unit == "epochs" else 1)
    if isinstance(rule, PatienceRule):
        steps = rule.validation_frequency(sampler.steps_per_epoch)
    return Intervals(steps, parse_interval(config.checkpoint_every, "checkpoint_every"), config.log_every)
