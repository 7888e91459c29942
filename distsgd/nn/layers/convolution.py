"""The convolution layer: every output pixel is a weighted sum of a window of input pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from distsgd.core.device import Array, Shape, array_module
from distsgd.core.errors import ConfigurationError
from distsgd.core.kernels import kernels_for
from distsgd.core.kernels.convolution import Window
from distsgd.core.layout import Views
from distsgd.nn.batch import Batch
from distsgd.nn.initializers import He, Initializer, Zeros
from distsgd.nn.layers.base import Backward, DataLayer, Layer, image_shape, initialize_arrays, pair
from distsgd.nn.layers.pooling import MaxPooling, output_size

_HE, _ZEROS = He(), Zeros()


@dataclass(frozen=True)
class Convolution(DataLayer):
    """y[f, h, w] := Σ W[f, c, i, j] x[c, s h + i - p, s w + j - p] + b[f], over c, i and j.

    x is (channels, height, width, n), y (filters, out_height, out_width, n), weight W (filters, channels, kh, kw) and
    bias b (filters,). Each output length is (length + padding - k) // s + 1. The kernel isn't flipped, as in all
    libraries. dW, db and dx are sums over the same products. Where x is data, dx is not computed.

    Parameters
    ----------
    channels, filters : int
        Of the input and of the output.
    kernel, stride : int or tuple of int
        k and s: a number, or (height, width).
    padding : str or int, default "valid"
        Zeros around images: "valid" for none; "same" for (k - 1) // 2 before and k // 2 after, which keep height and
        width where the stride is 1; or a number, for both sides.
    bias : bool, default True
        Whether there is a b.
    weight_initializer, bias_initializer : Initializer, optional
        Initial values; He's and zeros by default.
    """

    channels: int
    filters: int
    kernel: int | tuple[int, int]
    stride: int | tuple[int, int] = 1
    padding: str | int = "valid"
    bias: bool = True
    weight_initializer: Initializer = _HE
    bias_initializer: Initializer = _ZEROS

    kind: ClassVar[str] = "conv"

    def __post_init__(self) -> None:
        if self.channels < 1 or self.filters < 1:
            raise ConfigurationError(
                f"conv: expected at least one channel and one filter, got {self.channels} and {self.filters}"
            )
        if self.padding not in ("valid", "same") and not (isinstance(self.padding, int) and self.padding >= 0):
            raise ConfigurationError(f"conv padding: expected valid, same or a number from 0, got {self.padding!r}")
        self.window  # noqa: B018 (checks kernel and stride)

    @cached_property
    def window(self) -> Window:
        """Kernel, stride and padding along both axes."""
        size, stride = pair(self.kernel, "conv kernel"), pair(self.stride, "conv stride")
        if self.padding == "same":
            return Window(size, stride, ((size[0] - 1) // 2, (size[1] - 1) // 2), (size[0] // 2, size[1] // 2))
        zeros = 0 if self.padding == "valid" else int(self.padding)
        return Window(size, stride, (zeros, zeros), (zeros, zeros))

    def parameter_shapes(self) -> Mapping[str, Shape]:
        shapes: dict[str, Shape] = {"weight": (self.filters, self.channels, *self.window.size)}
        if self.bias:
            shapes["bias"] = (self.filters,)
        return shapes

    def initialize(self, params: Views, seed: int, path: str) -> None:
        initialize_arrays(params, {"weight": self.weight_initializer, "bias": self.bias_initializer}, seed, path)

    def output_shape(self, shape: Shape) -> Shape:
        image = image_shape(shape, "conv", self.channels)
        return (self.filters, *output_size(self.window, image, "conv: a kernel"))

    def multiply_adds(self, shape: Shape) -> int:
        _, height, width = self.output_shape(shape)
        kh, kw = self.window.size
        return self.filters * height * width * self.channels * kh * kw

    def fused(self, following: Layer) -> Layer | None:
        # Columns that are kept apart make shorter runs to shift, which pays only with many filters.
        pays = self.filters > self.channels * self.window.size[1]
        own = type(self) is Convolution and type(following) is MaxPooling  # a subclass may compute something else
        if pays and own and isinstance(following, MaxPooling) and following.window.size == following.window.stride:
            return PooledConvolution(self, following)
        return None

    def compute(self, params: Views, x: Array, batch: Batch, path: str, needs_dx: bool) -> tuple[Array, Backward]:
        weight, xp = params["weight"], array_module(x)
        kernels = kernels_for(x, batch.device.precision)
        images = xp.ascontiguousarray(x)
        y: Array = kernels.convolve(images, weight, self.window)
        if self.bias:
            y += params["bias"][:, None, None, None]

        def backward(dy: Array, grads: Views) -> Array | None:
            dy = xp.ascontiguousarray(dy)
            self.add_up_bias(dy, grads)
            dx: Array | None = kernels.gradients(images, weight, dy, self.window, grads["weight"], needs_dx)
            return dx

        return y, backward

    def add_up_bias(self, dy: Array, grads: Views) -> None:
        """Writes the bias's gradient, where there is a bias.

        Parameters
        ----------
        dy : array
            The output's gradient (filters, height, width, n), C-ordered.
        grads : Views
            The layer's own gradients.
        """
        if self.bias:
            kernels_for(dy).row_sums(dy.reshape(*dy.shape[:-3], -1), grads["bias"])


@dataclass(frozen=True)
class PooledConvolution(DataLayer):
    """A convolution and the max-pooling after it, whose windows don't overlap: the same numbers, in less time.

    The bias is added after the pooling, to fewer values. For backward, the pooling keeps which place of each window was
    the largest, a byte for each value of the convolution.
    """

    convolution: Convolution
    pooling: MaxPooling

    def parameter_shapes(self) -> Mapping[str, Shape]:
        return self.convolution.parameter_shapes()

    def initialize(self, params: Views, seed: int, path: str) -> None:
        self.convolution.initialize(params, seed, path)

    def output_shape(self, shape: Shape) -> Shape:
        return self.pooling.output_shape(self.convolution.output_shape(shape))

    def compute(self, params: Views, x: Array, batch: Batch, path: str, needs_dx: bool) -> tuple[Array, Backward]:
        kernels, xp = kernels_for(x), array_module(x)
        if not kernels.FUSES:
            return self._one_after_the_other(params, x, batch, path, needs_dx)
        weight, (rows, apart) = params["weight"], self.pooling.window.size
        images, (height, width, n) = xp.ascontiguousarray(x), x.shape[-3:]
        window = self.convolution.window.cropped(height, width, (rows, apart))
        inside = kernels.convolve(images, weight, window, apart)
        y, chosen = kernels.max_pool_apart(inside.reshape(*inside.shape[: x.ndim - 2], apart, -1, n), rows)
        if self.convolution.bias:
            y += params["bias"][:, None, None, None]

        def backward(dy: Array, grads: Views) -> Array | None:
            self.convolution.add_up_bias(xp.ascontiguousarray(dy), grads)
            inside = kernels.max_pool_apart_backward(chosen, dy, rows)
            dx: Array | None = kernels.gradients(images, weight, inside, window, grads["weight"], needs_dx, apart)
            return dx

        return y, backward

    def _one_after_the_other(
        self, params: Views, x: Array, batch: Batch, path: str, needs_dx: bool
    ) -> tuple[Array, Backward]:
        """Where the kernels gain nothing from computing both together."""
        inside, convolution_backward = self.convolution.compute(params, x, batch, path, needs_dx)
        y, pooling_backward = self.pooling.forward(params, inside, batch, path)

        def backward(dy: Array, grads: Views) -> Array | None:
            d_inside = pooling_backward(dy, grads)
            assert d_inside is not None, "pooling knows its gradient"
            return convolution_backward(d_inside, grads)

        return y, backward
