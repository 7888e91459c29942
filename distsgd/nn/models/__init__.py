"""The models of the command line: from a name or a list of layers, and a few options, to layers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from distsgd.core.device import Shape
from distsgd.core.errors import ConfigurationError
from distsgd.nn.layers import Layer
from distsgd.nn.models.describe import describe
from distsgd.nn.models.networks import LASAGNE, LENET, NETWORK3, resnet20
from distsgd.nn.models.options import ModelBuilder, ModelOptions
from distsgd.nn.models.plain import mlp, softmax
from distsgd.nn.models.shapes import accepted_shape
from distsgd.nn.models.text import from_text, is_text

MODELS: Mapping[str, ModelBuilder] = {
    "softmax": softmax,
    "mlp": mlp,
    "lenet": partial(from_text, LENET),
    "network3": partial(from_text, NETWORK3),
    "lasagne-cnn": partial(from_text, LASAGNE),
    "resnet20": resnet20,
}


def build_model(model: str, input_shape: Shape, outputs: int, options: ModelOptions) -> Layer:
    """The model of this name, or of this list of layers. Raises ConfigurationError with one sentence."""
    if model in MODELS:
        return MODELS[model](input_shape, outputs, options)
    if is_text(model):
        return from_text(model, input_shape, outputs, options)
    raise ConfigurationError(
        f"model: expected one of {', '.join(MODELS)}, a list of layers such as 'conv 20 5x5, pool 2, relu, dense 10', "
        f"or file.py:function, got {model!r}"
    )


__all__ = ["MODELS", "ModelBuilder", "ModelOptions", "accepted_shape", "build_model", "describe"]
