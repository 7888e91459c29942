"""Activation functions: elementwise, without parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import pi, sqrt
from typing import ClassVar

import numpy as np

from distsgd.core.components import check_name
from distsgd.core.device import Array, Shape
from distsgd.core.kernels import kernels_for
from distsgd.core.layout import Views
from distsgd.nn.batch import Batch
from distsgd.nn.layers.base import Backward, Layer

LEAKY_SLOPE = 0.01
_GELU_SCALE = sqrt(2.0 / pi)
_GELU_CUBIC = 0.044715


def linear(x: Array) -> tuple[Array, Backward]:
    """y := x."""
    return x, lambda dy, grads: dy


def sigmoid(x: Array) -> tuple[Array, Backward]:
    """y := 1 / (1 + exp(-x)), dx := dy y (1 - y).

    Computed as (1 + tanh(x/2)) / 2, which can't overflow and has fast kernels; a y below the dtype's resolution of 1
    comes out as 0.
    """
    y: Array = np.multiply(x, 0.5)
    np.tanh(y, out=y)
    y += 1.0
    y *= 0.5

    def backward(dy: Array, grads: Views) -> Array:
        dx: Array = np.subtract(1.0, y)
        dx *= y
        dx *= dy
        return dx

    return y, backward


def tanh(x: Array) -> tuple[Array, Backward]:
    """y := tanh(x), dx := dy (1 - y²)."""
    y: Array = np.tanh(x)

    def backward(dy: Array, grads: Views) -> Array:
        dx: Array = np.square(y)
        np.subtract(1.0, dx, out=dx)
        dx *= dy
        return dx

    return y, backward


def relu(x: Array) -> tuple[Array, Backward]:
    """y := max(x, 0), dx := dy where y > 0, else 0."""
    y: Array = kernels_for(x).positive(x)
    return y, lambda dy, grads: kernels_for(y).masked(dy, y)  # of y: what x lay in is free for the next layer


def leaky_relu(x: Array) -> tuple[Array, Backward]:
    """y := x where x > 0, else 0.01 x; dx := dy where x > 0, else 0.01 dy.

    Maas, Hannun & Ng, "Rectifier nonlinearities improve neural network acoustic models", ICML 2013.
    """
    y: Array = np.multiply(x, LEAKY_SLOPE)
    np.maximum(x, y, out=y)

    def backward(dy: Array, grads: Views) -> Array:
        dx: Array = np.maximum(y > 0, LEAKY_SLOPE, dtype=dy.dtype)  # exactly 1 or the slope
        dx *= dy
        return dx

    return y, backward


def gelu(x: Array) -> tuple[Array, Backward]:
    """y := x (1 + t) / 2 with t := tanh(√(2/π) (x + 0.044715 x³)), the authors' tanh form: NumPy has no erf.

    dx := dy ((1 + t) + x (1 - t²) √(2/π) (1 + 3·0.044715 x²)) / 2. It differs from the form with erf by less than
    0.0005. Hendrycks & Gimpel, "Gaussian error linear units", arXiv:1606.08415, 2016.
    """
    squared: Array = np.square(x)
    t: Array = squared * _GELU_CUBIC
    t += 1.0
    t *= x
    t *= _GELU_SCALE
    np.tanh(t, out=t)
    half: Array = np.multiply(t, 0.5)
    half += 0.5

    def backward(dy: Array, grads: Views) -> Array:
        dx: Array = np.multiply(squared, 1.5 * _GELU_CUBIC * _GELU_SCALE)
        dx += 0.5 * _GELU_SCALE
        dx *= x
        dx *= 1.0 - np.square(t)
        dx += half
        dx *= dy
        return dx

    return x * half, backward


def softplus(x: Array) -> tuple[Array, Backward]:
    """y := log(1 + exp(x)), dx := dy / (1 + exp(-x)) = dy (1 - exp(-y)).

    Computed as max(x, 0) + log(1 + exp(-|x|)), which can't overflow.
    """
    y: Array = np.abs(x)
    np.negative(y, out=y)
    np.exp(y, out=y)
    np.log1p(y, out=y)
    y += kernels_for(x).positive(x)

    def backward(dy: Array, grads: Views) -> Array:
        dx: Array = np.negative(y)
        np.expm1(dx, out=dx)
        np.negative(dx, out=dx)
        dx *= dy
        return dx

    return y, backward


ACTIVATIONS: Mapping[str, Callable[[Array], tuple[Array, Backward]]] = {
    "linear": linear,
    "sigmoid": sigmoid,
    "tanh": tanh,
    "relu": relu,
    "leaky-relu": leaky_relu,
    "gelu": gelu,
    "softplus": softplus,
}


@dataclass(frozen=True)
class Activation(Layer):
    """An activation function, on examples of any shape.

    Parameters
    ----------
    name : str
        A name in ACTIVATIONS: linear, sigmoid, tanh, relu, leaky-relu, gelu or softplus.
    """

    name: str

    kind: ClassVar[str] = "activation"

    def __post_init__(self) -> None:
        check_name("activation", self.name, ACTIVATIONS)

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    def forward(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
        return ACTIVATIONS[self.name](x)
