"""The options that distsgd.fit takes as keywords; made by python -m tests.generated_options."""

from collections.abc import Sequence
from os import PathLike
from typing import Literal, TypeAlias, TypedDict

LossName: TypeAlias = Literal[
    "auto",
    "softmax-cross-entropy",
    "binary-cross-entropy",
    "squared-error",
    "l1",
    "huber",
    "poisson",
    "gaussian",
    "quantile",
    "focal",
    "binary-focal",
]

class FitOptions(TypedDict, total=False):
    missing: Literal["refuse", "mean", "zero", "drop"]
    scale: float | None
    standardize: bool
    standardize_targets: bool
    validation_fraction: float
    split_seed: int | None
    validation_last: int | None
    fold: str | None
    classes: int | str | Sequence[str]
    expand: Literal["none", "shifts"]
    augment: str | Sequence[str]
    hidden: int | Sequence[int]
    activation: str
    dropout: float
    batch_norm: bool
    weight_initializer: str | None
    bias_initializer: str
    bias: bool
    output_activation: str
    label_smoothing: float
    class_weights: float | Sequence[float]
    pos_weight: float | Sequence[float]
    huber_delta: float | None
    quantiles: float | Sequence[float]
    focal_gamma: float | None
    focal_alpha: float | None
    learning_rate: float | None
    momentum: float | None
    dampening: float | None
    beta1: float | None
    beta2: float | None
    trust_coefficient: float | None
    alpha: float | None
    epsilon: float | None
    weight_decay: float | None
    l1: float
    l2: float
    penalize: str | Sequence[str]
    freeze: str | Sequence[str]
    clip_norm: float | None
    warmup_steps: int
    schedule_epochs: float | None
    decay_rate: float | None
    decay_epochs: float | None
    decay_factor: float | None
    staircase: bool
    batch_size: int | Literal["full"]
    sampling: Literal["epochs", "replacement", "weighted", "balanced"]
    shuffle: bool
    shuffle_buffer: str | None
    order_block: int | None
    drop_last: bool
    microbatches: int
    seed: int
    dtype: Literal["float32", "float64"]
    precision: Literal["float32", "tf32", "bfloat16", "float16"]
    loss_scale: int | None
    wire: Literal["float32", "bfloat16"]
    wire_groups: int | None
    epochs: int
    max_steps: int | None
    max_time: str | None
    target: str | None
    validate_every: str
    validation_on: Literal["all", "rank0"]
    train_metrics: Literal["running", "full"]
    top_k: int | None
    metric: str | Sequence[str]
    early_stopping: Literal["epochs", "patience", "none"]
    patience: int | None
    min_delta: float
    monitor: str | None
    ties: Literal["loss", "first"]
    patience_increase: float
    improvement_threshold: float
    test_at_best: bool
    out: str | PathLike[str] | None
    resume: str | PathLike[str]
    init_from: str | PathLike[str] | None
    checkpoint_every: str
    keep: int
    on_non_finite: Literal["stop", "skip", "rollback"]
    log_every: int | None
    plot: bool
    profile: bool
    trace: str | PathLike[str] | None
    quiet: bool
    device: str
    kernels: str
    threads: int | None
    shares: str
    communication: Literal["auto", "shared", "mpi", "nccl"]
    cuda_graphs: bool
    check_replicas: int
    stall_timeout: str
    stall_stacks: bool
    lr: float | None
