"""Layers that are computed together, and convolutions of the sizes that take other ways than small ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from distsgd.core.layout import Layout
from distsgd.nn.batch import Batch
from distsgd.nn.layers import Activation, BatchNormalization, Convolution, Residual, Sequential, Subsample

RELU = Activation("relu")


def views_of(shapes, dtype=np.float32, fill=0.0):
    layout = Layout.of(shapes)
    return layout.views(np.full(layout.size, fill, dtype))


def computed(layers, x, dy, training=True, dtype=np.float32):
    """y, dx, gradients and statistics of a Sequential, which fuses, or of its layers one by one as a nested list."""
    model = Sequential(layers)
    params, grads = views_of(model.parameter_shapes(), dtype), views_of(model.parameter_shapes(), dtype, np.nan)
    model.initialize(params, 3, "")
    params.flat[...] += np.random.default_rng(5).standard_normal(params.flat.size).astype(dtype) / 8
    state = views_of(model.state_shapes(), dtype)
    model.initialize_state(state)
    statistics = views_of(model.statistics_shapes(), np.float64, np.nan)
    batch = Batch(
        x=x, y=np.zeros(x.shape[-1]), indices=np.arange(x.shape[-1]), training=training, state=state,
        statistics=statistics,
    )  # fmt: skip
    y, backward = model.forward(params, x, batch, "")
    y_before, dy_before = y.copy(), dy.copy()
    dx = backward(dy, grads)
    assert y.tobytes() == y_before.tobytes()
    assert dy.tobytes() == dy_before.tobytes()
    return y, dx, grads.flat, statistics.flat


@dataclass(frozen=True)
class Alone(Activation):
    """ReLU that no other layer knows."""


def numbers(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def body(channels):
    return Residual(Sequential([BatchNormalization(channels)]))


def widening(channels):
    inside = Sequential([Convolution(channels, 2 * channels, 3, 2, "same"), BatchNormalization(2 * channels)])
    return Residual(inside, Subsample(2 * channels))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(4, 3, 2, 5), (4, 16, 16, 33), (2, 200, 13, 40)])
@pytest.mark.parametrize("first", [BatchNormalization, body, widening], ids=lambda kind: kind.__name__)
def test_a_layer_and_the_relu_after_it_have_the_same_bits_as_one_by_one(first, shape, training, dtype):
    layer = first(shape[0])
    x = numbers(*shape, dtype=dtype)
    dy = numbers(*layer.output_shape(shape[:-1]), shape[-1], seed=1, dtype=dtype)
    assert layer.fused(RELU) is not None
    assert layer.fused(Alone("relu")) is None
    together = computed([layer, RELU], x, dy, training, dtype)
    for ours, theirs in zip(together, computed([layer, Alone("relu")], x, dy, training, dtype), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.tobytes() == theirs.tobytes()


@dataclass(frozen=True)
class Shifted(BatchNormalization):
    """A subclass computes what it likes, so nothing may be computed in its place."""


def test_what_may_be_another_computation_is_not_fused():
    for layer in (Shifted(3), Activation("relu"), Subsample(3)):
        assert layer.fused(RELU) is None
    for following in (Activation("tanh"), BatchNormalization(3)):
        assert BatchNormalization(3).fused(following) is None
        assert body(3).fused(following) is None


LARGE = [
    # channels, filters, height, width, kernel, stride, n
    (16, 16, 5, 16, 3, 1, 32), (16, 16, 4, 33, (3, 4), 1, 64), (32, 32, 3, 16, 3, 1, 32), (64, 64, 6, 4, 3, 1, 3),
    (64, 64, 1, 4, 3, 1, 8), (16, 20, 5, 32, (4, 3), 1, 16), (3, 16, 8, 32, 3, 1, 32), (16, 32, 8, 32, 3, 2, 32),
    (17, 16, 5, 32, (2, 5), 1, 64), (48, 16, 3, 32, 1, 1, 64),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("geometry", LARGE, ids=str)
def test_large_convolutions_are_their_formula(geometry, dtype):
    """In float64, one product for each place of the kernel."""
    channels, filters, height, width, kernel, stride, n = geometry
    layer = Convolution(channels, filters, kernel, stride, "same", bias=False)
    x, weight = numbers(channels, height, width, n, dtype=dtype), numbers(*layer.parameter_shapes()["weight"], seed=1)
    params = views_of(layer.parameter_shapes(), dtype)
    params["weight"][...] = weight
    grads = views_of(layer.parameter_shapes(), dtype, np.nan)
    y, backward = layer.forward(params, x, Batch(x=x, y=np.zeros(n), indices=np.arange(n)), "")
    dy = numbers(*y.shape, seed=2, dtype=dtype)
    dx = backward(dy, grads)
    (kh, kw), (top, left) = layer.window.size, layer.window.before
    padded = np.zeros((channels, height + kh - 1, width + kw - 1, n))
    padded[:, top : top + height, left : left + width] = x
    y_plain, dw_plain, dx_plain = np.zeros(y.shape), np.zeros(weight.shape), np.zeros(padded.shape)
    for i, j in np.ndindex(kh, kw):
        place = (slice(None), slice(i, i + height, stride), slice(j, j + width, stride))
        y_plain += np.einsum("fc,chwn->fhwn", weight[:, :, i, j].astype(np.float64), padded[place])
        dw_plain[:, :, i, j] = np.einsum("fhwn,chwn->fc", dy.astype(np.float64), padded[place], optimize=True)
        dx_plain[place] += np.einsum("fc,fhwn->chwn", weight[:, :, i, j].astype(np.float64), dy)
    of = 3e-6 if dtype is np.float32 else 1e-14
    for ours, plain in (
        (y, y_plain), (grads["weight"], dw_plain), (dx, dx_plain[:, top : top + height, left : left + width])
    ):  # fmt: skip
        np.testing.assert_allclose(ours, plain, rtol=0, atol=of * np.abs(plain).max())


@pytest.mark.parametrize("channels", [16, 64])
def test_an_examples_outputs_do_not_depend_on_the_others(channels):
    """As evaluation takes as many together as memory allows."""
    layer = Convolution(channels, channels, 3, 1, "same")
    params = views_of(layer.parameter_shapes())
    layer.initialize(params, 3, "")
    x = numbers(channels, 6, 32, 64)
    together, _ = layer.forward(params, x, Batch(x=x, y=np.zeros(64), indices=np.arange(64)), "")
    for n in (3, 16, 33):
        part = np.ascontiguousarray(x[..., :n])
        alone, _ = layer.forward(params, part, Batch(x=part, y=np.zeros(n), indices=np.arange(n)), "")
        assert alone.tobytes() == np.ascontiguousarray(together[..., :n]).tobytes()
