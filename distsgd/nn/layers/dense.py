"""The dense layer: every output is a weighted sum of every input; and what makes vectors of images in front of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from distsgd.core.device import Array, Shape
from distsgd.core.errors import ConfigurationError
from distsgd.core.kernels import kernels_for
from distsgd.core.layout import Views
from distsgd.nn.batch import Batch
from distsgd.nn.initializers import He, Initializer, Zeros
from distsgd.nn.layers.base import Backward, DataLayer, Layer, initialize_arrays

_HE, _ZEROS = He(), Zeros()


@dataclass(frozen=True)
class Dense(DataLayer):
    """y := W x + b, with x (fan_in, n), y and dy (fan_out, n), weight W (fan_out, fan_in), bias b (fan_out,).

    dW := dy xᵀ, db := Σₙ dy, dx := Wᵀ dy. Where x is data, dx is not computed.

    Parameters
    ----------
    fan_in, fan_out : int
        Inputs and outputs.
    bias : bool, default True
        Whether there is a b.
    weight_initializer, bias_initializer : Initializer, optional
        Initial values; He's and zeros by default.
    """

    fan_in: int
    fan_out: int
    bias: bool = True
    weight_initializer: Initializer = _HE
    bias_initializer: Initializer = _ZEROS

    kind: ClassVar[str] = "dense"

    def __post_init__(self) -> None:
        if self.fan_in < 1 or self.fan_out < 1:
            raise ConfigurationError(
                f"dense: expected at least one input and one output, got {self.fan_in} and {self.fan_out}"
            )

    def parameter_shapes(self) -> Mapping[str, Shape]:
        shapes: dict[str, Shape] = {"weight": (self.fan_out, self.fan_in)}
        if self.bias:
            shapes["bias"] = (self.fan_out,)
        return shapes

    def initialize(self, params: Views, seed: int, path: str) -> None:
        initialize_arrays(params, {"weight": self.weight_initializer, "bias": self.bias_initializer}, seed, path)

    def output_shape(self, shape: Shape) -> Shape:
        if shape != (self.fan_in,):
            raise ConfigurationError(
                f"dense: expected examples of shape ({self.fan_in},), got {shape}; "
                "set fan_in to that length, or flatten the examples if they have several dimensions"
            )
        return (self.fan_out,)

    def multiply_adds(self, shape: Shape) -> int:
        return self.fan_in * self.fan_out

    def compute(self, params: Views, x: Array, batch: Batch, path: str, needs_dx: bool) -> tuple[Array, Backward]:
        weight, kernels = params["weight"], kernels_for(x, batch.device.precision)
        y: Array = kernels.multiply(weight, x)
        if self.bias:
            y += params["bias"][:, None]

        def backward(dy: Array, grads: Views) -> Array | None:
            kernels.multiply(dy, x.T, out=grads["weight"])
            if self.bias:
                kernels.row_sums(dy, grads["bias"])
            return kernels.multiply(weight.T, dy) if needs_dx else None

        return y, backward


@dataclass(frozen=True)
class Flatten(Layer):
    """y (features, n) := x with all but the batch in one axis, channels slowest."""

    kind: ClassVar[str] = "flatten"

    def output_shape(self, shape: Shape) -> Shape:
        return (prod(shape),)

    def forward(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
        return x.reshape(-1, x.shape[-1]), lambda dy, grads: dy.reshape(x.shape)
