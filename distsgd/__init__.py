"""distsgd: data-parallel SGD over MPI whose result does not depend on how many processes computed it.

Public names are imported when they are first used, so that `import distsgd` stays cheap on a thousand ranks.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from distsgd.core.version import __version__

_WHERE = {
    "SGD": "optim.optimizers", "Momentum": "optim.optimizers", "Nesterov": "optim.optimizers",
    "Adagrad": "optim.optimizers", "RMSprop": "optim.optimizers", "Adam": "optim.optimizers",
    "AdamW": "optim.optimizers", "linear_scaling": "optim.optimizers",
    "Activation": "nn.layers", "BatchNormalization": "nn.layers", "Dense": "nn.layers", "Dropout": "nn.layers",
    "Layer": "nn.layers", "Sequential": "nn.layers",
    "SoftmaxCrossEntropy": "nn.losses", "BinaryCrossEntropy": "nn.losses",
    "SquaredError": "nn.losses", "Loss": "nn.losses",
    "Glorot": "nn.initializers", "He": "nn.initializers", "LeCun": "nn.initializers", "Zeros": "nn.initializers",
    "Constant": "nn.initializers", "Normal": "nn.initializers", "Uniform": "nn.initializers",
    "Batch": "nn.batch", "Views": "core.layout", "Layout": "core.layout",
    "FunctionObjective": "nn.objective", "LossAndGrad": "nn.objective",
    "Callback": "training.callbacks", "build_schedule": "optim.schedules",
    "load_mnist": "data.sources.datasets", "open_dataset": "data.sources.datasets",
    "fit": "run.fit", "Result": "run.fit",
}  # fmt: skip

_FACES = ("data", "metrics", "nn", "optim", "testing")
"""Modules that are imported when they are first used, as the names are."""

if TYPE_CHECKING:
    from distsgd import data as data
    from distsgd import metrics as metrics
    from distsgd import nn as nn
    from distsgd import optim as optim
    from distsgd import testing as testing
    from distsgd.core.layout import Layout as Layout
    from distsgd.core.layout import Views as Views
    from distsgd.data.sources.datasets import load_mnist as load_mnist
    from distsgd.data.sources.datasets import open_dataset as open_dataset
    from distsgd.nn.batch import Batch as Batch
    from distsgd.nn.initializers import Constant as Constant
    from distsgd.nn.initializers import Glorot as Glorot
    from distsgd.nn.initializers import He as He
    from distsgd.nn.initializers import LeCun as LeCun
    from distsgd.nn.initializers import Normal as Normal
    from distsgd.nn.initializers import Uniform as Uniform
    from distsgd.nn.initializers import Zeros as Zeros
    from distsgd.nn.layers import Activation as Activation
    from distsgd.nn.layers import BatchNormalization as BatchNormalization
    from distsgd.nn.layers import Dense as Dense
    from distsgd.nn.layers import Dropout as Dropout
    from distsgd.nn.layers import Layer as Layer
    from distsgd.nn.layers import Sequential as Sequential
    from distsgd.nn.losses import BinaryCrossEntropy as BinaryCrossEntropy
    from distsgd.nn.losses import Loss as Loss
    from distsgd.nn.losses import SoftmaxCrossEntropy as SoftmaxCrossEntropy
    from distsgd.nn.losses import SquaredError as SquaredError
    from distsgd.nn.objective import FunctionObjective as FunctionObjective
    from distsgd.nn.objective import LossAndGrad as LossAndGrad
    from distsgd.optim.optimizers import SGD as SGD
    from distsgd.optim.optimizers import Adagrad as Adagrad
    from distsgd.optim.optimizers import Adam as Adam
    from distsgd.optim.optimizers import AdamW as AdamW
    from distsgd.optim.optimizers import Momentum as Momentum
    from distsgd.optim.optimizers import Nesterov as Nesterov
    from distsgd.optim.optimizers import RMSprop as RMSprop
    from distsgd.optim.optimizers import linear_scaling as linear_scaling
    from distsgd.optim.schedules import build_schedule as build_schedule
    from distsgd.run.fit import Result as Result
    from distsgd.run.fit import fit as fit
    from distsgd.training.callbacks import Callback as Callback

__all__ = ["__version__", *_FACES, *_WHERE]


def __getattr__(name: str) -> Any:
    if name in _FACES:
        return import_module(f"distsgd.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'distsgd' has no attribute {name!r}")
    value = getattr(import_module(f"distsgd.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
