"""The configuration of a run: one frozen dataclass, whose fields are the options of `python -m distsgd.train`.

What one value may be is in option_values, how values belong together is checked here, and what depends on the data
where the data are known.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from distsgd.core.device import FULL
from distsgd.core.errors import ConfigurationError
from distsgd.data.augmentation import parse_augmentation
from distsgd.optim.optimizers import Optimizer, build_optimizer
from distsgd.optim.schedules import has_horizon
from distsgd.run.option_values import check_values
from distsgd.training.intervals import parse_duration, parse_interval, parse_target

STOP_CONDITIONS = ("epochs", "max_steps", "max_time", "target")
OPERATIONAL = (
    "out", "resume", "checkpoint_every", "keep", "log_every", "quiet", "dry_run", "check_gradient", "device",
    "threads", "communication", "data_dir", "validation_on", "test_at_best", "callback", "plot", "on_non_finite",
    "check_replicas", "stall_timeout", "stall_stacks", "cuda_graphs",
)  # fmt: skip
"""Fields that don't change what a run computes; with the stop conditions they are not part of its name."""
HYPER_PARAMETERS = ("learning_rate", "weight_decay", "momentum", "dampening", "beta1", "beta2", "alpha", "epsilon")
"""Fields that an optimizer may have; a field that is None takes the optimizer's own default."""
_PATIENCE = {"epochs": 10, "patience": 5000}
_LOSS_SCALE = 1024
NOT_WRITTEN = ("out", "resume", "dry_run", "check_gradient", "quiet", "plot")

BatchSize = int | Literal["full"]


