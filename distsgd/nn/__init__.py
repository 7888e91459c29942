"""Models: layers, losses, initializers and the objective that training minimizes."""

from typing import TYPE_CHECKING

from distsgd.core.lazy import lazily

if TYPE_CHECKING:
    from distsgd.core.layout import Layout, Views
    from distsgd.nn.batch import Batch
    from distsgd.nn.initializers import Constant, Glorot, He, Initializer, LeCun, Normal, Uniform, Zeros
    from distsgd.nn.layers import (
        Activation,
        AveragePooling,
        Backward,
        BatchNormalization,
        Convolution,
        Dense,
        Dropout,
        Flatten,
        GlobalAveragePooling,
        Layer,
        MaxPooling,
        Residual,
        Sequential,
        StatefulLayer,
        Subsample,
    )
    from distsgd.nn.losses import BinaryCrossEntropy, Loss, SoftmaxCrossEntropy, SquaredError
    from distsgd.nn.objective import FunctionObjective, LossAndGrad, Objective, Supervised

__all__ = [
    "Activation", "AveragePooling", "Backward", "Batch", "BatchNormalization", "BinaryCrossEntropy", "Constant",
    "Convolution", "Dense", "Dropout", "Flatten", "FunctionObjective", "GlobalAveragePooling", "Glorot", "He",
    "Initializer", "Layer", "Layout", "LeCun", "Loss", "LossAndGrad", "MaxPooling", "Normal", "Objective", "Residual",
    "Sequential", "SoftmaxCrossEntropy", "SquaredError", "StatefulLayer", "Subsample", "Supervised", "Uniform", "Views",
    "Zeros",
]  # fmt: skip

_WHERE = ("core.layout", "nn.batch", "nn.initializers", "nn.layers", "nn.losses", "nn.objective")
if not TYPE_CHECKING:
    __getattr__ = lazily(__name__, __all__, [f"distsgd.{module}" for module in _WHERE])
