"""Flatten: images as vectors, for the dense layers behind them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

from distsgd.batch import Batch
from distsgd.device import Array, Shape
from distsgd.layers.base import Backward, Layer
from distsgd.layout import Views


@dataclass(frozen=True)
class Flatten(Layer):
    """y (features, n) := x with all but the batch in one axis, channels slowest."""

    kind: ClassVar[str] = "flatten"

    def output_shape(self, shape: Shape) -> Shape:
        return (prod(shape),)

    def forward(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
        return x.reshape(-1, x.shape[-1]), lambda dy, grads: dy.reshape(x.shape)
