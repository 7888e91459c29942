"""The configuration of a run: one frozen dataclass, whose fields are the options of `python -m distsgd.train`.

Each option is declared once. How values belong together is checked here too, single values in `config_checks`, and what
depends on the data where the data are known.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from distsgd.core.components import field_names
from distsgd.core.device_options import FULL, device_option, precision_option
from distsgd.core.errors import ConfigurationError
from distsgd.core.options import check_options, option, options_of
from distsgd.data.augmentation import parse_augmentation
from distsgd.nn.losses import LOSSES
from distsgd.optim.optimizers import Optimizer
from distsgd.optim.registry import OPTIMIZERS, build_optimizer
from distsgd.optim.schedules import SCHEDULES, has_horizon
from distsgd.run.config_checks import (
    check_callbacks,
    check_elsewhere,
    check_kernels,
    check_loss_scale,
    check_max_time,
    check_metrics,
    check_order,
    check_precision,
    check_resume,
    check_wire,
    number_of_classes,
    parse_fold,
    parse_shares,
    parse_size,
    size_text,
)
from distsgd.run.user_code import names_code
from distsgd.training.intervals import parse_duration, parse_interval, parse_target
from distsgd.training.metrics import METRICS
from distsgd.training.non_finite import POLICIES

MOST_MICROBATCHES = 65_536
"""More serve no purpose and exceed any machine."""
PATIENCE = {"epochs": 10, "patience": 5000, "none": 0}
WIRES = (FULL, "bfloat16")
OWN_LOSS = "own"
"""The loss, in a configuration, where fit was given an object."""
_LOSS_SCALE, _WIRE_GROUPS = 1024, 2

BatchSize = int | Literal["full"]
Missing = Literal["refuse", "mean", "zero", "drop"]  # data.columns' own, which a fit without columns doesn't import


def _by_kind(kinds: Mapping[str, type], which: str, name: str, what: str = "") -> str:
    """The help of a parameter of some optimizers or schedules: which ones have it, and their own defaults."""
    defaults: dict[float, list[str]] = {}
    for one, kind in kinds.items():
        if name in field_names(kind):
            defaults.setdefault(getattr(kind, name), []).append(one)
    texts = [f"{default:g} ({', '.join(owners)})" for default, owners in defaults.items()]
    return f"{what}Default by {which}: {', '.join(texts)}."


_by_optimizer = partial(_by_kind, OPTIMIZERS, "optimizer")
_by_schedule = partial(_by_kind, SCHEDULES, "schedule")


@dataclass(frozen=True)
class TrainConfig:
    """Train a model on the ranks of this MPI job, with the same bits on any number of them."""

    # fmt: off
    dataset: str = option("digits", group="Data", path=True, help=
        "digits, mnist, fashion-mnist, cifar-10, xor, moons, or a path: .npz with x and y, mnist.pkl.gz, .npy files.")
    data_dir: str | None = option(None, operational=True, path=True, help=
        "Folder of data-set files and downloads. Default: the user's cache.")
    x: tuple[str, ...] = option((), help=
        "The inputs, by the names that the file has: names, patterns such as 'pixel*', or all but the others (all). "
        "Several arrays stand side by side. Default: the array x.")
    y: tuple[str, ...] = option((), "The targets, as --x names inputs; several are values. Default: the array y.")
    weights: str | None = option(None, empty=True, help=
        "The weights of the examples' losses, '' for none. Default: the array weights, if any.")
    group: str | None = option(None, help=
        "The column of groups, such as patients: what --validation-fraction or --fold split off are whole groups.")
    axis: str = option("0", "The axis of the examples in arrays of a file, by its number or its name.")
    missing: Missing = option("refuse", choices=get_args(Missing), help=
        "Missing values (null or NaN) of a file: refuse; mean or zero: what stands for them; drop: their examples go.")
    scale: float | None = option(None, interval="(0, inf)", help=
        "Divides inputs. Default: what the data set says (255 for bytes).")
    standardize: bool = option(False, "Gives each feature the mean 0 and the spread 1 over the training set.")
    standardize_targets: bool = option(False, "The same of values to regress to; predictions and scores undo it.")
    validation_fraction: float = option(0.1, interval="[0, 1)", help=
        "Part of the training examples that is split off for validation, a fixed function of the seed.")
    validation: str | None = option(None, "Path of validation data, instead of splitting some off.", path=True)
    split_seed: int | None = option(None, interval="[0, 9223372036854775808)", help=
        "Of the split alone, so that --seed can change without it. Default: --seed.")
    validation_last: int | None = option(None, "Validate on this many last training examples.", interval="[1, inf)")
    fold: str | None = option(None, check=parse_fold, help=
        "Validate on one of several equal parts of the training examples: 2/5 is the second of five, a fixed function "
        "of the seed.")
    test: str | None = option(None, "Path of test data, instead of the data set's own.", path=True)
    classes: tuple[str, ...] = option((), most=100_000, check=lambda words, name: number_of_classes(words), help=
        "How many classes there are, where the data don't hold all, or their names in the order of the labels.")
    expand: str = option("none", choices=("none", "shifts"), help=
        "shifts: each training image also moved by a pixel up, down, left and right; five times as many examples.")
    augment: tuple[str, ...] = option((), check=lambda words, name: parse_augmentation(words), help=
        "Changes training images each epoch: shift N (up to N pixels), crop N (the same), flip; as in crop 4 flip.")

    model: str = option("mlp", group="Model", code=True, path=True, help=
        "softmax, mlp, lenet, network3, lasagne-cnn, resnet20; a list such as 'conv 20 5x5, pool 2, relu, dense 10' of "
        "conv FILTERS HxW [same | padding N] [stride N], pool and average-pool SIZE [stride N], global-pool, dense "
        "[UNITS], batch-norm, dropout and channel-dropout RATE, flatten and activations; or file.py:function for your "
        "own.")
    hidden: tuple[int, ...] = option((128, 128), "Units of each hidden layer of mlp.")
    activation: str = option("relu", "Of mlp: relu, leaky-relu, gelu, sigmoid, tanh, softplus or linear.")
    dropout: float = option(0.0, "Dropout rate after each hidden activation of mlp.")
    batch_norm: bool = option(False, "Batch normalization in each hidden layer of mlp.")
    weight_initializer: str | None = option(None, help=
        "zeros, constant(value), normal(sigma), uniform(a, b), or one that knows the layer: glorot, glorot-normal, "
        "glorot-uniform, he, he-normal, he-uniform, lecun, lecun-normal, lecun-uniform, also as he(gain). Default: by "
        "activation, or as the authors of a named network; --model 'network3: LIST' takes theirs for your own list.")
    bias_initializer: str = option("zeros", "As --weight-initializer.")
    bias: bool = option(True, "Biases in dense and convolution layers.")
    output_activation: str = option("linear", "linear, or sigmoid under a squared error.")

    loss: str = option("auto", group="Loss", choices=("auto", *LOSSES), internal=(OWN_LOSS,), help=
        "auto: softmax-cross-entropy for labels, squared-error for values.")
    label_smoothing: float = option(0.0, help=
        "Part of the target spread evenly over the classes, or over yes and no (softmax- and binary-cross-entropy).")
    class_weights: tuple[float, ...] = option((), most=100_000, help=
        "One weight a class for its examples' losses (softmax-cross-entropy, focal).")
    pos_weight: tuple[float, ...] = option((), most=100_000, help=
        "The weight of yes against no: one number, or one for each answer (binary-cross-entropy).")
    huber_delta: float | None = option(None, interval="(0, inf)", help=
        "From this distance on the loss grows linearly (huber). Default: 1.")
    quantiles: tuple[float, ...] = option((), interval="(0, 1)", help=
        "Those that are predicted, in rising order (quantile). Default: 0.05 0.5 0.95.")
    focal_gamma: float | None = option(None, interval="[0, inf)", help=
        "How much less an example counts that is predicted well (focal, binary-focal). Default: 2.")
    focal_alpha: float | None = option(None, interval="(0, 1)", help=
        "The weight of yes; no has the rest of 1 (binary-focal). Default: both have 1.")

    optimizer: str = option("momentum", f"{', '.join(OPTIMIZERS)}.", group="Optimizer")
    learning_rate: float | None = option(None, _by_optimizer("learning_rate"), interval="[0, inf)", short="--lr")
    momentum: float | None = option(None, _by_optimizer("momentum"))
    dampening: float | None = option(None, help=
        _by_optimizer("dampening", "0.9 with momentum 0.9 makes the velocity an exponential average. "))
    beta1: float | None = option(None, _by_optimizer("beta1"))
    beta2: float | None = option(None, _by_optimizer("beta2"))
    trust_coefficient: float | None = option(None, help=
        _by_optimizer("trust_coefficient", "Times the learning rate, the part by which a layer changes. "))
    alpha: float | None = option(None, _by_optimizer("alpha", "How much of the average of squares is kept a step. "))
    epsilon: float | None = option(None, _by_optimizer("epsilon"))
    weight_decay: float | None = option(None, interval="[0, inf)", help=
        _by_optimizer("weight_decay", "Coupled, but in adamw and lamb. "))
    l1: float = option(0.0, "Adds l1 times the sum of absolute weights to the loss.", interval="[0, inf)")
    l2: float = option(0.0, "Adds l2 times the sum of squared weights to the loss.", interval="[0, inf)")
    penalize: tuple[str, ...] = option(("weights",), help=
        "What l1, l2 and weight decay hold for: weights (no biases), or name patterns such as 'dense1.*' or '*'.")
    freeze: tuple[str, ...] = option((), "Name patterns of parameters that are not trained.")
    clip_norm: float | None = option(None, "Scales longer gradients down to this global norm.", interval="(0, inf)")

    schedule: str = option("constant", f"{', '.join(SCHEDULES)}.", group="Schedule")
    warmup_steps: int = option(0, "Steps of linear warm-up before the schedule.", interval="[0, inf)")
    schedule_epochs: float | None = option(None, interval="(0, inf)", help=
        "The horizon of the cosine schedule; never a stop condition. Default: epochs of the first start.")
    decay_rate: float | None = option(None, _by_schedule("decay_rate", "The decay in one unit of time. "))
    decay_epochs: float | None = option(None, help=
        _by_schedule("decay_epochs", "Epochs that make up one unit of the schedule's time. "))
    decay_factor: float | None = option(None, help=
        _by_schedule("factor", "Multiplies the learning rate in each unit of time. "))
    staircase: bool = option(False, "The schedule moves at whole units of time alone.")

    batch_size: BatchSize = option(256, group="Sampling and arithmetic", interval="[1, inf)", help=
        "Examples of one global minibatch, over all ranks together; full for the whole training set.")
    sampling: str = option("epochs", choices=("epochs", "replacement", "weighted", "balanced"), help=
        "epochs: each example once an epoch; replacement: every minibatch drawn independently; weighted: examples as "
        "often as their weights say, which don't multiply losses then; balanced: all classes equally often.")
    shuffle: bool = option(True, "A new order every epoch.")
    shuffle_buffer: str | None = option(None, check=parse_size, help=
        "Order epochs by blocks of neighbours, and examples among those of blocks that half of so much memory holds: "
        "256MB, 1GB. Also in memory.")
    order_block: int | None = option(None, interval="[1, inf)", help=
        "Examples of a block of --shuffle-buffer. Default: up to 4,096, so that a window has at least 32 blocks.")
    stream: bool = option(True, operational=True, help=
        "With --shuffle-buffer, read a data file that is larger in blocks while training; else keep it in memory.")
    readers: int = option(1, interval="[1, 16]", operational=True, help=
        "Threads of each host that read such a file.")
    drop_last: bool = option(False, "Drop an epoch's last minibatch where it is short.")
    microbatches: int = option(4, interval=f"[1, {MOST_MICROBATCHES}]", help=
        "Microbatches of a minibatch. Results depend on this number, and on the number of ranks never.")
    seed: int = option(0, "Of everything random.", interval="[0, 9223372036854775808)")
    dtype: str = option("float32", "Of parameters and arithmetic.", choices=("float32", "float64"))
    precision: str = precision_option()
    loss_scale: int | None = option(None, interval="[1, 16777216]", check=check_loss_scale, help=
        "Of --precision float16: a power of two that keeps small gradients from rounding to zero. Default: 1024.")

    wire: str = option(FULL, choices=WIRES, help=
        "bfloat16: gradient sums of groups of microbatches, and the parameters after each update, are rounded to it, "
        "and travel between hosts in half of the bytes. On one rank they are rounded, too.")
    wire_groups: int | None = option(None, interval=f"[1, {MOST_MICROBATCHES}]", help=
        "Of --wire bfloat16: how many groups, a power of two. A host computes whole groups, and saves most with one. "
        "Results depend on this number. Default: 2.")

    epochs: int = option(20, "Stop after this many epochs.", group="When to stop", interval="[0, inf)")
    max_steps: int | None = option(None, "Stop after this many steps from the run's first.", interval="[0, inf)")
    max_time: str | None = option(None, check=check_max_time, help=
        "Stop after this much time, such as 90s or 3h50m, with a checkpoint and status 75. auto, the default: two "
        "minutes before Slurm, PBS or LSF end this job (auto-10m: ten). never: not at all.")
    target: str | None = option(None, "Stop at a metric's value, such as validation_accuracy=0.98.", check=parse_target)

    validate_every: str = option("1epoch", group="Validation", check=partial(parse_interval, seconds=False), help=
        "Steps, or epochs as in 1epoch.")
    validation_on: str = option("all", choices=("all", "rank0"), operational=True, help=
        "all: ranks share the validation; rank0: rank 0 computes it alone.")
    train_metrics: str = option("running", choices=("running", "full"), help=
        "running: the loss during the epoch; full: the whole training set is scored, too.")
    top_k: int | None = option(None, "Adds top-k accuracy.", interval="[1, inf)")
    metric: tuple[str, ...] = option((), check=check_metrics, code=True, path=True, help=
        f"What else is measured: {', '.join(METRICS)}; or a metric of yours, file.py:function, which takes (outputs, "
        "targets) and returns one number an example.")
    early_stopping: str = option("epochs", choices=("epochs", "patience", "none"), help=
        "epochs: stop after `patience` validations without improvement; patience: the rule in iterations; none: don't.")
    patience: int | None = option(None, interval="[0, inf)", help=
        "Validations under the epochs rule, 0 for never; minibatches under the patience rule. Default: "
        f"{', '.join(f'{number} ({rule})' for rule, number in PATIENCE.items())}.")
    min_delta: float = option(0.0, "What counts as an improvement under the epochs rule.", interval="[0, inf)")
    monitor: str | None = option(None, help=
        "What stopping and the best parameters go by. Default: validation_error of classes without class weights, else "
        "validation_loss.")
    ties: str = option("loss", choices=("loss", "first"), help=
        "The best of equal monitored values: the one with the lower validation loss, or the first.")
    patience_increase: float = option(2.0, "Of the patience rule.", interval="(0, inf)")
    improvement_threshold: float = option(0.995, "Of the patience rule.", interval="[0, 1]")
    test_at_best: bool = option(True, "Record the test score whenever validation has a new best.", operational=True)

    out: str | None = option(None, group="The run", operational=True, written=False, path=True, help=
        "The run's folder. Default: runs/NAME, with a name made from the configuration.")
    resume: str = option("auto", check=check_resume, operational=True, written=False, path=True, help=
        "auto: continue the folder's run; never: start anew, moving it aside; or the path of a checkpoint.")
    init_from: str | None = option(None, path=True, help=
        "A run folder or checkpoint whose parameters training starts from.")
    checkpoint_every: str = option("1epoch", check=parse_interval, operational=True, help=
        "Steps, a time (5m), or epochs (1epoch, at most once in 10 seconds); written in the background.")
    keep: int = option(3, "How many numbered checkpoints stay.", interval="[1, inf)", operational=True)
    on_non_finite: str = option("stop", choices=POLICIES, operational=True, help=
        "At a NaN or infinite loss or gradient: stop; skip the minibatch; or rollback to a checkpoint and skip it.")
    log_every: int | None = option(None, interval="[1, inf)", operational=True, help=
        "Also record the training loss every so many steps.")
    callback: tuple[str, ...] = option((), check=check_callbacks, code=True, operational=True, path=True, help=
        "Your own callbacks, file.py:name of a distsgd.Callback.")
    plot: bool = option(False, operational=True, written=False, help=
        "Draw pictures of the run into its folder when it ends; needs matplotlib (distsgd[plot]).")
    profile: bool = option(False, operational=True, written=False, help=
        "After each epoch, where each rank's time went: compute, wait, communicate, gather, other.")
    trace: str | None = option(None, operational=True, written=False, path=True, help=
        "Write what all ranks did in steps 10 to 20 to this file, in Chrome's trace event format.")
    quiet: bool = option(False, "Print the last line alone.", operational=True, written=False)
    dry_run: bool = option(False, "Show what would run, and stop.", operational=True, written=False)
    check_gradient: bool = option(False, operational=True, written=False, help=
        "Compare the gradient with central differences in float64, and stop.")

    device: str = device_option("auto", group="Hardware and MPI", operational=True)
    kernels: str = option("auto", check=check_kernels, operational=True, help=
        "The family of CPU kernels on all hosts, which decides the bits: avx512, avx2, sse42 or arm64. auto: that of "
        "the run in the folder, else the fastest that all hosts have.")
    threads: int | None = option(None, interval="[1, 1024]", operational=True, help=
        "Threads of each rank, which share its microbatches. Default: its cores, where microbatches are large enough "
        "to gain. A model of your own is called by one of them, unless it declares thread_safe.")
    shares: str = option("equal", check=parse_shares, operational=True, help=
        "How many microbatches each rank computes: equal, or nearly so; auto: a rank that is slower for many steps has "
        "fewer; or a number for each rank, such as 11,5. The bits are the same. GPUs have equal ones.")
    communication: str = option("auto", choices=("auto", "shared", "mpi", "nccl"), operational=True, help=
        "shared: ranks of a host share a replica, and hosts send messages; mpi: all ranks send messages; auto: shared "
        "if possible. Ranks on GPUs: nccl, from GPU to GPU; mpi, from GPU to GPU where the MPI library can, else "
        "through the host; auto: nccl if possible.")
    cuda_graphs: bool = option(True, operational=True, help=
        "On GPUs, record steps once and start them as a whole, with the same results.")
    check_replicas: int = option(1000, interval="[0, inf)", operational=True, help=
        "Compare the ranks' parameters every so many steps; 0: never.")
    stall_timeout: str = option("120s", check=parse_duration, operational=True, help=
        "Waiting this long for a rank in a step ends the job and names it; 0: never. Ten times that elsewhere.")
    stall_stacks: bool = option(False, operational=True, help=
        "Print the stacks of a host's ranks before a stall ends the job. SIGUSR2 prints a rank's own at any time.")
    # fmt: on

    def __post_init__(self) -> None:
        for name in ("dtype", "precision", "early_stopping"):
            check_elsewhere(name, getattr(self, name), OPTIONS[name].choices)
        check_options(self)
        if self.early_stopping == "patience" and self.validate_every != "1epoch":
            raise ConfigurationError(
                "validate_every: the patience rule says itself how often it validates, min(minibatches an epoch, "
                f"patience / 2); leave {self.validate_every!r} out"
            )
        if self.early_stopping == "none" and self.patience:
            raise ConfigurationError("patience: would change nothing with --early-stopping none; leave one of them out")
        if self.early_stopping == "patience" and self.patience == 0:
            raise ConfigurationError("patience: the patience rule expects at least 1 minibatch, got 0")
        check_precision(self.precision, self.loss_scale, self.dtype)
        check_wire(self.wire, self.wire_groups, self.microbatches, self.dtype, self.shares)
        others = {
            f"sampling {self.sampling}": self.sampling != "epochs",
            f"expand {self.expand}": self.expand != "none",
            "batch_size full": self.batch_size == "full",
        }
        needed = {name: getattr(self, name) != OPTIONS[name].default for name in ("order_block", "stream", "readers")}
        check_order(self.shuffle_buffer, needed, others)
        given = [name for name in ("validation", "validation_last", "fold") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigurationError(f"{given[0]} and {given[1]} exclude each other; give one of them")
        if self.fold is not None and self.validation_fraction not in (0, OPTIONS["validation_fraction"].default):
            raise ConfigurationError("validation_fraction: would change nothing beside fold; leave one of them out")
        if self.sampling in ("weighted", "balanced") and not self.shuffle:
            raise ConfigurationError(
                f"shuffle: --sampling {self.sampling} draws in a new order every epoch; leave one of them out"
            )

    @property
    def stall_seconds(self) -> float:
        """stall_timeout in seconds."""
        return parse_duration(self.stall_timeout, "stall_timeout")

    def identity(self) -> dict[str, Any]:
        """What decides the bits of a run, JSON-able: all but stop conditions and what is merely operational."""
        left = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if key not in STOP_CONDITIONS and key not in OPERATIONAL
        }
        left["shuffle_buffer"] = _one_form(self.shuffle_buffer)
        if not has_horizon(self.schedule) or self.schedule_epochs == self.epochs:
            left["schedule_epochs"] = None  # the default says the same
        return left

    def name(self) -> str:
        """The run's name: data set, model, and 8 hexadecimal digits of what differs from the defaults.

        An option that a later version adds so leaves all names as they are.
        """
        defaults = TrainConfig().identity()
        different = {key: value for key, value in self.identity().items() if value != defaults[key]}
        code = {"model"} if names_code(self.model) else set()
        for key in {"dataset", "validation", "test", *code} & different.keys():
            different[key] = Path(different[key] or "").name  # the same wherever it lies
        digest = hashlib.sha256(json.dumps(different, sort_keys=True).encode()).hexdigest()[:8]
        return "-".join([_slug(self.dataset), _slug(self.model.rpartition(":")[2]), digest])


OPTIONS = options_of(TrainConfig)
STOP_CONDITIONS = tuple(name for name, one in OPTIONS.items() if one.group == "When to stop")
OPERATIONAL = tuple(name for name, one in OPTIONS.items() if one.operational)
"""Options that don't change what a run computes; with the stop conditions they are not part of its name. Of those that
change its last bits, a run keeps its kernels, and says when its device is another one."""
NOT_WRITTEN = tuple(name for name, one in OPTIONS.items() if not one.written)
OF_SCHEDULES = tuple(name for name, one in OPTIONS.items() if one.group == "Schedule" and name != "schedule")
"""Options of the schedules that have names."""
HYPER_PARAMETERS = tuple(name for name in OPTIONS if any(name in field_names(kind) for kind in OPTIMIZERS.values()))
"""Options that an optimizer may have; one that is None takes the optimizer's own default."""


