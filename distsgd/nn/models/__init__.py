"""The models of the command line: from a name or a list of layers, and a few options, to layers."""

from __future__ import annotations

from collections.abc import Mapping

from distsgd.core.components import wrong_name
from distsgd.core.device import Shape
from distsgd.nn.layers import Layer
from distsgd.nn.models.options import ModelBuilder, ModelOptions, accepted_shape
from distsgd.nn.models.plain import mlp, softmax


def _network(name: str) -> ModelBuilder:
    """The builder of this convolutional network, which is imported when it is used."""

    def build(input_shape: Shape, outputs: int, options: ModelOptions) -> Layer:
        from distsgd.nn.models.networks import NETWORKS

        return NETWORKS[name](input_shape, outputs, options)

    return build


MODELS: Mapping[str, ModelBuilder] = {
    "softmax": softmax,
    "mlp": mlp,
    **{name: _network(name) for name in ("lenet", "network3", "lasagne-cnn", "resnet20")},
}


def build_model(model: str, input_shape: Shape, outputs: int, options: ModelOptions) -> Layer:
    """The model of this name, or of this list of layers. Raises ConfigurationError with one sentence."""
    if model in MODELS:
        return MODELS[model](input_shape, outputs, options)
    from distsgd.nn.models.text import from_text, is_text

    if is_text(model):
        return from_text(model, input_shape, outputs, options)
    others = ", a list of layers such as 'conv 20 5x5, pool 2, relu, dense 10', or file.py:function"
    raise wrong_name("model", model, MODELS, others)


__all__ = ["MODELS", "ModelBuilder", "ModelOptions", "accepted_shape", "build_model"]