@dataclass(frozen=True)
class TrainConfig:
    """Train a model on the ranks of this MPI job, with the same bits on any number of them.

    --config FILE.toml reads options from a file, which the command line overrides; code that the file names runs only
    where the command line names it too. --version prints the version.
    """

    # data
    dataset: str = "digits"
    """digits, mnist, fashion-mnist, cifar-10, xor, moons, or a path: .npz with x and y, mnist.pkl.gz, .npy files."""
    data_dir: str | None = None
    """Where data-set files are, or are downloaded to. Default: the user's cache folder."""
    scale: float | None = None
    """Inputs are divided by this. Default: what the data set says (255 for bytes)."""
    validation_fraction: float = 0.1
    """Part of the training examples that is split off for validation, a fixed function of the seed."""
    validation: str | None = None
    """Path of validation data, instead of splitting some off."""
    validation_last: int | None = None
    """Validate on this many last training examples, instead of a random part."""
    test: str | None = None
    """Path of test data, instead of the data set's own."""
    expand: str = "none"
    """shifts: each training image, and it moved by one pixel up, down, left and right; five times as many examples."""
    augment: tuple[str, ...] = ()
    """Changes training images anew each epoch: shift N (up to N pixels), crop N (the same), flip; as in crop 4 flip."""

    # model
    model: str = "mlp"
    """softmax, mlp, lenet, network3, lasagne-cnn, resnet20; a list such as 'conv 20 5x5, pool 2, relu, dense 10' of
    conv FILTERS HxW [same | padding N] [stride N], pool and average-pool SIZE [stride N], global-pool, dense [UNITS],
    batch-norm, dropout and channel-dropout RATE, flatten and activations; or file.py:function for your own."""
    hidden: tuple[int, ...] = (128, 128)
    """Units of each hidden layer of mlp."""
    activation: str = "relu"
    """Of mlp: relu, leaky-relu, gelu, sigmoid, tanh, softplus or linear."""
    dropout: float = 0.0
    """Dropout rate after each hidden activation of mlp."""
    batch_norm: bool = False
    """Batch normalization in each hidden layer of mlp."""
    weight_initializer: str | None = None
    """he, glorot, lecun (each also as glorot(gain)), zeros, normal(sigma) or uniform(a, b). Default: by activation, or
    as the authors of a named network have it; --model 'network3: LIST' takes them for a list of your own."""
    bias_initializer: str = "zeros"
    """As weight_initializer."""
    bias: bool = True
    """Biases in dense and convolution layers."""
    output_activation: str = "linear"
    """linear, or sigmoid under a squared error."""

    # loss
    loss: str = "auto"
    """softmax-cross-entropy, binary-cross-entropy or squared-error. auto: the first for labels, the last for values."""
    label_smoothing: float = 0.0
    """Part of the target that is spread evenly over the classes (softmax-cross-entropy)."""
    class_weights: tuple[float, ...] = ()
    """One weight a class for its examples' losses (softmax-cross-entropy)."""

    # optimizer
    optimizer: str = "momentum"
    """sgd, momentum, nesterov, adagrad, rmsprop, adam or adamw."""
    learning_rate: float | None = None
    """Or --lr. Default by optimizer: 0.1 sgd; 0.05 momentum, nesterov; 0.001 adam, adamw, rmsprop; 0.01 adagrad."""
    momentum: float | None = None
    """Of momentum and nesterov. Default: 0.9."""
    dampening: float | None = None
    """Of momentum. Default: 0. 0.9 with momentum 0.9 makes the velocity an exponential average."""
    beta1: float | None = None
    """Of adam and adamw. Default: 0.9."""
    beta2: float | None = None
    """Of adam and adamw. Default: 0.999."""
    alpha: float | None = None
    """Of rmsprop: how much of the average of squares is kept a step. Default: 0.99."""
    epsilon: float | None = None
    """Of adagrad, rmsprop, adam and adamw. Default by optimizer: 1e-10 adagrad, 1e-8 the others."""
    weight_decay: float | None = None
    """Coupled in all optimizers but adamw. Default: 0; 0.01 in adamw."""
    l1: float = 0.0
    """Adds l1 times the sum of absolute weights to the loss."""
    l2: float = 0.0
    """Adds l2 times the sum of squared weights to the loss."""
    penalize: tuple[str, ...] = ("weights",)
    """What l1, l2 and weight_decay hold for: weights (no biases), or name patterns such as 'dense1.*' or '*'."""
    freeze: tuple[str, ...] = ()
    """Name patterns of parameters that are not trained."""
    clip_norm: float | None = None
    """Scales the gradient down to this global norm where it is longer."""
    schedule: str = "constant"
    """constant, inverse-time, inverse-sqrt, step, exponential or cosine."""
    warmup_steps: int = 0
    """Steps of linear warm-up before the schedule."""
    schedule_epochs: float | None = None
    """The horizon of the cosine schedule; never a stop condition. Default: epochs of the first start."""
    decay_rate: float | None = None
    """Of inverse-time and inverse-sqrt."""
    decay_epochs: float | None = None
    """Epochs that make up one unit of the schedule's time."""
    decay_factor: float | None = None
    """Of step and exponential: what the learning rate is multiplied with in each unit of the schedule's time."""
    staircase: bool = False
    """The schedule moves at whole units of time alone."""

    # sampling
    batch_size: BatchSize = 256
    """Examples of one global minibatch, over all ranks together; full for the whole training set."""
    sampling: str = "epochs"
    """epochs: each example once an epoch; replacement: every minibatch drawn independently."""
    shuffle: bool = True
    """A new order every epoch."""
    drop_last: bool = False
    """Drop an epoch's last minibatch where it is short."""
    microbatches: int = 4
    """Microbatches that a minibatch is cut into: results depend on this number, and on the number of ranks never."""
    seed: int = 0
    """Of everything random."""
    dtype: str = "float32"
    """float32 or float64."""
    precision: str = "float32"
    """What a GPU rounds numbers to as it multiplies matrices: float32, tf32, bfloat16 or float16. Parameters, gradients
    and sums stay float32."""
    loss_scale: int | None = None
    """Of --precision float16: a power of two that multiplies gradients in the backward pass, so that small ones
    aren't rounded to zero. Default: 1024."""

    # when to stop
    epochs: int = 20
    """Stop after this many epochs."""
    max_steps: int | None = None
    """Stop after this many steps, counted from the run's first."""
    max_time: str | None = None
    """Stop after this much time, such as 90s or 3h50m, with a checkpoint and status 75. auto, the default: two minutes
    before Slurm, PBS or LSF end this job (auto-10m: ten). never: not at all."""
    target: str | None = None
    """Stop when a metric is reached, such as validation_accuracy=0.98."""

    # validation and early stopping
    validate_every: str = "1epoch"
    """Steps, or epochs as in 1epoch."""
    validation_on: str = "all"
    """all: ranks share the validation; rank0: rank 0 computes it alone."""
    train_metrics: str = "running"
    """running: the loss during the epoch; full: the whole training set is scored, too."""
    top_k: int | None = None
    """Adds top-k accuracy."""
    metric: tuple[str, ...] = ()
    """Your own metrics, file.py:function, which takes (outputs, targets) and returns one number an example."""
    early_stopping: str = "epochs"
    """epochs: stop after `patience` validations without improvement; patience: the rule in iterations."""
    patience: int | None = None
    """Validations under the epochs rule, 0 for never; minibatches under the patience rule. Default: 10; 5000."""
    min_delta: float = 0.0
    """What counts as an improvement under the epochs rule."""
    monitor: str | None = None
    """What early stopping and the best parameters go by. Default: validation_error of classes without class_weights,
    else validation_loss. Of equal values the one with the lower validation loss is best."""
    patience_increase: float = 2.0
    """Of the patience rule."""
    improvement_threshold: float = 0.995
    """Of the patience rule."""
    test_at_best: bool = True
    """Record the test score whenever validation has a new best."""

    # the run
    out: str | None = None
    """The run's folder. Default: runs/NAME, with a name made from the configuration."""
    resume: str = "auto"
    """auto: continue the folder's run; never: start anew, moving it aside; or the path of a checkpoint."""
    init_from: str | None = None
    """A run folder or checkpoint whose parameters training starts from."""
    checkpoint_every: str = "1epoch"
    """Steps, seconds as in 30s, or epochs as in 1epoch (at most once in 10 seconds); written in the background."""
    keep: int = 3
    """How many numbered checkpoints stay."""
    on_non_finite: str = "stop"
    """When loss or gradient are NaN or infinite: stop; skip the minibatch; or rollback to a checkpoint, and skip it."""
    check_replicas: int = 1000
    """Compare the ranks' copies of the parameters every so many steps; 0: never."""
    log_every: int | None = None
    """Also record the training loss every so many steps."""
    device: str = "auto"
    """cpu; gpu: one a rank, in turn; gpu:N: that one; auto: a GPU where CuPy finds one, else the CPU."""
    communication: str = "auto"
    """shared: ranks of a host share a replica, and hosts send messages; mpi: all ranks send messages; auto: shared if
    possible. Ranks on GPUs: nccl, from GPU to GPU; mpi, from GPU to GPU where the MPI library can, else through the
    host; auto: nccl if possible."""
    threads: int | None = None
    """Threads of each rank, which share its microbatches. Default: its cores, where microbatches are large enough to
    gain. A model of your own is called by one of them, unless it declares thread_safe.
    """
    cuda_graphs: bool = True
    """On GPUs, record the steps once and start them as a whole; the results are the same."""
    callback: tuple[str, ...] = ()
    """Your own callbacks, file.py:name of a distsgd.Callback."""
    stall_timeout: str = "120s"
    """Waiting this long for a rank in a step ends the job and names the rank; 0 for never. Ten times that elsewhere."""
    stall_stacks: bool = False
    """Print the stacks of a host's ranks before a stall ends the job. SIGUSR2 to a rank prints its own at any time."""
    plot: bool = False
    """Draw pictures of the run into its folder when it ends; needs pip install 'distsgd[plot]'."""
    quiet: bool = False
    """Print the last line alone."""
    dry_run: bool = False
    """Show what would run, and stop."""
    check_gradient: bool = False
    """Compare the model's gradient with central differences in float64, and stop."""

    def __post_init__(self) -> None:
        check_values(vars(self))
        parse_augmentation(self.augment)
        parse_interval(self.validate_every, "validate_every", seconds=False)
        parse_interval(self.checkpoint_every, "checkpoint_every")
        parse_duration(self.stall_timeout, "stall_timeout")
        if self.max_time not in (None, "auto", "never"):
            parse_duration(self.max_time.removeprefix("auto-"), "max_time")
        if self.target is not None:
            parse_target(self.target)
        if self.early_stopping == "patience" and self.validate_every != "1epoch":
            raise ConfigurationError(
                "validate_every: the patience rule says itself how often it validates, min(minibatches an epoch, "
                f"patience / 2); leave {self.validate_every!r} out"
            )
        if self.early_stopping == "patience" and self.patience == 0:
            raise ConfigurationError("patience: the patience rule expects at least 1 minibatch, got 0")
        if self.model == "softmax" and (self.dropout or self.batch_norm):
            raise ConfigurationError("dropout and batch_norm belong to hidden layers, and model softmax has none")
        if self.precision != FULL and self.dtype != FULL:
            raise ConfigurationError(
                f"precision {self.precision}: goes with --dtype float32 alone, got {self.dtype}; leave one of them out"
            )
        if self.loss_scale is not None and self.precision != "float16":
            raise ConfigurationError(
                f"loss_scale: goes with --precision float16 alone, got {self.precision}, whose range needs none; leave "
                "it out"
            )
        given = [name for name in ("validation", "validation_last") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigurationError("validation and validation_last exclude each other; give one of them")

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
        if not has_horizon(self.schedule) or self.schedule_epochs == self.epochs:
            left["schedule_epochs"] = None  # the default says the same
        return left

    def name(self) -> str:
        """The run's name: data set, model, and 8 hexadecimal digits of the configuration."""
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:8]
        return "-".join([_slug(self.dataset), _slug(self.model.rpartition(":")[2]), digest])


