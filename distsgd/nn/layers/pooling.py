"""Pooling layers: one number for each window of an image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from distsgd.core.device import Array, Shape, array_module
from distsgd.core.errors import ConfigurationError
from distsgd.core.kernels import kernels_for
from distsgd.core.kernels.convolution import Window
from distsgd.core.layout import Views
from distsgd.nn.batch import Batch
from distsgd.nn.layers.base import Backward, Layer, image_shape, pair


def output_size(window: Window, image: tuple[int, int, int], what: str) -> tuple[int, int]:
    """Height and width of the output; ConfigurationError, in the name of `what`, for images smaller than the window."""
    (_, height, width), (kh, kw) = image, window.size
    out = window.output(height, width)
    if min(out) < 1:
        raise ConfigurationError(f"{what} of {kh}x{kw} doesn't fit images of {height}x{width}; take a smaller one")
    return out


@dataclass(frozen=True)
class _Pooling(Layer):
    """A window that moves over an image and stays inside it."""

    size: int | tuple[int, int] = 2
    stride: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        self.window  # noqa: B018 (checks both)

    @cached_property
    def window(self) -> Window:
        """Size and stride along both axes."""
        size = pair(self.size, f"{self.kind} window")
        return Window(size, size if self.stride is None else pair(self.stride, f"{self.kind} stride"))

    def output_shape(self, shape: Shape) -> Shape:
        image = image_shape(shape, self.kind)
        return (image[0], *output_size(self.window, image, f"{self.kind}: a window"))


@dataclass(frozen=True)
class MaxPooling(_Pooling):
    """y := the largest value of each window; dx is dy at its first place in the window, in the order of rows.

    Parameters
    ----------
    size : int or tuple of int, default 2
        Of the window: a number, or (height, width).
    stride : int or tuple of int, optional
        How far the window moves, a number or (height, width); None for the window's own size. Rows and columns that no
        whole window covers are skipped.
    """

    kind: ClassVar[str] = "pool"

    def forward(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
        images, kernels = array_module(x).ascontiguousarray(x), kernels_for(x)
        y = kernels.max_pool(images, self.window)
        return y, lambda dy, grads: kernels.max_pool_backward(images, y, dy, self.window)


@dataclass(frozen=True)
class AveragePooling(_Pooling):
    """y := the mean of each window; dx := dy / (values in a window), summed where windows overlap.

    Parameters
    ----------
    size : int or tuple of int, default 2
        Of the window: a number, or (height, width).
    stride : int or tuple of int, optional
        How far the window moves, a number or (height, width); None for the window's own size. Rows and columns that no
        whole window covers are skipped.
    """

    kind: ClassVar[str] = "averagepool"

    def forward(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
        images, kernels = array_module(x).ascontiguousarray(x), kernels_for(x)
        y = kernels.average_pool(images, self.window)
        return y, lambda dy, grads: kernels.average_pool_backward(images, dy, self.window)


@dataclass(frozen=True)
class GlobalAveragePooling(Layer):
    """y (channels, n) := the mean of x (channels, height, width, n) over each image; dx := dy / (height width)."""

    kind: ClassVar[str] = "globalpool"

    def output_shape(self, shape: Shape) -> Shape:
        return image_shape(shape, self.kind)[:1]

    def forward(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
        *outer, height, width, n = x.shape
        y: Array = np.add.reduce(array_module(x).ascontiguousarray(x).reshape(*outer, height * width, n), axis=-2)
        y *= 1.0 / (height * width)

        def backward(dy: Array, grads: Views) -> Array:
            part = dy * (1.0 / (height * width))
            return np.repeat(part[..., None, :], height * width, axis=-2).reshape(x.shape)

        return y, backward
