"""Initial values of weights and biases for a list of layers: by the activation, or as a published network has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt

from distsgd.nn.initializers import Glorot, He, Initializer, Normal, Uniform, Zeros
from distsgd.nn.models.options import HE_ACTIVATIONS


@dataclass(frozen=True)
class Place:
    """What initial values may depend on. Each position of a kernel counts as an input, and as an output.

    Parameters
    ----------
    fan_in
        channels · kh · kw, or the inputs of a dense layer.
    fan_out
        filters · kh · kw, divided by the size of the next pooling window and rounded down, at least 1; or the units of
        a dense layer.
    activation
        The next one before another conv or dense, None where there is none.
    last
        Whether no conv or dense follows.
    """

    fan_in: int
    fan_out: int
    activation: str | None
    last: bool


InitialValues = Callable[[Place], tuple[Initializer, Initializer]]
"""The initializers of weights and biases at a place."""


def by_activation(place: Place) -> tuple[Initializer, Initializer]:
    """He's weights before a ReLU or one of its relatives, else Glorot's; no biases."""
    return He() if place.activation in HE_ACTIVATIONS else Glorot(), Zeros()


def lenet(place: Place) -> tuple[Initializer, Initializer]:
    """Uniform up to √(6 / (fan_in + fan_out)), zeros in the last layer; no biases. Theano's tutorial on LeNet."""
    if place.last:
        return Zeros(), Zeros()
    bound = sqrt(6.0 / (place.fan_in + place.fan_out))
    return Uniform(-bound, bound), Zeros()


def network3(place: Place) -> tuple[Initializer, Initializer]:
    """Normal of variance 1 / fan_out, biases normal of variance 1, zeros in the last layer.

    network3.py in Nielsen, "Neural networks and deep learning", Determination Press, 2015.
    """
    if place.last:
        return Zeros(), Zeros()
    return Normal(sqrt(1.0 / place.fan_out)), Normal(1.0)


def lasagne(place: Place) -> tuple[Initializer, Initializer]:
    """Glorot's everywhere; no biases. Lasagne's defaults."""
    return Glorot(), Zeros()


INITIAL_VALUES: Mapping[str, InitialValues] = {"lenet": lenet, "network3": network3, "lasagne-cnn": lasagne}
"""What `NAME: list of layers` takes from the network of that name."""
