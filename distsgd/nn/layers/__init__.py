"""The layers that models are made of."""

from typing import TYPE_CHECKING

from distsgd.core.lazy import lazily

if TYPE_CHECKING:
    from distsgd.nn.layers.activation import ACTIVATIONS, Activation
    from distsgd.nn.layers.base import Backward, Layer, StatefulLayer
    from distsgd.nn.layers.convolution import Convolution
    from distsgd.nn.layers.dense import Dense, Flatten
    from distsgd.nn.layers.dropout import Dropout
    from distsgd.nn.layers.normalization import BatchNormalization
    from distsgd.nn.layers.pooling import AveragePooling, GlobalAveragePooling, MaxPooling
    from distsgd.nn.layers.residual import Residual, Subsample
    from distsgd.nn.layers.sequential import Sequential

__all__ = [
    "ACTIVATIONS", "Activation", "AveragePooling", "Backward", "BatchNormalization", "Convolution", "Dense", "Dropout",
    "Flatten", "GlobalAveragePooling", "Layer", "MaxPooling", "Residual", "Sequential", "StatefulLayer", "Subsample",
]  # fmt: skip

_KINDS = ("base", "activation", "dense", "dropout", "sequential", "normalization", "pooling", "convolution", "residual")
if not TYPE_CHECKING:
    __getattr__ = lazily(__name__, __all__, [f"{__name__}.{kind}" for kind in _KINDS])
