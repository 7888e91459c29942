"""A network for several microbatches of one length at once: their examples lie side by side, their sums apart.

What a layer computes of an example needs no other one, so all microbatches are computed in one go. Sums over examples
are a microbatch's own: gradients, and the loss. Vectors of all microbatches are the columns of one array, (features,
parts n). Images have the microbatches on an axis in front, (parts, channels, height, width, n), so that each one's lie
in memory as they do alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any, Protocol, TypeAlias

import numpy as np

from distsgd.core.device import Array
from distsgd.core.kernels.several import Product, product_of_each, split
from distsgd.core.layout import Views
from distsgd.nn.batch import Batch
from distsgd.nn.layers.activation import Activation
from distsgd.nn.layers.base import Backward, DataLayer, Layer
from distsgd.nn.layers.dense import Dense, Flatten
from distsgd.nn.layers.sequential import Sequential
from distsgd.nn.objective import Objective, Supervised

_CAST_AT_ONCE = 8192
"""Numbers that NumPy casts at once: sums of more are cut there."""
_BYTES_AT_ONCE = 8 << 20
"""About how many bytes of all layers' outputs, and of convolutions' gradients, there are at a time."""
_OF_VECTORS: tuple[type[Layer], ...] = (Dense, Activation, Flatten)


class GradientSums(Protocol):
    """Adds up a layer's gradients of all microbatches."""

    def add(self, layer: str, dy: Array, x: Array) -> None:
        """Those of a dense layer, from the gradient of its outputs and its inputs."""

    def of_each(self, layer: str) -> Views:
        """Where another layer writes them, with the microbatches on an axis in front."""

    def put(self, layer: str) -> None:
        """Adds up what was written there."""


_Backward: TypeAlias = Callable[[Array, GradientSums], Any]
"""(dy, sums) -> dx, which the first layer with parameters may leave out."""


def can_be_stacked(objective: Objective) -> bool:
    """Whether it is a network of distsgd's own layers without statistics, one after the other.

    NumPy and BLAS treat vectors in another way than matrices, so each dense layer has two inputs and two outputs at
    least.

    Parameters
    ----------
    objective : Objective
        What is minimized.

    Returns
    -------
    bool
        Whether `Stack` takes it.
    """
    if not (
        type(objective) is Supervised
        and objective.overwrites_gradients()
        and type(objective.model) is Sequential
        and objective.loss_scale == 1
    ):
        return False
    begins = (Dense,) if len(objective.input_shape) == 1 else _of_images()
    layers = [layer for layer in objective.model.layers if not _is_dropout(layer)]
    return (
        bool(layers)
        and all(type(layer) in (*_OF_VECTORS, *begins) for layer in layers)
        and isinstance(layers[0], begins)
        and all(min(layer.fan_in, layer.fan_out) > 1 for layer in layers if isinstance(layer, Dense))
    )


def _is_dropout(layer: Layer) -> bool:
    """Imports it only where a model has one."""
    if layer.kind != "dropout":
        return False
    from distsgd.nn.layers.dropout import Dropout

    return type(layer) is Dropout


def _of_images() -> tuple[type[Layer], ...]:
    """Imported only where a model takes images."""
    from distsgd.nn.layers.convolution import Convolution
    from distsgd.nn.layers.pooling import AveragePooling, GlobalAveragePooling, MaxPooling

    return Convolution, MaxPooling, AveragePooling, GlobalAveragePooling


