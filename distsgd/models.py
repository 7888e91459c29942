"""The named models: from a few options to layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

from distsgd.device import Shape
from distsgd.errors import ConfigurationError
from distsgd.initializers import Initializer, parse_initializer
from distsgd.layers import Activation, BatchNormalization, Dense, Dropout, Layer, Sequential


@dataclass(frozen=True)
class ModelOptions:
    """What a named model can be told; `softmax` has no hidden layers and takes the initializers and the bias alone.

    hidden               units of each hidden layer
    activation           behind each hidden layer
    dropout              rate behind each hidden activation; 0 for none
    batch_norm           batch normalization between each hidden layer and its activation
    weight_initializer   such as "glorot(4)"; None for He's with ReLU and its relatives, Glorot's with the others, and
                         zeros in `softmax`, whose loss is convex
    output_activation    linear, or sigmoid for outputs between 0 and 1 under a squared error; the losses with "cross-
                         entropy" in their names take linear outputs
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
        # What the layers check themselves is checked here too, so that a wrong option is told before data are read.
        Activation(self.activation)
        Dropout(self.dropout)
        for text in (self.weight_initializer, self.bias_initializer):
            if text is not None:
                parse_initializer(text)

    def weights(self, default: str) -> Initializer:
        """The weights' initializer, `default` where none is chosen."""
        return parse_initializer(self.weight_initializer or default)

    @property
    def biases(self) -> Initializer:
        """The biases' initializer."""
        return parse_initializer(self.bias_initializer)


ModelBuilder = Callable[[Shape, int, ModelOptions], Layer]
_HE_ACTIVATIONS = ("relu", "leaky-relu", "gelu", "softplus")


def softmax(input_shape: Shape, outputs: int, options: ModelOptions) -> Layer:
    """One dense layer: softmax regression, logistic regression or linear regression, as the loss has it."""
    fan_in = prod(input_shape)
    return Sequential([Dense(fan_in, outputs, options.bias, options.weights("zeros"), options.biases)])


def mlp(input_shape: Shape, outputs: int, options: ModelOptions) -> Layer:
    """Dense, [batch normalization,] activation[, dropout] for each hidden layer, then dense to the outputs.

    Examples are taken flat, as (product of input_shape,).
    """
    weights = options.weights("he" if options.activation in _HE_ACTIVATIONS else "glorot")
    layers: list[Layer] = []
    fan_in = prod(input_shape)
    for units in options.hidden:
        layers.append(Dense(fan_in, units, options.bias, weights, options.biases))
        if options.batch_norm:
            layers.append(BatchNormalization(units))
        layers.append(Activation(options.activation))
        if options.dropout:
            layers.append(Dropout(options.dropout))
        fan_in = units
    layers.append(Dense(fan_in, outputs, options.bias, weights, options.biases))
    if options.output_activation != "linear":
        layers.append(Activation(options.output_activation))
    return Sequential(layers)


MODELS: Mapping[str, ModelBuilder] = {"softmax": softmax, "mlp": mlp}


def accepted_shape(layer: Layer, example_shape: Shape) -> Shape:
    """The shape in which `layer` takes examples of `example_shape`: theirs, or else flat.

    Raises ConfigurationError, the layer's own for their shape, where it takes neither.
    """
    try:
        layer.output_shape(example_shape)
        return example_shape
    except ConfigurationError as error:
        flat = (prod(example_shape),)
        try:
            layer.output_shape(flat)
        except ConfigurationError:
            raise error from None
        return flat


def describe(layer: Layer) -> str:
    """The layer in one line: the widths of its dense layers and what else it has, such as `64-128-10 relu`."""
    widths: list[int] = []
    others: dict[str, None] = {}  # an ordered set
    for part in _flatten(layer):
        if isinstance(part, Dense):
            widths += [part.fan_out] if widths else [part.fan_in, part.fan_out]
        elif isinstance(part, Activation):
            others[part.name] = None
        elif isinstance(part, Dropout):
            others[f"dropout {part.rate:g}"] = None
        else:
            others[part.kind or type(part).__name__.lower()] = None
    return " ".join(filter(None, ["-".join(map(str, widths)), *others]))


def _flatten(layer: Layer) -> list[Layer]:
    if isinstance(layer, Sequential):
        return [part for inside in layer.layers for part in _flatten(inside)]
    return [layer]
