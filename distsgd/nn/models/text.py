"""Networks as text: "conv 20 5x5, pool 2, relu, dense 100, relu, dense 10"."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from math import prod

from distsgd.core.components import suggestion, wrong_name
from distsgd.core.device import Shape
from distsgd.core.errors import ConfigurationError
from distsgd.nn import layers as nn
from distsgd.nn.initializers import fans
from distsgd.nn.models.initial_values import INITIAL_VALUES, InitialValues, Place, by_activation
from distsgd.nn.models.options import ModelOptions, as_images

_NUMBER = r"\d{1,9}"
_BOTH = rf"{_NUMBER}(?:x{_NUMBER})?"
_SIZE = rf"(?P<size>{_BOTH})"
_STRIDE = rf"(?: stride (?P<stride>{_BOTH}))?"
_RATE = r"(?P<rate>(?:\d{0,9}\.)?\d{1,20})"
_LAYERS = 1000
"""Layers of a list; the time that a network takes to be made grows faster than their number."""


@dataclass(frozen=True)
class Word:
    """A kind of layer: the pattern of its arguments, their usage text, and how to make it from the match."""

    pattern: str
    usage: str
    make: Callable[[Mapping[str, str | None], Shape], nn.Layer]


Part = tuple[str, Mapping[str, str | None]]
"""A layer's name in text, and its arguments by name."""


def _pair(text: str | None) -> tuple[int, int]:
    numbers = [int(number) for number in (text or "1").split("x")]
    return numbers[0], numbers[-1]


def _conv(found: Mapping[str, str | None], shape: Shape) -> nn.Layer:
    padding = found["padding"] or "valid"
    return nn.Convolution(
        shape[0] if len(shape) == 3 else 1,
        int(found["filters"] or 0),
        _pair(found["size"]),
        _pair(found["stride"]),
        int(padding.removeprefix("padding ")) if padding.startswith("padding") else padding,
    )


def _activation(name: str) -> Word:
    return Word("", "", lambda found, shape: nn.Activation(name))


def _pooling(kind: type[nn.MaxPooling] | type[nn.AveragePooling]) -> Word:
    def make(found: Mapping[str, str | None], shape: Shape) -> nn.Layer:
        return kind(_pair(found["size"]), None if found["stride"] is None else _pair(found["stride"]))

    return Word(_SIZE + _STRIDE, "SIZE [stride N]", make)


WORDS: Mapping[str, Word] = {
    "conv": Word(
        rf"(?P<filters>{_NUMBER}) {_SIZE}(?: (?P<padding>same|valid|padding {_NUMBER}))?{_STRIDE}",
        "FILTERS HEIGHTxWIDTH [same | padding N] [stride N]",
        _conv,
    ),
    "pool": _pooling(nn.MaxPooling),
    "average-pool": _pooling(nn.AveragePooling),
    "global-pool": Word("", "", lambda f, _: nn.GlobalAveragePooling()),
    "batch-norm": Word("", "", lambda f, shape: nn.BatchNormalization(shape[0])),
    "dropout": Word(_RATE, "RATE", lambda f, _: nn.Dropout(float(f["rate"] or 0))),
    "channel-dropout": Word(_RATE, "RATE", lambda f, _: nn.Dropout(float(f["rate"] or 0), channels=True)),
    "flatten": Word("", "", lambda f, _: nn.Flatten()),
    "dense": Word(rf"(?P<units>{_NUMBER})?", "[UNITS]", lambda f, shape: nn.Dense(prod(shape), int(f["units"] or 0))),
    **{name: _activation(name) for name in nn.ACTIVATIONS},
}
"""The layers that a list can be made of."""


def is_text(model: str) -> bool:
    """Whether this means a list of layers, right or wrong, rather than a name."""
    name, _, layers = _words(model).rpartition(":")
    return "," in model or name in INITIAL_VALUES or layers.strip().partition(" ")[0] in WORDS


def from_text(text: str, input_shape: Shape, outputs: int, options: ModelOptions) -> nn.Layer:
    """The network that `text` lists, layer by layer with commas between them: see WORDS.

    Examples of shape (height, width) are images of one channel. In front of `dense`, images are flattened; `dense`
    without a number has as many units as the data needs outputs. Initial values are He's in front of a ReLU or one of
    its relatives, else Glorot's, without biases; `NAME: list` takes those of lenet, network3 or lasagne-cnn; the
    options for initializers go before both. Raises ConfigurationError with one sentence.
    """
    name, listed, rest = text.partition(":")
    options.check_skipped(name if listed else text)
    if listed and name.strip() not in INITIAL_VALUES:
        raise wrong_name("model", name.strip(), INITIAL_VALUES, " in front of a list of layers and a colon")
    initial_values = INITIAL_VALUES[name.strip()] if listed else by_activation
    listing = (rest if listed else text).split(",")
    if len(listing) > _LAYERS:
        raise ConfigurationError(f"model: expected at most {_LAYERS} layers, got {len(listing)}; give fewer")
    parts = [_parse(part) for part in listing]
    shape = as_images(input_shape)
    layers: list[nn.Layer] = []
    for index, (word, found) in enumerate(parts):
        if word == "dense" and len(shape) > 1:
            layers.append(nn.Flatten())
            shape = layers[-1].output_shape(shape)
        if word == "dense" and found["units"] is None:
            found = {**found, "units": str(outputs)}
        try:
            layer = WORDS[word].make(found, shape)
            if isinstance(layer, nn.Convolution | nn.Dense):
                layer = _with_initial_values(layer, parts[index + 1 :], initial_values, options)
            layers.append(layer)
            shape = layer.output_shape(shape)
        except ConfigurationError as error:
            raise ConfigurationError(f"model: layer {index + 1}, {word}: {error}") from None
    return nn.Sequential(layers)


def _words(text: str) -> str:
    return " ".join(text.lower().replace("_", "-").split())


def _parse(text: str) -> Part:
    """One layer's words. Raises ConfigurationError with the word, what was expected, and what there is."""
    words = _words(text)
    name, _, arguments = words.partition(" ")
    if name not in WORDS:
        raise ConfigurationError(
            f"model: expected layers such as 'conv 20 5x5, pool 2, relu, dense 10', made of {', '.join(WORDS)}, "
            f"got {words!r}{suggestion(name, WORDS)}"
        )
    found = re.fullmatch(WORDS[name].pattern, arguments)
    if found is None:
        usage = WORDS[name].usage
        raise ConfigurationError(
            f"model: expected {name} {usage}, got {words!r}" if usage else
            f"model: expected {name} with nothing after it, got {words!r}; put a comma between layers"
        )  # fmt: skip
    return name, found.groupdict()


def _with_initial_values(
    layer: nn.Convolution | nn.Dense, later: Sequence[Part], initial_values: InitialValues, options: ModelOptions
) -> nn.Layer:
    """The layer with its initializers, and with biases by the options."""
    following = list(takewhile(lambda part: part[0] not in ("conv", "dense"), later))
    last = len(following) == len(later)
    activation = next((word for word, _ in following if word in nn.ACTIVATIONS), None)
    pooled = next((prod(_pair(found["size"])) for word, found in following if word.endswith("pool") and found), 1)
    fan_in, fan_out = fans(layer.parameter_shapes()["weight"])
    weights, biases = initial_values(Place(fan_in, max(fan_out // pooled, 1), activation, last))
    if options.weight_initializer is not None:
        weights = options.weights("")
    if options.bias_initializer != "zeros":
        biases = options.biases
    return replace(layer, bias=options.bias, weight_initializer=weights, bias_initializer=biases)
