"""A network for several microbatches of one length at once: their examples lie side by side, their sums apart.

What a dense layer or an activation computes of an example needs no other one, so all microbatches are computed in one
go. Sums over examples are a microbatch's own: gradients, and the loss.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from distsgd.core.device import Array
from distsgd.core.kernels.several import Product, product_of_each
from distsgd.core.layout import Views
from distsgd.nn.batch import Batch
from distsgd.nn.layers.activation import ACTIVATIONS, Activation
from distsgd.nn.layers.dense import Dense
from distsgd.nn.layers.sequential import Sequential
from distsgd.nn.objective import Objective, Supervised

_CAST_AT_ONCE = 8192
"""Numbers that NumPy casts at once: sums of more are cut there."""


class GradientSums(Protocol):
    """Adds up a layer's gradients of all microbatches."""

    def add(self, layer: str, dy: Array, x: Array) -> None:
        """Those of a dense layer, from the gradient of its outputs and its inputs."""


def can_be_stacked(objective: Objective) -> bool:
    """Whether it is a network of distsgd's own dense layers and activations, on vectors.

    NumPy and BLAS treat vectors in another way than matrices, so each layer has two inputs and two outputs at least.

    Parameters
    ----------
    objective : Objective
        What is minimized.

    Returns
    -------
    bool
        Whether `Stack` takes it.
    """
    return (
        type(objective) is Supervised
        and objective.overwrites_gradients()
        and len(objective.input_shape) == 1
        and type(objective.model) is Sequential
        and objective.loss_scale == 1
        and all(type(layer) in (Dense, Activation) for layer in objective.model.layers)
        and isinstance(objective.model.layers[0], Dense)
        and all(min(layer.fan_in, layer.fan_out) > 1 for layer in objective.model.layers if isinstance(layer, Dense))
    )


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
        self._layers = tuple(zip(objective.model.names, objective.model.layers, strict=True))

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
        kept: list[tuple[str | None, Any]] = []  # of each layer, for backward
        for name, layer in self._layers:
            if isinstance(layer, Dense):
                kept.append((name, x))
                own = params.scope(name)
                x = self._multiply(name, own["weight"], x)
                if layer.bias:
                    x += own["bias"][:, None]
            elif isinstance(layer, Activation):
                x, backward = ACTIVATIONS[layer.name](x)
                kept.append((None, backward))
        losses, d = self._loss.losses_and_grad(x, batch.y, batch.weights)
        for name, of_layer in reversed(kept):
            if name is None:
                d = of_layer(d, sums)
                continue
            sums.add(name, d, of_layer)
            if of_layer is not batch.x:
                d = self._multiply(f"{name}.dx", params.scope(name)["weight"].T, d)
        if parts == 1:
            return np.add.reduce(losses, dtype=np.float64)  # type: ignore[no-any-return]
        apart = losses.reshape(parts, -1)
        if apart.shape[1] > _CAST_AT_ONCE:
            return np.array([np.add.reduce(own, dtype=np.float64) for own in apart])
        return np.add.reduce(apart.astype(np.float64), axis=1)  # type: ignore[no-any-return]

    def _multiply(self, name: str, a: Array, b: Array) -> Array:
        """a b, by the function that was chosen when this product was first computed."""
        found = self._products.get(name)
        if found is None:
            found = self._products[name] = product_of_each(a, b, self._parts)
        return found(a, b)
