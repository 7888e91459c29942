"""Residual blocks: layers whose output is added to their own input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from distsgd.core.device import Array, Shape, array_module
from distsgd.core.errors import ConfigurationError
from distsgd.core.kernels import kernels_for
from distsgd.core.layout import Views
from distsgd.nn.batch import Batch
from distsgd.nn.layers.activation import Activation
from distsgd.nn.layers.base import Backward, DataLayer, Layer, image_shape, join
from distsgd.nn.layers.sequential import Composite


@dataclass(frozen=True)
class Residual(Composite):
    """y := body(x) + shortcut(x), and dx the sum of both gradients.

    The names of parameters, state and statistics begin with `body.` and `shortcut.`.

    Parameters
    ----------
    body : Layer
        A layer.
    shortcut : Layer, optional
        A layer with outputs of the same shape; None for x itself.

    References
    ----------
    .. [1] He, Zhang, Ren & Sun, "Deep residual learning for image recognition", CVPR 2016.
    """

    body: Layer
    shortcut: Layer | None = None

    kind: ClassVar[str] = "residual"

    def __post_init__(self) -> None:
        if not isinstance(self.body, Layer) or not isinstance(self.shortcut, Layer | None):
            raise ConfigurationError(f"residual: expected layers, got {self.body!r} and {self.shortcut!r}")

    @cached_property
    def _named(self) -> tuple[tuple[str, Layer], ...]:
        return (("body", self.body), *([] if self.shortcut is None else [("shortcut", self.shortcut)]))

    def output_shape(self, shape: Shape) -> Shape:
        body = self.body.output_shape(shape)
        shortcut = shape if self.shortcut is None else self.shortcut.output_shape(shape)
        if body != shortcut:
            raise ConfigurationError(
                f"residual: the body puts out shape {body} and the shortcut {shortcut}; give a shortcut that fits"
            )
        return body

    def multiply_adds(self, shape: Shape) -> int:
        return sum(layer.multiply_adds(shape) for _, layer in self._named)

    def fused(self, following: Layer) -> Layer | None:
        own = type(self) is Residual and following == Activation("relu")  # a subclass may compute something else
        return RectifiedResidual(self) if own else None

    def compute(self, params: Views, x: Array, batch: Batch, path: str, needs_dx: bool) -> tuple[Array, Backward]:
        y, around, backward = self.compute_both(params, x, batch, path, needs_dx)
        return np.add(y, around), backward

    def compute_both(
        self, params: Views, x: Array, batch: Batch, path: str, needs_dx: bool
    ) -> tuple[Array, Array, Backward]:
        """What `compute` adds, and its backward.

        Parameters
        ----------
        params, x, batch, path, needs_dx
            See `DataLayer.compute`.

        Returns
        -------
        body, around, backward
            The outputs of body and shortcut, and what takes the gradient of their sum.
        """
        forward = self.body.forward if needs_dx else self.body.forward_on_data
        y, body_backward = forward(params.scope("body"), x, batch, join(path, "body"))
        around, shortcut_backward = x, None
        if self.shortcut is not None:
            forward = self.shortcut.forward if needs_dx else self.shortcut.forward_on_data
            around, shortcut_backward = forward(params.scope("shortcut"), x, batch, join(path, "shortcut"))

        def backward(dy: Array, grads: Views) -> Array | None:
            dx = body_backward(dy, grads.scope("body"))
            other: Array | None = dy
            if shortcut_backward is not None:
                other = shortcut_backward(dy, grads.scope("shortcut"))
            return None if dx is None or other is None else np.add(dx, other)

        return y, around, backward


@dataclass(frozen=True)
class RectifiedResidual(DataLayer):
    """A residual block and the ReLU after it: the same bits, in fewer passes over memory on a CPU."""

    residual: Residual

    def parameter_shapes(self) -> Mapping[str, Shape]:
        return self.residual.parameter_shapes()

    def initialize(self, params: Views, seed: int, path: str) -> None:
        self.residual.initialize(params, seed, path)

    def output_shape(self, shape: Shape) -> Shape:
        return self.residual.output_shape(shape)

    def compute(self, params: Views, x: Array, batch: Batch, path: str, needs_dx: bool) -> tuple[Array, Backward]:
        kernels = kernels_for(x)
        body, around, sum_backward = self.residual.compute_both(params, x, batch, path, needs_dx)
        y: Array = kernels.add_positive(body, around) if kernels.FUSES else kernels.positive(np.add(body, around))
        return y, lambda dy, grads: sum_backward(kernels.masked(dy, y), grads)


@dataclass(frozen=True)
class Subsample(Layer):
    """y[c, h, w] := x[c, s h, s w] for the channels of x, and 0 for further ones: a shortcut without parameters.

    Parameters
    ----------
    channels : int
        Channels of y, at least as many as x has.
    stride : int, default 2
        s, the step between the rows and columns that are kept.

    References
    ----------
    .. [1] He, Zhang, Ren & Sun, "Deep residual learning for image recognition", CVPR 2016, section 3.3, "option A".
    """

    channels: int
    stride: int = 2

    kind: ClassVar[str] = "subsample"

    def __post_init__(self) -> None:
        if self.channels < 1 or self.stride < 1:
            raise ConfigurationError(
                f"subsample: expected at least one channel and a stride from 1, got {self.channels} and {self.stride}"
            )

    def output_shape(self, shape: Shape) -> Shape:
        channels, height, width = image_shape(shape, self.kind)
        if channels > self.channels:
            raise ConfigurationError(f"subsample: expected at most {self.channels} channels, got shape {shape}")
        return (self.channels, -(-height // self.stride), -(-width // self.stride))

    def forward(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
        channels, xp = x.shape[0], array_module(x)
        chosen = x[:, :: self.stride, :: self.stride]
        y: Array = xp.zeros((self.channels, *chosen.shape[1:]), x.dtype)
        y[:channels] = chosen

        def backward(dy: Array, grads: Views) -> Array:
            dx: Array = xp.zeros(x.shape, dy.dtype)
            dx[:, :: self.stride, :: self.stride] = dy[:channels]
            return dx

        return y, backward