def most_at_once(objective: Objective, n: int, itemsize: int) -> int:
    """How many microbatches of n examples are computed at once: as many as the cache takes, with all layers' outputs
    and the gradients of convolutions, of which each microbatch has its own.

    Larger microbatches of images gain nothing, and would need more memory. Those of vectors read the weights once, so
    their outputs may take as much memory as the parameters.

    Parameters
    ----------
    objective : Objective
        One that `can_be_stacked`.
    n : int
        Examples of a microbatch.
    itemsize : int
        Bytes of a number.

    Returns
    -------
    int
        At least 1.
    """
    assert isinstance(objective, Supervised), "a model with a loss"
    assert isinstance(objective.model, Sequential), "of several layers"
    shape, size, dense, others = objective.input_shape, 0, 0, 0
    for layer in objective.model.layers:
        shape = layer.output_shape(shape)
        size += prod(shape)
        parameters = sum(map(prod, layer.parameter_shapes().values()))
        if isinstance(layer, Dense):
            dense += parameters
        else:
            others += parameters
    limit = max(_BYTES_AT_ONCE, dense * itemsize if len(objective.input_shape) == 1 else 0)
    return max(1, limit // ((size * n + others) * itemsize))


class Stack:
    """Computes `parts` microbatches of one length, with the bits that each has alone.

    Parameters
    ----------
    objective : Objective
        One that `can_be_stacked`.
    parts : int
        How many microbatches; they have the same length in each call.
    """

    def __init__(self, objective: Objective, parts: int) -> None:
        assert isinstance(objective, Supervised), "a model with a loss"
        assert isinstance(objective.model, Sequential), "of several layers"
        self._loss, self._parts = objective.loss, parts
        self._products: dict[str, Product] = {}
        self._layers = objective.model.computed
        self._first = next((k for k, (_, layer) in enumerate(self._layers) if layer.parameter_shapes()), 0)

    def losses(self, params: Views, batch: Batch, sums: GradientSums) -> Array:
        """The sum of each microbatch's losses; its gradients go to `sums`.

        Parameters
        ----------
        params : Views
            The parameters, read-only.
        batch : Batch
            The examples of all microbatches, one after the other.
        sums : GradientSums
            Where the gradients go.

        Returns
        -------
        array
            (parts,).
        """
        x, parts = batch.x, self._parts
        if x.ndim > 2:
            x = np.ascontiguousarray(np.moveaxis(x.reshape(*x.shape[:-1], parts, -1), -2, 0))
        backwards: list[_Backward] = []
        for index, (name, layer) in enumerate(self._layers):
            x, backward = self._forward(name, layer, params, x, batch, index > self._first)
            backwards.append(backward)
        losses, d = self._loss.losses_and_grad(x, batch.y, batch.weights)
        for backward in reversed(backwards[self._first :]):
            d = backward(d, sums)
        if parts == 1:
            return np.add.reduce(losses, dtype=np.float64)  # type: ignore[no-any-return]
        apart = losses.reshape(parts, -1)
        if apart.shape[1] > _CAST_AT_ONCE:
            return np.array([np.add.reduce(own, dtype=np.float64) for own in apart])
        return np.add.reduce(apart.astype(np.float64), axis=1)  # type: ignore[no-any-return]

    def _forward(
        self, name: str, layer: Layer, params: Views, x: Array, batch: Batch, needs_dx: bool
    ) -> tuple[Array, _Backward]:
        if isinstance(layer, Dense):
            return self._dense(name, layer, params.scope(name), x, needs_dx)
        if isinstance(layer, DataLayer):
            y, of_layer = layer.compute(params.scope(name), x, batch, name, needs_dx)

            def backward(dy: Array, sums: GradientSums) -> Array | None:
                dx = of_layer(dy, sums.of_each(name))
                sums.put(name)
                return dx

            return y, backward
        if layer.kind == "dropout":
            return self._dropout(name, layer, x, batch)
        y, of_layer = layer.forward(params, x, batch, name)
        if y.ndim < x.ndim:  # vectors are made of images
            return self._as_columns(y, of_layer)
        return y, lambda dy, sums: of_layer(dy, params)

    def _dropout(self, name: str, layer: Any, x: Array, batch: Batch) -> tuple[Array, _Backward]:
        if layer.rate == 0.0:
            return x, lambda dy, sums: dy
        apart = split(x, self._parts) if x.ndim == 2 else x
        numbered = (replace(batch, microbatch=batch.microbatch + part) for part in range(self._parts))
        masks = [layer.mask(own, of_part, name) for own, of_part in zip(apart, numbered, strict=True)]
        mask = np.concatenate(masks, axis=1) if x.ndim == 2 else np.stack(masks)
        return layer.keep(x, mask), lambda dy, sums: layer.keep(dy, mask)

    def _as_columns(self, y: Array, of_layer: Backward) -> tuple[Array, _Backward]:
        """Vectors of one microbatch after the other, as a layer makes them of images, beside each other."""
        parts, nothing = self._parts, Views({}, y)
        apart = y.reshape(parts, -1, y.shape[-1])

        def backward(dy: Array, sums: GradientSums) -> Array | None:
            return of_layer(split(dy, parts).reshape(y.shape), nothing)

        return apart.swapaxes(0, 1).reshape(apart.shape[1], -1), backward

    def _dense(self, name: str, layer: Dense, own: Views, x: Array, needs_dx: bool) -> tuple[Array, _Backward]:
        y = self._multiply(name, own["weight"], x)
        if layer.bias:
            y += own["bias"][:, None]

        def backward(dy: Array, sums: GradientSums) -> Array | None:
            sums.add(name, dy, x)
            return self._multiply(f"{name}.dx", own["weight"].T, dy) if needs_dx else None

        return y, backward

    def _multiply(self, name: str, a: Array, b: Array) -> Array:
        """a b, by the function that was chosen when this product was first computed."""
        found = self._products.get(name)
        if found is None:
            found = self._products[name] = product_of_each(a, b, self._parts)
        return found(a, b)
