"""Gradients on a GPU against central differences in float64, for the layers and losses of the CPU's own tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from distsgd.core.device import Array, Device, Shape, to_host
from distsgd.core.layout import Layout, Views
from distsgd.nn.batch import Batch
from distsgd.nn.layers import Layer, StatefulLayer
from distsgd.nn.layers.base import Backward
from distsgd.testing import check_gradient, check_layer_gradient
from tests.unit.nn import test_convolution, test_layers, test_losses

LAYERS = {**test_layers.UNDER_TEST, **test_convolution.CHECKED}
LOSSES = test_losses.UNDER_TEST


def views_on(device: Device, views: Mapping[str, Array]) -> Views:
    """The same names and numbers in one flat buffer of the device."""
    layout = Layout(tuple(views), tuple(array.shape for array in views.values()))
    flat = np.concatenate([np.zeros(0), *(np.asarray(array).ravel() for array in views.values())])
    return layout.views(device.put(flat))


@dataclass(frozen=True)
class OnDevice(StatefulLayer):
    """A layer that computes on a device, and looks from outside as if it did on the host."""

    inside: Layer
    device: Device

    def parameter_shapes(self) -> Mapping[str, Shape]:
        return self.inside.parameter_shapes()

    def state_shapes(self) -> Mapping[str, Shape]:
        return self.inside.state_shapes() if isinstance(self.inside, StatefulLayer) else {}

    def statistics_shapes(self) -> Mapping[str, Shape]:
        return {}

    def initialize(self, params: Views, seed: int, path: str) -> None:
        self.inside.initialize(params, seed, path)

    def initialize_state(self, state: Views) -> None:
        if isinstance(self.inside, StatefulLayer):
            self.inside.initialize_state(state)

    def combine_statistics(self, first: Views, second: Views) -> None:
        """Nothing to combine."""

    def update_state(self, state: Views, statistics: Views) -> None:
        """Nothing to move."""

    def output_shape(self, shape: Shape) -> Shape:
        return self.inside.output_shape(shape)

    def forward(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
        put, there = self.device.put, views_on(self.device, params)
        own = replace(
            batch, x=put(batch.x), y=put(batch.y), state=views_on(self.device, batch.state), device=self.device
        )
        y, back = self.inside.forward(there, put(np.ascontiguousarray(x)), own, path)

        def backward(dy: Array, grads: Views) -> Array | None:
            slopes = views_on(self.device, {name: np.full_like(array, np.nan) for name, array in grads.items()})
            dx = back(put(np.ascontiguousarray(dy)), slopes)
            for name, array in grads.items():
                array[...] = to_host(slopes[name])
            return None if dx is None else to_host(dx)

        return to_host(y), backward


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", list(LAYERS))
def test_gradients_of_layers_are_derivatives(gpu: Device, name: str, training: bool) -> None:
    layer, shape = LAYERS[name]
    every = int(np.prod(shape)) < 10
    check_layer_gradient(OnDevice(layer, gpu), shape, 4, training=training, per_parameter=every).raise_if_wrong()


@pytest.mark.parametrize("name", list(LAYERS))
def test_layers_compute_what_the_cpu_does(gpu: Device, name: str) -> None:
    layer, shape = LAYERS[name]
    params, grads, x, batch = test_layers.make(layer, shape)
    other_grads = Layout.of(layer.parameter_shapes()).views(np.full_like(grads.flat, np.nan))
    wanted, wanted_back = layer.forward(params, x, batch, "path")
    found, back = OnDevice(layer, gpu).forward(params, x, batch, "path")
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)
    dy = np.random.default_rng(1).standard_normal(wanted.shape)
    np.testing.assert_allclose(back(dy, other_grads), wanted_back(dy, grads), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(other_grads.flat, grads.flat, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", list(LOSSES))
def test_gradients_of_losses_are_derivatives(gpu: Device, name: str, weighted: bool) -> None:
    loss, stored, k = LOSSES[name]
    outputs = np.random.default_rng(1).standard_normal((k, 9)) * 3
    weights = np.random.default_rng(2).random(9) * 2 if weighted else None
    y = loss.targets(gpu.put(stored), outputs.dtype)
    there_weights = None if weights is None else gpu.put(weights)

    def function(params: Any, grads: Any, batch: Batch) -> tuple[float, int]:
        total, grad = loss.loss_and_grad(gpu.put(params["outputs"].copy()), y, there_weights)
        grads["outputs"][...] = to_host(grad)
        return float(total), 9

    nothing = np.zeros((0, 9))
    batch = Batch(x=nothing, y=nothing, indices=np.arange(9))
    check_gradient(function, {"outputs": outputs}, batch, per_parameter=True).raise_if_wrong()
    host = loss.loss_and_grad(outputs, loss.targets(stored, outputs.dtype), weights)
    found = loss.loss_and_grad(gpu.put(outputs), y, there_weights)
    assert float(found[0]) == pytest.approx(host[0], rel=1e-13)
    np.testing.assert_allclose(to_host(found[1]), host[1], rtol=1e-12, atol=1e-13)
