"""The first layers of a model compute on data: the same outputs and gradients, but none of the data."""

from __future__ import annotations

import numpy as np
import pytest

from distsgd.nn.layers import (
    Activation,
    BatchNormalization,
    Convolution,
    Dense,
    Dropout,
    Flatten,
    Layer,
    MaxPooling,
    Residual,
    Sequential,
)
from tests.unit.nn.test_layers import UNDER_TEST, make

ON_DATA = {
    **UNDER_TEST,
    "activation first": (Sequential([Activation("tanh"), Dense(5, 3)]), (5,)),
    "dropout first": (Sequential([Dropout(0.4), Activation("linear"), Dense(5, 3)]), (5,)),
    "residual first": (Sequential([Residual(Sequential([Dense(5, 5)])), Activation("relu"), Dense(5, 3)]), (5,)),
    "batch normalization first": (Sequential([BatchNormalization(5), Dense(5, 3)]), (5,)),
    "flatten first": (Sequential([Flatten(), Dense(6, 3), Activation("tanh"), Dense(3, 2)]), (2, 3)),
    "pooling first": (Sequential([MaxPooling(2), Flatten(), Dense(8, 3)]), (2, 4, 4)),
    "convolution first": (Sequential([Convolution(2, 9, 3, padding="same"), MaxPooling(2)]), (2, 4, 4)),
}
"""Layers, and models whose first layer is of each kind."""


@pytest.mark.parametrize(("layer", "shape"), [pytest.param(*case, id=name) for name, case in ON_DATA.items()])
def test_on_data_outputs_and_gradients_of_parameters_are_the_same(layer, shape):
    found = []
    for name in ("forward", "forward_on_data"):
        params, grads, x, batch = make(layer, shape, np.float32)
        y, backward = getattr(layer, name)(params, x, batch, "")
        dx = backward(np.random.default_rng(1).standard_normal(y.shape).astype(np.float32), grads)
        assert np.isfinite(grads.flat).all()
        found.append((y.tobytes(), grads.flat.tobytes()))
        assert name == "forward_on_data" or dx.shape == x.shape
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "layers",
    [
        [Dense(5, 3)],
        [Activation("tanh"), Dropout(0.4), Sequential([Activation("linear")]), Dense(5, 3)],
        [Residual(Dense(5, 5)), Activation("tanh"), Dense(5, 3)],
    ],
)
def test_no_gradient_of_data_is_computed(layers):
    model = Sequential(layers)
    params, grads, x, batch = make(model, (5,))
    y, backward = model.forward_on_data(params, x, batch, "")
    assert backward(np.ones_like(y), grads) is None


class Shifted(Dense):
    """A user's subclass that overrides forward alone: its gradient of the weight is twice dense's."""

    def forward(self, params, x, batch, path):
        y, backward_of_dense = super().forward(params, x, batch, path)

        def backward(dy, grads):
            dx = backward_of_dense(dy, grads)
            grads["weight"][...] *= 2.0
            return 2.0 * dx

        return y + 1.0, backward


class Around(Layer):
    """A user's layer with a factor of its own before an inner layer, which knows nothing of forward_on_data."""

    def __init__(self, inner):
        self.inner = inner

    def parameter_shapes(self):
        return {"factor": (), **self.inner.parameter_shapes()}

    def initialize(self, params, seed, path):
        params["factor"][...] = 1.5
        self.inner.initialize({name: params[name] for name in self.inner.parameter_shapes()}, seed, path)

    def output_shape(self, shape):
        return self.inner.output_shape(shape)

    def forward(self, params, x, batch, path):
        y, backward_of_inner = self.inner.forward(params, params["factor"] * x, batch, path)

        def backward(dy, grads):
            dx = backward_of_inner(dy, grads)
            grads["factor"][...] = np.sum(dx * x)
            return params["factor"] * dx

        return y, backward


@pytest.mark.parametrize("first", [Shifted(5, 3), Around(Dense(5, 3))])
def test_a_users_layer_may_come_first(first):
    found = []
    for layers in ([first], [Activation("linear"), first]):
        model = Sequential([*layers, Dense(3, 2)], ["none", "first", "last"][-len(layers) - 1 :])
        params, grads, x, batch = make(model, (5,))
        y, backward = model.forward_on_data(params, x, batch, "")
        backward(np.ones_like(y), grads)
        found.append((y, grads.flat))
        alone, backward = model.forward(params, x, batch, "")
        backward(np.ones_like(y), grads)
        found.append((alone, grads.flat))
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other, strict=True))
