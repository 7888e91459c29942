"""From a configuration to what trains on this rank: device, reduction, step, trainer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import numpy as np

from distsgd.core.components import check_name
from distsgd.core.device import Device
from distsgd.core.errors import ConfigurationError
from distsgd.core.kernels.blas import gemm
from distsgd.core.layout import Layout
from distsgd.core.runtime import affinity, check_memory, cores_per_rank
from distsgd.data.augmentation import parse_augmentation
from distsgd.data.checks import stays_in_files
from distsgd.data.examples import Examples
from distsgd.data.loader import Loader
from distsgd.data.sampling import ORDER_BY_SORT, Sampler
from distsgd.nn.objective import Objective, Supervised
from distsgd.optim.layerwise import LayerwiseOptimizer
from distsgd.optim.optimizers import Optimizer
from distsgd.optim.registry import OPTIMIZERS
from distsgd.optim.regularization import Regularization
from distsgd.optim.schedules import Schedule, build_schedule
from distsgd.parallel import Communicator
from distsgd.parallel.reduction import GradientReduction, LocalReduction, Partition, Plan
from distsgd.parallel.serial import SerialCommunicator
from distsgd.parallel.thread_pool import Workers, worker_count
from distsgd.parallel.transport import Transport
from distsgd.parallel.tree import scratch_levels
from distsgd.run.build import note_on_shape
from distsgd.run.config import OPTIONS, TrainConfig
from distsgd.run.config_checks import parse_shares
from distsgd.run.data.loading import Data
from distsgd.run.devices import check_computes
from distsgd.training.callbacks import Callback
from distsgd.training.checkpoint_store import CheckpointStore
from distsgd.training.early_stopping import EpochsRule, PatienceRule, StoppingRule, monitor_mode
from distsgd.training.evaluator import Evaluator
from distsgd.training.intervals import Intervals, Limits, parse_interval, parse_target
from distsgd.training.metrics.base import Metric
from distsgd.training.non_finite import NonFinitePolicy
from distsgd.training.running_statistics import check_filled, least_examples
from distsgd.training.selection import Selection
from distsgd.training.stacks import are_stacked
from distsgd.training.step import TrainingStep
from distsgd.training.steps import Steps
from distsgd.training.trainer import Trainer


def check_ranks(communicator: Communicator, config: TrainConfig) -> None:
    """Raises ConfigurationError where there are more ranks than microbatches for them."""
    microbatches = config.microbatches
    if communicator.size > microbatches:
        raise ConfigurationError(
            f"{communicator.size} ranks share {microbatches} microbatches: start at most {microbatches} ranks, or set "
            f"--microbatches {communicator.size} (which gives other bits than {microbatches})"
        )
    if config.shares != "equal":
        from distsgd.run.shares import check_shares

        check_shares(communicator, config)


def _few(objective: Objective, longest: int) -> str | None:
    """A line where a minibatch has too few examples for batch statistics. Raises ConfigurationError where it has one,
    whose normalized values are all 0, whatever the example."""
    least = least_examples(objective)
    if longest >= least:
        return None
    if longest == 1 and isinstance(objective, Supervised):
        raise ConfigurationError(
            f"batch_size 1: this model normalizes over the minibatch, and a single example has no spread; set "
            f"batch_size {least} or more"
        )
    return (
        f"warning: this model normalizes over minibatches of {longest} examples, which are too few for a mean and a "
        f"spread; set batch_size {least} or more"
    )


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
    order = None
    if (
        config.shuffle_buffer is not None
        or config.sampling in ("weighted", "balanced")
        or len(data.train) >= ORDER_BY_SORT
    ):
        from distsgd.run.data.ordering import order_of

        order = order_of(config, data.train, batch_size, data.drawn_by, data.signature.num_classes)
    objective = objective.scaled(config.loss_scale or 1)
    check_computes(device, objective)
    if data.stream is not None:
        train, order = data.stream.windowed(communicator, config, data.train, order, objective)
        data = replace(data, train=train)
    elif device.free_bytes() is not None:
        from distsgd.run.on_device import on_device

        data = on_device(communicator, data, device, augmented=bool(config.augment))
    replacement = config.sampling == "replacement"
    sampler = Sampler(len(data.train), batch_size, config.seed, config.shuffle, config.drop_last, replacement, order)
    longest = min(batch_size, len(data.train))
    check_filled(communicator.size, config.microbatches, objective, longest)
    step, note = build_step(communicator, config, device, data.train, objective, optimizer, longest)
    loader, workers = step.loader, step.workers
    threads = workers.note(objective, optimizer, *metrics)
    notes = [line for line in (note, threads, note_on_shape(objective.input_shape), _few(objective, longest)) if line]

    def evaluator(examples: Examples) -> Evaluator:
        feed = replace(loader, examples=examples, augmentation=None)
        return Evaluator(communicator, feed, metrics, workers, config.validation_on == "rank0")

    sets = {"validation": data.validation, "test": data.test}
    if config.train_metrics == "full":
        sets["train_full"] = data.train
    evaluators = {name: evaluator(examples) for name, examples in sets.items() if examples is not None}
    selection = _selection(config, metrics, objective, data.validation is not None)
    trainer = Trainer(
        communicator=communicator,
        step=step,
        steps=_steps(step, longest, config.cuda_graphs),
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
    if config.shares == "equal":
        return trainer
    from distsgd.run.shares import balanced

    return balanced(trainer, config, longest)


def measured(trainer: Trainer, config: TrainConfig) -> AbstractContextManager[None]:
    """Measures what --profile and --trace ask for while the block trains. Collective."""
    if not config.profile and config.trace is None:
        return nullcontext()
    from distsgd.run.files.trace import writer_of
    from distsgd.training.profile import profiled

    return profiled(trainer, config.profile, writer_of(config.trace))


def build_step(
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
    shares = parse_shares(config.shares, "shares")
    of_layers = isinstance(optimizer, LayerwiseOptimizer)
    edges = tuple(span.start for span in layout.spans.values()) if of_layers else ()
    partition = _partition_for(device)(
        config.microbatches, communicator.size, layout.size, shares, config.wire_groups or 0, edges
    )
    least = layout.size * dtype.itemsize * (2 + len(optimizer.slots) + (partition.wire_groups > 0))
    communicator.everywhere(lambda: check_memory(least, f"a model of {layout.size:,} parameters"))
    there = least + layout.size * dtype.itemsize * (3 + scratch_levels(config.microbatches))
    what = f"a model of {layout.size:,} parameters, with gradients and the optimizer's state,"
    communicator.everywhere(lambda: device.check_free_memory(there, what))
    record = 2 + Layout.of(objective.statistics_shapes()).size
    readers = config.readers if stays_in_files(train.x) else 0
    count, guarded = workers.that_may_call(objective).count, config.on_non_finite != "stop"
    plan = Plan(
        partition, count, dtype, len(optimizer.slots), record, device, readers, config.shares == "equal",
        adds_products=are_stacked(objective, device, guarded) and gemm(dtype.char) is not None,
    )  # fmt: skip
    reduction, note = make_reduction(communicator, plan, config.communication)
    running_layout = Layout.of(objective.state_shapes())
    running = running_layout.views(np.zeros(running_layout.size, dtype))
    augmentation = parse_augmentation(config.augment)
    if augmentation is not None and config.shuffle_buffer is not None:
        augmentation = replace(augmentation, keyed=True)
    loader = Loader(train, objective, dtype, config.seed, True, augmentation, device)
    loader.check()
    regularization = Regularization(config.l1, config.l2, config.penalize, config.freeze)
    step = TrainingStep(
        objective, optimizer, regularization, reduction, workers, loader, layout, running, config.clip_norm,
        guarded=guarded,
    )  # fmt: skip
    params = step.params_buffer()
    communicator.on_root(lambda: objective.initialize(params, running, config.seed))
    step.load(params)
    communicator.transport.broadcast(running.flat)
    return step, note


def _partition_for(device: Device) -> type[Partition]:
    if device.host_memory:
        return Partition
    from distsgd.parallel.sections import BlockPartition

    return BlockPartition


def _threads(communicator: Communicator, config: TrainConfig, multiply_adds: int, batch_length: int) -> int:
    node = communicator.node()
    masks = node.allgather_object(affinity())
    cores = cores_per_rank(masks, node.rank)
    shares = parse_shares(config.shares, "shares")
    microbatches = Partition(config.microbatches, communicator.size, 1, shares).microbatches_of(communicator.rank)
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
    if isinstance(step.optimizer, LayerwiseOptimizer) or type(step.optimizer) not in OPTIMIZERS.values():
        return step  # the host reads norms; and a user's own may read its scalars, and ignores NaN, which stops updates
    from distsgd.gpu.graph_steps import RecordedSteps

    return RecordedSteps(step, batch_length)


def _selection(config: TrainConfig, metrics: Sequence[Metric], objective: Objective, validates: bool) -> Selection:
    """What validations are judged by, where there are any."""
    target = None if config.target is None else parse_target(config.target)
    if not validates:
        if target is not None:
            raise ConfigurationError("target: there is nothing to measure it on; give validation data")
        return Selection()
    monitor = monitored(config, metrics, _weights_classes(objective))
    if config.ties != OPTIONS["ties"].default and monitor == "validation_loss":
        raise ConfigurationError(f"ties: would change nothing, for the best parameters go by {monitor}; leave it out")
    return Selection(build_rule(config, metrics, monitor), monitor, config.ties, target, config.test_at_best)


def _limits(communicator: Communicator, config: TrainConfig) -> Limits:
    if config.max_time is None:
        return Limits(config.epochs, config.max_steps)
    from distsgd.run.batch_job import time_limit

    return Limits(config.epochs, config.max_steps, *communicator.on_root(lambda: time_limit(config.max_time)))


def _intervals(config: TrainConfig, sampler: Sampler, rule: StoppingRule | None) -> Intervals:
    every = parse_interval(config.validate_every, "validate_every", seconds=False)
    steps = int(every.amount) * (sampler.steps_per_epoch if every.unit == "epochs" else 1)
    if isinstance(rule, PatienceRule):
        steps = rule.validation_frequency(sampler.steps_per_epoch)
    return Intervals(steps, parse_interval(config.checkpoint_every, "checkpoint_every"), config.log_every)


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


def _weights_classes(objective: Objective) -> bool:
    return isinstance(objective, Supervised) and getattr(objective.loss, "class_weights", None) is not None


def monitored(config: TrainConfig, metrics: Sequence[Metric], weighted: bool = False) -> str:
    """What the best parameters go by. Raises ConfigurationError where nothing of that name is measured.

    By default that is the error where there are classes: cross-entropy begins to rise, as the model grows too sure of
    itself, while it still learns to separate more examples. Where classes are `weighted` it is the loss: the error
    counts all examples alike, and would undo what the weights are for.
    """
    names = [f"validation_{name}" for name in ("loss", *(metric.name for metric in metrics if metric.is_number))]
    for option, name in (("monitor", config.monitor), ("target", config.target and parse_target(config.target)[0])):
        if name is not None:
            if f"validation_{name}" in names:
                raise ConfigurationError(
                    f"{option}: expected one of {', '.join(names)}, got {name!r}; did you mean validation_{name}?"
                )
            check_name(option, name, names)
    by_error = "validation_error" in names and not weighted
    return config.monitor or ("validation_error" if by_error else "validation_loss")


def build_rule(config: TrainConfig, metrics: Sequence[Metric], monitor: str) -> StoppingRule:
    """The early-stopping rule, which also says by `monitor` which parameters are best."""
    name = monitor.partition("_")[2]
    mode = next((metric.mode for metric in metrics if metric.name == name), None)
    try:
        mode = mode or monitor_mode(monitor)
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}; of a metric of your own, its mode says it") from None
    if config.early_stopping != "patience":
        return EpochsRule(config.patience or 0, config.min_delta, mode)
    if mode == "max":
        raise ConfigurationError(
            f"early_stopping patience watches what gets smaller, such as validation_error; monitor is {monitor}"
        )
    return PatienceRule(config.patience or 0, config.patience_increase, config.improvement_threshold)


def make_reduction(communicator: Communicator, plan: Plan, communication: str) -> tuple[GradientReduction, str | None]:
    """(the reduction that fits these ranks, a line to print where it isn't the one hoped for). Collective.

    communication   shared: a replica a node, and none other; mpi: a replica a rank; auto: shared where that is
                    possible; of ranks on GPUs, see `between_gpus`
    """
    if plan.partition.wire_groups:
        from distsgd.parallel.rounded_reduction import rounded_reduction

        return rounded_reduction(communicator, plan, partial(_exact, communicator, communication))
    return _exact(communicator, communication, plan, communicator.transport)


def _exact(
    communicator: Communicator, communication: str, plan: Plan, transport: Transport
) -> tuple[GradientReduction, str | None]:
    """As `make_reduction`, without rounding; `transport` sends arrays of the host's memory."""
    apart = SerialCommunicator()
    if plan.device.host_memory and communication == "nccl":
        raise ConfigurationError("communication nccl: NCCL joins GPUs, and this run computes on the CPU; use auto")
    if communicator.size == 1:
        return LocalReduction(communicator, plan), None
    from distsgd.parallel.overlapped_reduction import reduction_by_messages
    from distsgd.parallel.shared_memory import NotShared
    from distsgd.parallel.shared_reduction import SharedReduction

    if not plan.device.host_memory:
        from distsgd.gpu.choose_transport import between_gpus
        from distsgd.gpu.nccl_reduction import reduction_by_nccl

        of_gpus, note = between_gpus(communicator, plan.device, communication)
        return reduction_by_nccl(communicator, plan, of_gpus), note
    if communication == "mpi":
        return reduction_by_messages(communicator, plan, apart, transport), None
    try:
        if len(set(communicator.hosts)) == 1:
            return SharedReduction(communicator, plan), None
        return reduction_by_messages(communicator, plan, communicator.node(), transport), None
    except NotShared as host:
        if communication == "shared":
            raise ConfigurationError(f"communication: ranks can't share memory on {host}; use auto or mpi") from None
        note = f"no shared memory on {host}: gradients travel in messages"
    return reduction_by_messages(communicator, plan, apart, transport), note