def resolved(config: TrainConfig, optimizer: Optimizer | None = None) -> TrainConfig:
    """The configuration with the optimizer's and the stopping rule's defaults written out, and `augment` and
    `shuffle_buffer` in one form.

    The optimizer is built from the configuration where none is given. Raises ConfigurationError for hyper-parameters
    that it doesn't have.
    """
    optimizer = optimizer or own_optimizer(config)
    values = {name: getattr(optimizer, name) for name in HYPER_PARAMETERS if hasattr(optimizer, name)}
    patience = config.patience if config.patience is not None else PATIENCE[config.early_stopping]
    if config.precision == "float16":
        values["loss_scale"] = config.loss_scale or _LOSS_SCALE
    if config.wire != FULL:
        values["wire_groups"] = config.wire_groups or _WIRE_GROUPS
    values["augment"] = found.words if (found := parse_augmentation(config.augment)) else ()
    return replace(config, patience=patience, shuffle_buffer=_one_form(config.shuffle_buffer), **values)


def _one_form(size: str | None) -> str | None:
    return None if size is None else size_text(parse_size(size, "shuffle_buffer"))


def own_optimizer(config: TrainConfig) -> Optimizer:
    """The optimizer of the configuration. Raises ConfigurationError for hyper-parameters that it doesn't have."""
    return build_optimizer(config.optimizer, **{name: getattr(config, name) for name in HYPER_PARAMETERS})


def _slug(text: str) -> str:
    stem = re.split(r"[\\/]", text.rstrip("/\\"))[-1].removesuffix(".npz").removesuffix(".npy")
    return re.sub(r"[^A-Za-z0-9_.]+", "-", stem).strip("-.")[:40] or "data"
