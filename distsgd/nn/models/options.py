"""The options of named models, and the shape in which a model takes examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from distsgd.core.device import Shape
from distsgd.core.errors import ConfigurationError
from distsgd.nn import layers as nn
from distsgd.nn.initializers import Initializer, parse_initializer

HE_ACTIVATIONS = ("relu", "leaky-relu", "gelu", "softplus")
"""Activations before which weights are He's by default."""


@dataclass(frozen=True)
class ModelOptions:
    """The options of a named model; all but `mlp` take the initializers and the bias alone.

    Parameters
    ----------
    hidden
        Units of each hidden layer.
    activation
        The activation after each hidden layer.
    dropout
        The rate of dropout after each hidden activation; 0 for none.
    batch_norm
        Whether there is batch normalization between each hidden layer and its activation.
    weight_initializer
        Such as "glorot(4)". None for He's with ReLU and its relatives, Glorot's with the others, zeros in `softmax`,
        whose loss is convex, and the author's own in a published network.
    bias_initializer
        Such as "zeros", which also stands for a published network's own.
    bias
        Whether convolutions and dense layers have biases.
    output_activation
        linear, or sigmoid for outputs between 0 and 1 under a squared error; the losses with "cross-entropy" in their
        names take linear outputs.
    """

    hidden: tuple[int, ...] = (128, 128)
    activation: str = "relu"
    dropout: float = 0.0
    batch_norm: bool = False
    weight_initializer: str | None = None
    bias_initializer: str = "zeros"
    bias: bool = True
    output_activation: str = "linear"

    def __post_init__(self) -> None:
        if any(units < 1 for units in self.hidden):
            raise ConfigurationError(f"hidden: expected at least one unit in each layer, got {self.hidden}")
        if self.output_activation not in ("linear", "sigmoid"):
            raise ConfigurationError(f"output activation: expected linear or sigmoid, got {self.output_activation!r}")
        # What the layers check themselves is checked here too: a wrong option is reported before data are read.
        nn.Activation(self.activation)
        if self.dropout:
            nn.Dropout(self.dropout)
        for text in (self.weight_initializer, self.bias_initializer):
            if text is not None:
                parse_initializer(text)

    def check_skipped(self, model: str) -> None:
        """Raises ConfigurationError where an option of mlp's alone is set, for a model that would ignore it."""
        for name in ("hidden", "activation", "dropout", "batch_norm", "output_activation"):
            if getattr(self, name) != getattr(ModelOptions, name):
                raise ConfigurationError(
                    f"{name} is an option of mlp, got it with {model!r}; write it in a list of layers, such as "
                    "'conv 20 5x5, batch-norm, relu, dropout 0.5, dense 10'"
                )

    def weights(self, default: str) -> Initializer:
        """The weights' initializer, `default` where none is chosen."""
        return parse_initializer(self.weight_initializer or default)

    @property
    def biases(self) -> Initializer:
        """The biases' initializer."""
        return parse_initializer(self.bias_initializer)


ModelBuilder = Callable[[Shape, int, ModelOptions], nn.Layer]
"""(shape of an example, number of outputs, options) -> the model."""


def as_images(shape: Shape) -> Shape:
    """(height, width) as (1, height, width), images of one channel; any other shape as it is."""
    return (1, *shape) if len(shape) == 2 else shape


def accepted_shape(layer: nn.Layer, example_shape: Shape) -> Shape:
    """The shape in which `layer` takes examples of `example_shape`: theirs, or images of one channel, or else flat.

    Raises ConfigurationError, the layer's own for their shape, where it takes none of them.
    """
    images = as_images(example_shape)
    problem: ConfigurationError | None = None
    for shape in dict.fromkeys((example_shape, images, (prod(example_shape),))):
        try:
            layer.output_shape(shape)
            return shape
        except ConfigurationError as error:
            problem = problem or error
    assert problem is not None
    raise problem
