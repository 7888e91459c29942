"""The layers that models are made of."""

from distsgd.layers.activation import ACTIVATIONS, Activation
from distsgd.layers.base import Backward, Layer
from distsgd.layers.dense import Dense
from distsgd.layers.dropout import Dropout
from distsgd.layers.normalization import BatchNormalization
from distsgd.layers.sequential import Sequential

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Backward",
    "BatchNormalization",
    "Dense",
    "Dropout",
    "Layer",
    "Sequential",
]
