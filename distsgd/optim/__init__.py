"""Optimizers, learning-rate schedules and regularization: how a step changes the parameters."""

from distsgd.optim.layerwise import LAMB, LARS, LayerwiseOptimizer
from distsgd.optim.optimizers import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Momentum,
    Nesterov,
    Optimizer,
    RMSprop,
    Scalars,
    Slots,
)
from distsgd.optim.registry import linear_scaling
from distsgd.optim.regularization import Regularization
from distsgd.optim.schedules import (
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    InverseTime,
    Schedule,
    Step,
    Warmup,
    build_schedule,
)

__all__ = [
    "LAMB", "LARS", "SGD", "Adagrad", "Adam", "AdamW", "Constant", "Cosine", "Exponential", "InverseSqrt",
    "InverseTime", "LayerwiseOptimizer", "Momentum", "Nesterov", "Optimizer", "RMSprop", "Regularization", "Scalars",
    "Schedule", "Slots", "Step", "Warmup", "build_schedule", "linear_scaling",
]  # fmt: skip
