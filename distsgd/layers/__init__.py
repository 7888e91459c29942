"""The layers that models are made of."""

from distsgd.layers.activation import ACTIVATIONS, Activation
from distsgd.layers.base import Backward, Layer
from distsgd.layers.convolution import Convolution
from distsgd.layers.dense import Dense, Flatten
from distsgd.layers.dropout import Dropout
from distsgd.layers.normalization import BatchNormalization
from distsgd.layers.pooling import AveragePooling, GlobalAveragePooling, MaxPooling
from distsgd.layers.residual import Residual, Subsample
from distsgd.layers.sequential import Sequential

__all__ = [
    "ACTIVATIONS", "Activation", "AveragePooling", "Backward", "BatchNormalization", "Convolution", "Dense",
    "Dropout", "Flatten", "GlobalAveragePooling", "Layer", "MaxPooling", "Residual", "Sequential", "Subsample",
]  # fmt: skip
