"""Convolution, pooling and residual layers: against plain loops, PyTorch's values and numerical derivatives."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from distsgd.core.errors import ConfigurationError
from distsgd.core.layout import Layout
from distsgd.nn.batch import Batch
from distsgd.nn.layers import (
    Activation,
    AveragePooling,
    BatchNormalization,
    Convolution,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePooling,
    MaxPooling,
    Residual,
    Sequential,
    Subsample,
)
from distsgd.nn.layers.convolution import PooledConvolution
from distsgd.testing import check_layer_gradient
from tests.cases import first_of

REFERENCE = np.load(Path(__file__).parents[2] / "reference" / "images.npz")
TOLERANCES = [pytest.param(np.float64, 1e-10, id="float64"), pytest.param(np.float32, 1e-5, id="float32")]


def views_of(layer, dtype=np.float64, seed=3):
    """Initialized parameters, and gradients of NaN."""
    layout = Layout.of(layer.parameter_shapes())
    params, grads = layout.views(np.zeros(layout.size, dtype)), layout.views(np.full(layout.size, np.nan, dtype))
    layer.initialize(params, seed, "")
    return params, grads


def batch_of(n, x=None, **options):
    return Batch(x=np.zeros((0, n)) if x is None else x, y=np.zeros(n), indices=np.arange(n), **options)


def numbers(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# --- against plain loops

GEOMETRIES = [
    # channels, filters, height, width, kernel, stride, padding, n
    *((2, 3, 7, 6, kernel, stride, padding, 3)
      for kernel, stride, padding in product((1, 2, 3, (3, 2), 5), (1, 2, (2, 1), 3), ("valid", "same", 1, 4))),
    (1, 1, 1, 1, 1, 1, "valid", 1),
    (3, 2, 1, 9, (1, 4), (1, 2), "valid", 2),
    (1, 4, 28, 28, 5, 1, "valid", 10),
    (16, 4, 32, 32, 3, 1, "same", 33),  # several blocks of rows
    (3, 5, 9, 9, 3, 4, "same", 600),
]  # fmt: skip


def plain_convolution(x, weight, bias, layer):
    """The equation in the layer's docstring, one output pixel at a time."""
    window = layer.window
    around = [(0, 0), *zip(window.before, window.after, strict=True), (0, 0)]
    padded = np.pad(x, around)
    kh, kw = window.size
    _, out_height, out_width = layer.output_shape(x.shape[:3])
    y = np.empty((layer.filters, out_height, out_width, x.shape[3]))
    for h, w in product(range(out_height), range(out_width)):
        top, left = h * window.stride[0], w * window.stride[1]
        patch = padded[:, top : top + kh, left : left + kw]
        y[:, h, w] = np.tensordot(weight, patch, 3) + bias[:, None]
    return y


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_convolution_is_its_equation_and_backward_its_transpose(geometry):
    channels, filters, height, width, kernel, stride, padding, n = geometry
    layer = Convolution(channels, filters, kernel, stride, padding)
    params, grads = views_of(layer)
    params["bias"][...] = numbers(filters, seed=1)
    x = numbers(channels, height, width, n)
    y, backward = layer.forward(params, x, batch_of(n), "")
    assert y.shape[:3] == layer.output_shape(x.shape[:3])
    np.testing.assert_allclose(y, plain_convolution(x, params["weight"], params["bias"], layer), rtol=0, atol=1e-12)
    # <dy, J v> = <Jᵀ dy, v> for the directions of x, weight and bias, in which the layer is linear.
    dy = numbers(*y.shape, seed=2)
    dx = backward(dy, grads)
    other_x, other_weight = numbers(*x.shape, seed=4), numbers(*params["weight"].shape, seed=5)
    zeros = np.zeros(filters)
    by_x = np.sum(dy * plain_convolution(other_x, params["weight"], zeros, layer))
    by_weight = np.sum(dy * plain_convolution(x, other_weight, zeros, layer))
    assert np.sum(dx * other_x) == pytest.approx(by_x, rel=1e-10, abs=1e-10)
    assert np.sum(grads["weight"] * other_weight) == pytest.approx(by_weight, rel=1e-10, abs=1e-10)
    np.testing.assert_allclose(grads["bias"], dy.sum(axis=(1, 2, 3)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("size", "stride", "height", "width"),
    [
        *((size, stride, 7, 6) for size, stride in product((1, 2, 3, (3, 2)), (None, 1, 2, (3, 1), 5))),
        (2, 2, 8, 8), (3, 2, 4, 5), ((1, 4), None, 1, 9), (6, None, 6, 6),
    ],
)  # fmt: skip
def test_pooling_is_the_largest_and_the_mean_of_each_window(size, stride, height, width):
    x = numbers(3, height, width, 4)
    for layer, function in ((MaxPooling(size, stride), np.max), (AveragePooling(size, stride), np.mean)):
        (kh, kw), (step_h, step_w) = layer.window.size, layer.window.stride
        y, backward = layer.forward({}, x, batch_of(4), "")
        _, out_height, out_width = layer.output_shape(x.shape[:3])
        dy, dx = numbers(*y.shape, seed=1), np.zeros(x.shape)
        for c, h, w, k in np.ndindex(3, out_height, out_width, 4):
            inside = (c, slice(h * step_h, h * step_h + kh), slice(w * step_w, w * step_w + kw), k)
            assert y[c, h, w, k] == pytest.approx(function(x[inside]), rel=1e-14)
            dx[inside] += dy[c, h, w, k] * ((x[inside] == y[c, h, w, k]) if function is np.max else 1 / (kh * kw))
        np.testing.assert_allclose(backward(dy, {}), dx, rtol=0, atol=1e-12)


POOLED = [
    *((2, 3, 9, 8, kernel, stride, padding, 3, size) for kernel, stride, padding, size
      in product((1, 3, (3, 2)), (1, 2), ("valid", "same", 2), (1, 2, (1, 3), (2, 1)))),
    (1, 4, 28, 28, 5, 1, "valid", 10, 2), (16, 4, 32, 32, 3, 1, "same", 33, 3), (2, 3, 12, 9, 3, 1, "same", 4, (4, 9)),
    (16, 2, 12, 12, 3, 1, "valid", 100, 7),  # blocks of rows that no window covers
]  # fmt: skip


@pytest.mark.parametrize("geometry", POOLED, ids=str)
def test_convolution_and_pooling_together_are_both(geometry):
    channels, filters, height, width, kernel, stride, padding, n, size = geometry
    conv, pool = Convolution(channels, filters, kernel, stride, padding), MaxPooling(size)
    together = PooledConvolution(conv, pool)
    x = np.round(numbers(channels, height, width, n))  # so that there are equals
    batch = batch_of(n)
    params, grads = views_of(conv)
    params["weight"][...] = np.round(2 * params["weight"])
    params["bias"][...] = numbers(filters, seed=1)
    middle, conv_backward = conv.forward(params, x, batch, "")
    y, pool_backward = pool.forward({}, middle, batch, "")
    dy = numbers(*y.shape, seed=2)
    dx = conv_backward(pool_backward(dy, {}), grads)
    y_together, backward = together.forward(params, x, batch, "")
    other = views_of(together)[1]
    np.testing.assert_allclose(y_together, y, rtol=0, atol=1e-12)
    np.testing.assert_allclose(backward(dy, other), dx, rtol=0, atol=1e-12)
    np.testing.assert_allclose(other.flat, grads.flat, rtol=1e-12, atol=1e-11)


def test_only_layers_that_fit_together_are_fused():
    conv = Convolution(1, 4, 3)
    assert conv.fused(MaxPooling(2)) is not None
    assert Convolution(2, 6, 3).fused(MaxPooling(2)) is None
    for layer in (MaxPooling(3, 2), MaxPooling(2, 3), AveragePooling(2), Activation("relu"), Convolution(2, 2, 1)):
        assert conv.fused(layer) is None
    assert MaxPooling(2).fused(MaxPooling(2)) is None


@pytest.mark.parametrize(("size", "stride"), [(2, None), (2, 1), (3, 2), (3, None)])
def test_max_pooling_hands_the_gradient_of_equals_to_the_first(size, stride):
    """In the order of rows, as PyTorch does: each dy arrives once."""
    x = np.round(numbers(2, 6, 6, 50))  # many equals in a window
    layer = MaxPooling(size, stride)
    y, backward = layer.forward({}, x, batch_of(50), "")
    kh, step = layer.window.size[0], layer.window.stride[0]
    dy, expected = numbers(*y.shape, seed=1), np.zeros(x.shape)
    for c, h, w, k in np.ndindex(y.shape):
        inside = x[c, h * step : h * step + kh, w * step : w * step + kh, k]
        i, j = np.unravel_index(np.argmax(inside), inside.shape)
        expected[c, h * step + i, w * step + j, k] += dy[c, h, w, k]
    np.testing.assert_allclose(backward(dy, {}), expected, rtol=0, atol=1e-12)


def test_max_pooling_passes_nan_on():
    x = numbers(1, 4, 4, 3)
    x[0, 1, 1, 1] = np.nan
    y, _ = MaxPooling(2).forward({}, x, batch_of(3), "")
    assert np.isnan(y[0, 0, 0, 1])
    assert np.isnan(y).sum() == 1


# --- against PyTorch


def reference(case, dtype):
    prefix = case + "/"
    found = {name.removeprefix(prefix): REFERENCE[name] for name in REFERENCE.files if name.startswith(prefix)}
    assert found, case
    return {name: array.astype(dtype) if array.dtype.kind == "f" else array for name, array in found.items()}


OF_PYTORCH = {
    "conv valid": Convolution(3, 4, 5),
    "conv same": Convolution(3, 4, 3, padding="same"),
    "conv same, even kernel": Convolution(3, 4, 4, padding="same"),
    "conv stride 2": Convolution(3, 4, 3, 2, 1),
    "conv stride 2 same": Convolution(3, 4, 3, 2, "same"),
    "conv oblong": Convolution(3, 4, (1, 3), (2, 1), 2),
    "conv 1x1": Convolution(3, 4, 1, bias=False),
    "conv 1x1 stride 2": Convolution(3, 4, 1, 2),
    "max 2": MaxPooling(2),
    "max 3 stride 2": MaxPooling(3, 2),
    "max oblong": MaxPooling((1, 3), (2, 1)),
    "average 2": AveragePooling(2),
    "average 3 stride 2": AveragePooling(3, 2),
    "global average": GlobalAveragePooling(),
    "flatten": Flatten(),
    "batch normalization": BatchNormalization(3),
    "residual": Residual(
        Sequential([
            Convolution(3, 5, 3, 2, "same", bias=False), BatchNormalization(5), Activation("relu"),
            Convolution(5, 5, 3, 1, "same", bias=False), BatchNormalization(5),
        ]),
        Sequential([Convolution(3, 5, 1, 2, bias=False), BatchNormalization(5)]),
    ),
    "residual, identity": Residual(Sequential([Convolution(3, 3, 3, 1, "same"), Activation("tanh")])),
}  # fmt: skip


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("case", OF_PYTORCH)
def test_layers_are_pytorchs(case, dtype, tolerance):
    layer, values = OF_PYTORCH[case], reference(case, dtype)
    params, grads = views_of(layer, dtype)
    assert {f"parameter {name}" for name in params} == {name for name in values if name.startswith("parameter")}
    for name, array in params.items():
        array[...] = values[f"parameter {name}"]
    batch = batch_of(values["x"].shape[-1], training=True)
    y, backward = layer.forward(params, values["x"], batch, "")
    dx = backward(values["dy"], grads)
    np.testing.assert_allclose(y, values["y"], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(dx, values["dx"], rtol=tolerance, atol=tolerance)
    for name, array in grads.items():
        np.testing.assert_allclose(array, values[f"gradient {name}"], rtol=tolerance, atol=10 * tolerance)


# --- gradients

CHECKED = {
    **{f"conv {kernel} {stride} {padding}": (Convolution(2, 3, kernel, stride, padding), (2, 5, 4))
       for kernel, stride, padding in product((1, 2, 3, (3, 2)), (1, 2, (1, 2)), ("valid", "same", 2))},
    "conv without bias": (Convolution(3, 2, 3, padding="same", bias=False), (3, 4, 4)),
    **{f"max pooling {size} {stride}": (MaxPooling(size, stride), (2, 5, 6))
       for size, stride in product((2, 3, (2, 3)), (None, 1, 2, 4))},
    **{f"average pooling {size} {stride}": (AveragePooling(size, stride), (2, 5, 6))
       for size, stride in product((2, 3, (2, 3)), (None, 1, 2, 4))},
    "global average pooling": (GlobalAveragePooling(), (3, 4, 2)),
    "flatten": (Flatten(), (3, 2, 2)),
    "channel dropout": (Dropout(0.4, channels=True), (4, 3, 2)),
    "batch normalization": (BatchNormalization(3), (3, 4, 2)),
    "subsample": (Subsample(5, 2), (3, 5, 4)),
    "residual": (Residual(Sequential([Convolution(2, 2, 3, padding="same"), BatchNormalization(2)])), (2, 4, 4)),
    "residual, projection": (
        Residual(Sequential([Convolution(2, 4, 3, 2, "same"), Dropout(0.3)]), Convolution(2, 4, 1, 2)), (2, 4, 4),
    ),
    "residual, subsampled": (Residual(Convolution(2, 4, 3, 2, "same"), Subsample(4)), (2, 5, 4)),
    "residual of vectors": (Residual(Sequential([Dense(4, 3), Activation("tanh"), Dense(3, 4)])), (4,)),
    **{f"conv and pooling {kernel} {stride} {padding} {size}": (
        PooledConvolution(Convolution(2, 3, kernel, stride, padding), MaxPooling(size)), (2, 9, 8))
       for kernel, stride, padding, size in product((1, (3, 2)), (1, 2), ("valid", "same"), (2, (1, 3)))},
    # No biases in front of batch normalization: their gradient is 0, and differences give nothing but their noise.
    "network": (
        Sequential([
            Convolution(1, 3, 3, bias=False), BatchNormalization(3), Activation("tanh"), MaxPooling(2), Dropout(0.3),
            Residual(Sequential([
                Convolution(3, 3, 3, padding="same", bias=False), BatchNormalization(3), Activation("gelu"),
            ])),
            Convolution(3, 4, 2), AveragePooling(2), Dropout(0.2, channels=True), Flatten(), Dense(4, 3),
        ]),
        (1, 9, 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("training", first_of([True, False]))
@pytest.mark.parametrize("name", CHECKED)
def test_gradients_are_derivatives(name, training):
    layer, shape = CHECKED[name]
    every = int(np.prod(shape)) < 50
    check_layer_gradient(layer, shape, 4, training=training, per_parameter=every).raise_if_wrong()


# --- what is special to each layer


def test_convolution_skips_dx_on_data():
    layer = Convolution(2, 3, 3, padding="same")
    params, grads = views_of(layer)
    x = numbers(2, 5, 5, 4)
    y, backward = layer.forward_on_data(params, x, batch_of(4), "")
    assert backward(np.ones_like(y), grads) is None
    expected = grads.flat.copy()
    _, backward = layer.forward(params, x, batch_of(4), "")
    assert backward(np.ones_like(y), grads) is not None
    assert np.array_equal(expected, grads.flat)


def test_a_residual_block_on_data_has_no_dx_but_all_gradients():
    for shortcut in (None, Convolution(2, 2, 1)):
        layer = Residual(Convolution(2, 2, 3, padding="same"), shortcut)
        params, grads = views_of(layer)
        x = numbers(2, 5, 5, 4)
        y, backward = layer.forward_on_data(params, x, batch_of(4), "")
        assert backward(np.ones_like(y), grads) is None
        assert np.isfinite(grads.flat).all()


@pytest.mark.parametrize("layer", [Convolution(2, 3, 3), MaxPooling(2), AveragePooling(2), GlobalAveragePooling()])
def test_memory_order_does_not_matter(layer):
    """A microbatch of examples comes as the transposed view of rows."""
    params, grads = views_of(layer, np.float32)
    rows = numbers(6, 2, 8, 8, dtype=np.float32)
    results = []
    for x in (rows.transpose(1, 2, 3, 0), np.ascontiguousarray(rows.transpose(1, 2, 3, 0))):
        y, backward = layer.forward(params, x, batch_of(6), "")
        dy = numbers(*y.shape, dtype=np.float32)
        for other in (dy, np.asfortranarray(dy)):
            grads.flat[...] = np.nan
            results.append((y, backward(other, grads), grads.flat.copy()))
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_channel_dropout_drops_whole_channels_of_examples():
    layer = Dropout(0.25, channels=True)
    ones = np.ones((60, 4, 3, 50))
    y, backward = layer.forward({}, ones, batch_of(50, training=True), "dropout1")
    assert set(np.unique(y)) == {0.0, 1 / 0.75}
    assert np.array_equal(y.min(axis=(1, 2)), y.max(axis=(1, 2)))
    assert np.mean(y == 0) == pytest.approx(0.25, abs=0.02)
    assert np.array_equal(backward(ones, {}), y)
    assert layer.forward({}, ones, batch_of(50), "dropout1")[0] is ones


def test_subsample_keeps_the_channels_it_has():
    x = numbers(2, 5, 4, 3)
    y, _ = Subsample(3, 2).forward({}, x, batch_of(3), "")
    assert np.array_equal(y[:2], x[:, ::2, ::2])
    assert not y[2].any()


def test_multiply_adds():
    assert Dense(4, 3).multiply_adds((4,)) == 12
    assert Convolution(3, 8, 5).multiply_adds((3, 10, 9)) == 8 * 6 * 5 * 3 * 25
    body = Sequential([Convolution(3, 3, 3, padding="same"), Activation("relu"), Convolution(3, 3, 1)])
    assert body.multiply_adds((3, 4, 4)) == 16 * (81 + 9)
    assert Residual(body, Convolution(3, 3, 1)).multiply_adds((3, 4, 4)) == 16 * (81 + 9 + 9)


def test_residual_parts_have_names_and_statistics():
    layer = OF_PYTORCH["residual"]
    assert list(layer.parameter_shapes())[:2] == ["body.conv1.weight", "body.batchnorm1.scale"]
    assert "shortcut.batchnorm1.running_mean" in layer.state_shapes()
    layout, states = Layout.of(layer.statistics_shapes()), Layout.of(layer.state_shapes())
    statistics, state = layout.views(np.full(layout.size, np.nan)), states.views(np.zeros(states.size))
    layer.initialize_state(state)
    params, _ = views_of(layer)
    layer.forward(params, numbers(3, 6, 6, 4), batch_of(4, training=True, statistics=statistics, state=state), "")
    assert np.isfinite(statistics.flat).all()
    other = layout.views(statistics.flat.copy())
    layer.combine_statistics(statistics, other)
    assert statistics["body.batchnorm1.count"] == 2 * other["body.batchnorm1.count"] == 2 * 3 * 3 * 4
    before = state.flat.copy()
    layer.update_state(state, statistics)
    assert not np.array_equal(before, state.flat)


REFUSED = [
    (lambda: Convolution(0, 3, 3), "at least one channel"),
    (lambda: Convolution(3, 3, 0), "conv kernel: expected a number from 1"),
    (lambda: Convolution(3, 3, (3, 3, 3)), "conv kernel"),
    (lambda: Convolution(3, 3, 3, 0), "conv stride"),
    (lambda: Convolution(3, 3, 3, 1, "full"), "expected valid, same or a number"),
    (lambda: Convolution(3, 3, 3, 1, -1), "expected valid, same or a number"),
    (lambda: Convolution(3, 3, 3).output_shape((1, 8, 8)), r"shape \(3, height, width\), got \(1, 8, 8\)"),
    (lambda: Convolution(3, 3, 3).output_shape((3, 64)), r"got \(3, 64\)"),
    (lambda: Convolution(3, 3, 5).output_shape((3, 4, 8)), "a kernel of 5x5 doesn't fit images of 4x8"),
    (lambda: MaxPooling(0), "pool window"),
    (lambda: MaxPooling(2, 0), "pool stride"),
    (lambda: AveragePooling(3).output_shape((1, 2, 2)), "a window of 3x3 doesn't fit images of 2x2"),
    (lambda: MaxPooling(2).output_shape((8, 8)), "channels, height, width"),
    (lambda: GlobalAveragePooling().output_shape((8,)), "channels, height, width"),
    (lambda: Subsample(2).output_shape((3, 8, 8)), "at most 2 channels"),
    (lambda: Subsample(2, 0), "stride from 1"),
    (lambda: Dropout(0.5, channels=True).output_shape((8,)), "channel dropout: expected images"),
    (lambda: Residual(Convolution(3, 4, 3)).output_shape((3, 8, 8)), r"body puts out shape \(4, 6, 6\)"),
    (lambda: Residual(np.tanh), "expected layers"),
]


@pytest.mark.parametrize(("build", "message"), REFUSED)
def test_what_makes_no_sense_is_refused(build, message):
    with pytest.raises(ConfigurationError, match=message):
        build()
