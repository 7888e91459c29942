"""distsgd: data-parallel SGD over MPI whose result does not depend on how many processes computed it.

Public names are imported when they are first used, so that `import distsgd` stays cheap on a thousand ranks.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "SGD": "optimizers", "Momentum": "optimizers", "Nesterov": "optimizers", "Adagrad": "optimizers",
    "RMSprop": "optimizers", "Adam": "optimizers", "AdamW": "optimizers", "linear_scaling": "optimizers",
    "Activation": "layers", "BatchNormalization": "layers", "Dense": "layers", "Dropout": "layers",
    "Layer": "layers", "Sequential": "layers",
    "SoftmaxCrossEntropy": "losses", "BinaryCrossEntropy": "losses", "SquaredError": "losses", "Loss": "losses",
    "Glorot": "initializers", "He": "initializers", "LeCun": "initializers", "Zeros": "initializers",
    "Constant": "initializers", "Normal": "initializers", "Uniform": "initializers",
    "Batch": "batch", "Views": "layout", "Layout": "layout",
    "Custom": "objective", "LossAndGrad": "objective",
    "Callback": "callbacks", "build_schedule": "schedules",
    "load_mnist": "datasets", "open_dataset": "datasets",
    "fit": "fitting", "Result": "fitting",
}  # fmt: skip

if TYPE_CHECKING:
    from distsgd.batch import Batch as Batch
    from distsgd.callbacks import Callback as Callback
    from distsgd.datasets import load_mnist as load_mnist
    from distsgd.datasets import open_dataset as open_dataset
    from distsgd.fitting import Result as Result
    from distsgd.fitting import fit as fit
    from distsgd.initializers import Constant as Constant
    from distsgd.initializers import Glorot as Glorot
    from distsgd.initializers import He as He
    from distsgd.initializers import LeCun as LeCun
    from distsgd.initializers import Normal as Normal
    from distsgd.initializers import Uniform as Uniform
    from distsgd.initializers import Zeros as Zeros
    from distsgd.layers import Activation as Activation
    from distsgd.layers import BatchNormalization as BatchNormalization
    from distsgd.layers import Dense as Dense
    from distsgd.layers import Dropout as Dropout
    from distsgd.layers import Layer as Layer
    from distsgd.layers import Sequential as Sequential
    from distsgd.layout import Layout as Layout
    from distsgd.layout import Views as Views
    from distsgd.losses import BinaryCrossEntropy as BinaryCrossEntropy
    from distsgd.losses import Loss as Loss
    from distsgd.losses import SoftmaxCrossEntropy as SoftmaxCrossEntropy
    from distsgd.losses import SquaredError as SquaredError
    from distsgd.objective import Custom as Custom
    from distsgd.objective import LossAndGrad as LossAndGrad
    from distsgd.optimizers import SGD as SGD
    from distsgd.optimizers import Adagrad as Adagrad
    from distsgd.optimizers import Adam as Adam
    from distsgd.optimizers import AdamW as AdamW
    from distsgd.optimizers import Momentum as Momentum
    from distsgd.optimizers import Nesterov as Nesterov
    from distsgd.optimizers import RMSprop as RMSprop
    from distsgd.optimizers import linear_scaling as linear_scaling
    from distsgd.schedules import build_schedule as build_schedule

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'distsgd' has no attribute {name!r}")
    value = getattr(import_module(f"distsgd.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
