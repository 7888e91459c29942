"""Checks the value of one option: choices and ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from distsgd.core.device import PRECISIONS
from distsgd.core.errors import ConfigurationError
from distsgd.nn.losses import LOSSES
from distsgd.run.user_code import names_code
from distsgd.training.metrics import METRICS
from distsgd.training.non_finite import POLICIES

CHOICES = {
    "expand": ("none", "shifts"),
    "sampling": ("epochs", "replacement"),
    "dtype": ("float32", "float64"),
    "precision": PRECISIONS,
    "validation_on": ("all", "rank0"),
    "train_metrics": ("running", "full"),
    "early_stopping": ("epochs", "patience"),
    "communication": ("auto", "shared", "mpi", "nccl"),
    "loss": ("auto", *LOSSES),
    "on_non_finite": POLICIES,
}
AT_LEAST = {
    "microbatches": 1, "epochs": 0, "max_steps": 0, "patience": 0, "keep": 1, "log_every": 1, "threads": 1,
    "warmup_steps": 0, "validation_last": 1, "top_k": 1, "min_delta": 0, "seed": 0, "learning_rate": 0,
    "weight_decay": 0, "l1": 0, "l2": 0, "check_replicas": 0, "improvement_threshold": 0,
}  # fmt: skip
AT_MOST = {"microbatches": 65_536, "threads": 1024, "improvement_threshold": 1}
"""More microbatches or threads than this serve no purpose and exceed any machine."""
LARGEST_LOSS_SCALE = 1 << 24
ABOVE_ZERO = ("scale", "clip_norm", "schedule_epochs", "patience_increase")


def check_values(values: Mapping[str, Any]) -> None:
    """Raise ConfigurationError for the first option, by name, whose value can't be; None is what wasn't given."""
    for name, value in values.items():
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str):
                _check_text(name, text)
    for name, choices in CHOICES.items():
        if values[name] not in choices:
            raise ConfigurationError(f"{name}: expected one of {', '.join(choices)}, got {values[name]!r}")
    for name, least in AT_LEAST.items():
        if values[name] is not None and not least <= values[name] < math.inf:
            raise ConfigurationError(f"{name}: expected a finite number of at least {least}, got {values[name]}")
    for name, most in AT_MOST.items():
        if values[name] is not None and values[name] > most:
            raise ConfigurationError(f"{name}: expected at most {most}, got {values[name]}")
    for name in ABOVE_ZERO:
        if values[name] is not None and not 0 < values[name] < math.inf:
            raise ConfigurationError(f"{name}: expected a finite number above 0, got {values[name]}")
    if values["batch_size"] != "full" and values["batch_size"] < 1:
        raise ConfigurationError(f"batch_size: expected at least 1, or full, got {values['batch_size']}")
    if not 0 <= values["validation_fraction"] < 1:
        raise ConfigurationError(
            f"validation_fraction: expected at least 0 and below 1, got {values['validation_fraction']}"
        )
    for name in values["metric"]:
        if name not in METRICS and not names_code(name):
            raise ConfigurationError(f"metric: expected one of {', '.join(METRICS)}, or file.py:function, got {name!r}")
    for name in values["callback"]:
        if not names_code(name):
            raise ConfigurationError(f"callback: expected file.py:name of a distsgd.Callback, got {name!r}")
    scale = values["loss_scale"]
    if scale is not None and not (1 <= scale <= LARGEST_LOSS_SCALE and scale & (scale - 1) == 0):
        raise ConfigurationError(
            f"loss_scale: expected a power of two from 1 to {LARGEST_LOSS_SCALE}, got {scale}; others don't divide out"
        )
    if values["seed"] >= 2**63:
        raise ConfigurationError(f"seed: expected a number below 2**63, got {values['seed']}")


def _check_text(name: str, text: str) -> None:
    """Raises ConfigurationError for what can't be a file's name, or can't be stored in config.toml."""
    if not text:
        raise ConfigurationError(f"{name}: expected a word or a name, got nothing; leave the option out")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ConfigurationError(f"{name}: expected text in UTF-8, got {text!r}; rename that file or folder") from None
    if "\0" in text:
        raise ConfigurationError(f"{name}: expected text without a zero byte, got {text!r}; leave it out")