def resolved(config: TrainConfig, optimizer: Optimizer | None = None) -> TrainConfig:
    """The configuration with the optimizer's and the stopping rule's defaults written out, and `augment` in one form.

    The optimizer is built from the configuration where none is given. Raises ConfigurationError for hyper-parameters
    that it doesn't have.
    """
    optimizer = optimizer or own_optimizer(config)
    values = {name: getattr(optimizer, name) for name in HYPER_PARAMETERS if hasattr(optimizer, name)}
    patience = config.patience if config.patience is not None else _PATIENCE[config.early_stopping]
    augmentation = parse_augmentation(config.augment)
    if config.precision == "float16" and config.loss_scale is None:
        config = replace(config, loss_scale=_LOSS_SCALE)
    return replace(config, patience=patience, augment=augmentation.words if augmentation else (), **values)


def own_optimizer(config: TrainConfig) -> Optimizer:
    """The optimizer of the configuration. Raises ConfigurationError for hyper-parameters that it doesn't have."""
    return build_optimizer(config.optimizer, **{name: getattr(config, name) for name in HYPER_PARAMETERS})


def to_toml(config: TrainConfig) -> str:
    """The configuration as a TOML document, without what isn't set; reading it back gives the same run."""
    import tomli_w

    values = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(config).items()
        if value is not None and key not in NOT_WRITTEN
    }
    return tomli_w.dumps(values)


def field_names() -> list[str]:
    """The options' names."""
    return [field.name for field in fields(TrainConfig)]


def _slug(text: str) -> str:
    stem = re.split(r"[\\/]", text.rstrip("/\\"))[-1].removesuffix(".npz").removesuffix(".npy")
    return re.sub(r"[^A-Za-z0-9_.]+", "-", stem).strip("-.")[:40] or "data"
