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

_MODULES = {
    "distsgd.nn.layers.activation": ("ACTIVATIONS", "Activation"),
    "distsgd.nn.layers.base": ("Backward", "Layer", "StatefulLayer"),
    "distsgd.nn.layers.convolution": ("Convolution",),
    "distsgd.nn.layers.dense": ("Dense", "Flatten"),
    "distsgd.nn.layers.dropout": ("Dropout",),
    "distsgd.nn.layers.normalization": ("BatchNormalization",),
    "distsgd.nn.layers.pooling": ("AveragePooling", "GlobalAveragePooling", "MaxPooling"),
    "distsgd.nn.layers.residual": ("Residual", "Subsample"),
    "distsgd.nn.layers.sequential": ("Sequential",),
}
if not TYPE_CHECKING:
    __getattr__ = lazily(__name__, {name: module for module, names in _MODULES.items() for name in names})
