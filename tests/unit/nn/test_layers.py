from __future__ import annotations

import tracemalloc
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from distsgd.core.errors import ConfigurationError
from distsgd.core.layout import Layout
from distsgd.nn.batch import Batch
from distsgd.nn.initializers import Constant
from distsgd.nn.layers import (
    ACTIVATIONS,
    Activation,
    BatchNormalization,
    Dense,
    Dropout,
    Layer,
    Sequential,
    StatefulLayer,
)
from distsgd.nn.losses import SoftmaxCrossEntropy
from distsgd.testing import check_layer_gradient

REFERENCE = np.load(Path(__file__).parents[2] / "reference" / "layers.npz")
N = 7

# name: (layer, shape of an example)
UNDER_TEST: dict[str, tuple[Layer, tuple[int, ...]]] = {
    "dense": (Dense(5, 3), (5,)),
    "dense without bias": (Dense(5, 3, bias=False), (5,)),
    "dropout": (Dropout(0.4), (6,)),
    "dropout, images": (Dropout(0.4), (3, 3)),
    "batch normalization": (BatchNormalization(4), (4,)),
    "batch normalization, images": (BatchNormalization(2), (2, 3, 2)),
    **{name: (Activation(name), (5,)) for name in ACTIVATIONS},
    "relu, images": (Activation("relu"), (2, 3)),
    "sequential": (
        Sequential([Dense(5, 6), BatchNormalization(6), Activation("gelu"), Dropout(0.3), Dense(6, 2)]),
        (5,),
    ),
    "nested": (Sequential([Sequential([Dense(5, 4), Activation("tanh")]), Dense(4, 3)], ["body", "head"]), (5,)),
}
CASES = [pytest.param(layer, shape, id=name) for name, (layer, shape) in UNDER_TEST.items()]
DTYPES = [np.float32, np.float64]


def make(layer, shape, dtype=np.float64, training=True, n=N, **options):
    """Views of initialized parameters and NaN gradients, x, and a batch."""
    layout = Layout.of(layer.parameter_shapes())
    states = Layout.of(layer.state_shapes() if isinstance(layer, StatefulLayer) else {})
    params, grads = layout.views(np.zeros(layout.size, dtype)), layout.views(np.full(layout.size, np.nan, dtype))
    layer.initialize(params, 3, "")
    state = states.views(np.zeros(states.size, dtype))
    if isinstance(layer, StatefulLayer):
        layer.initialize_state(state)
    x = np.random.default_rng(0).standard_normal((*shape, n)).astype(dtype)
    batch = Batch(x=x, y=np.zeros(n), indices=np.arange(n), training=training, state=state, **options)
    return params, grads, x, batch


def with_statistics(layer, batch):
    layout = Layout.of(layer.statistics_shapes())
    batch.statistics = layout.views(np.full(layout.size, np.nan))
    return batch.statistics


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("layer", "shape"), CASES)
def test_gradients_are_derivatives(layer, shape, training):
    check_layer_gradient(layer, shape, N, training=training).raise_if_wrong()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("layer", "shape"), CASES)
def test_shapes_and_dtypes(layer, shape, dtype, training):
    params, grads, x, batch = make(layer, shape, dtype, training)
    y, backward = layer.forward(params, x, batch, "")
    assert y.shape == (*layer.output_shape(shape), N)
    dx = backward(np.ones_like(y), grads)
    assert dx is not None
    assert dx.shape == x.shape
    assert y.dtype == dx.dtype == dtype
    assert np.isfinite(grads.flat).all()  # every element written, none added to


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("layer", "shape"), CASES)
def test_nothing_given_is_changed(layer, shape, training):
    params, grads, x, batch = make(layer, shape, training=training)
    before = params.flat.copy(), x.copy(), batch.state.flat.copy()
    y, backward = layer.forward(params, x, batch, "")
    y_before, dy = y.copy(), np.random.default_rng(1).standard_normal(y.shape)
    dy_before = dy.copy()
    backward(dy, grads)
    for old, new in zip((*before, y_before, dy_before), (params.flat, x, batch.state.flat, y, dy), strict=True):
        assert np.array_equal(old, new)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("layer", "shape"), CASES)
def test_the_same_bits_again_and_backward_twice(layer, shape, training):
    results = []
    for _ in range(2):
        params, grads, x, batch = make(layer, shape, np.float32, training)
        y, backward = layer.forward(params, x, batch, "")
        for _ in range(2):
            grads.flat[...] = np.nan
            dx = backward(np.ones_like(y), grads)
            results.append((y, dx, grads.flat))
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(("layer", "shape"), CASES)
def test_evaluation_of_an_example_depends_on_it_alone(layer, shape):
    params, _, x, batch = make(layer, shape, training=False)
    y, _ = layer.forward(params, x, batch, "")
    batch.epoch, batch.step, batch.microbatch, batch.seed = 5, 6, 7, 8
    alone, _ = layer.forward(params, x[..., 2:3], batch, "")
    np.testing.assert_allclose(alone, y[..., 2:3], rtol=1e-12)


@pytest.mark.parametrize(("layer", "shape"), CASES)
def test_initial_values_depend_on_seed_and_path_alone(layer, shape):
    layout = Layout.of(layer.parameter_shapes())
    flats = []
    for seed, path in ((1, "a"), (1, "a"), (2, "a"), (1, "b")):
        flats.append(np.full(layout.size, np.nan))
        layer.initialize(layout.views(flats[-1]), seed, path)
    assert np.isfinite(flats[0]).all()
    assert np.array_equal(flats[0], flats[1])
    if any("weight" in name for name in layout.names):
        assert not np.array_equal(flats[0], flats[2])
        assert not np.array_equal(flats[0], flats[3])


# --- against PyTorch


def reference(case, dtype):
    prefix = case + "/"
    found = {name.removeprefix(prefix): REFERENCE[name] for name in REFERENCE.files if name.startswith(prefix)}
    return {name: array.astype(dtype) if array.dtype.kind == "f" else array for name, array in found.items()}


TOLERANCES = [pytest.param(np.float64, 1e-10, id="float64"), pytest.param(np.float32, 1e-5, id="float32")]


def run(layer, values, batch, dtype):
    """y, dx and gradients for the reference's x and dy, parameters by their names in `values`."""
    layout = Layout.of(layer.parameter_shapes())
    params, grads = (layout.views(np.full(layout.size, np.nan, dtype)) for _ in range(2))
    for name in layout.names:
        params[name][...] = values[name]
    y, backward = layer.forward(params, values["x"], batch, "")
    return y, backward(values["dy"], grads), grads


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_pytorchs(name, dtype, tolerance):
    r = reference(f"activation {name}", dtype)
    _, _, _, batch = make(Activation(name), (8,), dtype)
    y, dx, _ = run(Activation(name), r, batch, dtype)
    np.testing.assert_allclose(y, r["y"], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(dx, r["dx"], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_dense_is_pytorchs(dtype, tolerance):
    r, layer = reference("dense", dtype), Dense(6, 4)
    _, _, _, batch = make(layer, (6,), dtype)
    y, dx, grads = run(layer, r, batch, dtype)
    for ours, theirs in ((y, "y"), (dx, "dx"), (grads["weight"], "dweight"), (grads["bias"], "dbias")):
        np.testing.assert_allclose(ours, r[theirs], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("microbatches", [1, 3, 5])
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_batch_normalization_is_pytorchs(dtype, tolerance, microbatches):
    layer = BatchNormalization(5)
    state = make(layer, (5,), dtype)[3].state
    for step in range(4):
        r = reference(f"batchnorm {step}", dtype)
        _, _, _, batch = make(layer, (5,), dtype, training=step < 3, n=12)
        batch.state = state
        y, dx, grads = run(layer, r, batch, dtype)
        if microbatches == 1 or step == 3:
            for ours, theirs in ((y, "y"), (dx, "dx"), (grads["scale"], "dscale"), (grads["shift"], "dshift")):
                np.testing.assert_allclose(ours, r[theirs], rtol=tolerance, atol=3 * tolerance)
        if step < 3:  # the running statistics are those of the whole batch, however it is cut
            statistics = []
            for part in np.array_split(np.arange(12), microbatches):
                statistics.append(with_statistics(layer, batch))
                run(layer, r | {"x": r["x"][:, part], "dy": r["dy"][:, part]}, batch, dtype)
            for other in statistics[1:]:
                layer.combine_statistics(statistics[0], other)
            layer.update_state(state, statistics[0])
        for name, running in state.items():
            np.testing.assert_allclose(running, r[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_a_network_is_pytorchs(dtype, tolerance):
    r, values = reference("network", dtype), reference("network parameters", dtype)
    model = Sequential([Dense(6, 8), BatchNormalization(8), Activation("gelu"), Dense(8, 4)])
    params, grads, _, batch = make(model, (6,), dtype)
    assert set(values) == set(params)
    for name, array in params.items():
        array[...] = values[name]
    y, backward = model.forward(params, r["x"], batch, "")
    loss, dy = SoftmaxCrossEntropy().loss_and_grad(y, r["labels"])
    backward(dy, grads)
    assert loss == pytest.approx(float(r["loss"]), rel=tolerance)
    for name, theirs in reference("network gradients", dtype).items():
        np.testing.assert_allclose(grads[name], theirs, rtol=tolerance, atol=10 * tolerance)


# --- what is special to each layer


@pytest.mark.parametrize("shape", [(4,), (5, 1), (1, 5), ()])
def test_dense_refuses_examples_of_another_shape(shape):
    with pytest.raises(ConfigurationError, match=r"expected examples of shape \(5,\)"):
        Dense(5, 3).output_shape(shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_stay_finite_far_from_zero(name, dtype):
    layer = Activation(name)
    _, grads, _, batch = make(layer, (1,), dtype)
    x = np.array([[-1e4, -200.0, -90.0, -0.0, 0.0, 90.0, 200.0, 1e4]], dtype)
    y, backward = layer.forward({}, x, batch, "")
    assert np.isfinite(y).all()
    assert np.isfinite(backward(np.ones_like(x), grads)).all()
    assert np.isnan(layer.forward({}, np.full((1, 2), np.nan, dtype), batch, "")[0]).all()


def test_dropout_keeps_the_mean_and_is_fresh_in_every_step_microbatch_and_layer():
    layer = Dropout(0.25)
    _, grads, _, batch = make(layer, (200,), n=500)
    ones = np.ones((200, 500))
    y, backward = layer.forward({}, ones, batch, "dropout1")
    assert set(np.unique(y)) == {0.0, 1 / 0.75}
    assert np.mean(y == 0) == pytest.approx(0.25, abs=0.01)
    assert np.array_equal(backward(ones, grads), y)
    masks = [y]
    for change, path in (({"step": 1}, "dropout1"), ({"microbatch": 1}, "dropout1"), ({"epoch": 1}, "dropout1"),
                         ({"seed": 1}, "dropout1"), ({}, "dropout2")):  # fmt: skip
        _, _, _, other = make(layer, (200,), n=500, **change)
        masks.append(layer.forward({}, ones, other, path)[0])
    for i, mask in enumerate(masks):
        for other_mask in masks[:i]:
            assert np.mean((mask == 0) == (other_mask == 0)) == pytest.approx(0.625, abs=0.02)  # independent


def test_dropout_is_the_identity_in_evaluation_and_with_rate_zero():
    for layer, training in ((Dropout(0.5), False), (Dropout(0.0), True)):
        _, _, x, batch = make(layer, (4,), training=training)
        assert layer.forward({}, x, batch, "")[0] is x


def test_sequential_counts_names_by_kind():
    @dataclass(frozen=True)
    class Mine(Activation):
        kind = ""

    layers = [Dense(4, 4), Activation("relu"), BatchNormalization(4), Dense(4, 4), Mine("relu"), Dropout(0.1)]
    model = Sequential(layers)
    assert model.names == ("dense1", "activation1", "batchnorm1", "dense2", "mine1", "dropout1")
    assert list(model.parameter_shapes()) == [
        "dense1.weight", "dense1.bias", "batchnorm1.scale", "batchnorm1.shift", "dense2.weight", "dense2.bias",
    ]  # fmt: skip
    assert list(model.state_shapes()) == ["batchnorm1.running_mean", "batchnorm1.running_variance"]


def test_sequential_hands_each_layer_its_own_part_and_path():
    model = Sequential([Sequential([Dense(2, 2)]), Dense(2, 2, bias_initializer=Constant(0.5))], ["body", "head"])
    params, *_ = make(model, (2,))
    assert list(params) == ["body.dense1.weight", "body.dense1.bias", "head.weight", "head.bias"]
    assert not np.array_equal(params["body.dense1.weight"], params["head.weight"])
    assert np.array_equal(params["head.bias"], [0.5, 0.5])
    alone = Layout.of(Dense(2, 2).parameter_shapes()).views(np.zeros(6))
    Dense(2, 2).initialize(alone, 3, "body.dense1")
    assert np.array_equal(alone["weight"], params["body.dense1.weight"])


def test_paths_reach_into_nested_layers():
    model = Sequential([Sequential([BatchNormalization(50), Dropout(0.5)], ["normal", "drop"])] * 2, ["a", "b"])
    params, _, x, batch = make(model, (50,))
    statistics = with_statistics(model, batch)
    y, _ = model.forward(params, x, batch, "")
    assert np.isfinite(statistics.flat).all()
    dropped_by_a = Sequential(model.layers[:1], ["a"]).forward(params, x, batch, "")[0] == 0
    assert np.mean((y == 0) & ~dropped_by_a) == pytest.approx(0.25, abs=0.1)  # b drops others than a


def test_sequential_says_which_layer_does_not_fit():
    model = Sequential([Dense(5, 3), Activation("relu"), Dense(4, 2)])
    with pytest.raises(ConfigurationError, match=r"dense2: .*\(4,\), got \(3,\)"):
        model.output_shape((5,))


NONSENSE = [
    lambda: Dense(0, 3), lambda: Dense(3, 0), lambda: Activation("swish"),
    lambda: Dropout(1.0), lambda: Dropout(-0.1), lambda: Dropout(float("nan")),
    lambda: BatchNormalization(0), lambda: BatchNormalization(3, 1.5), lambda: BatchNormalization(3, epsilon=0.0),
    lambda: BatchNormalization(3).output_shape((4,)), lambda: Sequential([]), lambda: Sequential([np.tanh]),
    lambda: Sequential([Dense(3, 3)], ["a", "b"]), lambda: Sequential([Dense(3, 3)] * 2, ["a", "a"]),
    lambda: Sequential([Dense(3, 3)], ["a.b"]),
]  # fmt: skip


@pytest.mark.parametrize("build", NONSENSE)
def test_what_makes_no_sense_is_refused(build):
    with pytest.raises(ConfigurationError):
        build()


def test_a_plain_layer_with_state_is_refused_where_its_class_is_made() -> None:
    body = {"state_shapes": lambda self: {"mean": (3,)}}
    with pytest.raises(ConfigurationError, match=r"Mean: .* must be a distsgd\.nn\.StatefulLayer"):
        type("Mean", (Layer,), body)
    with pytest.raises(ConfigurationError, match=r"^Mean: "):
        type("Mean", (Dense,), body)
    assert issubclass(type("Mean", (BatchNormalization,), body), BatchNormalization)


@pytest.mark.parametrize("shape", [(12, 8, 8, 40), (1, 12, 8, 8, 40)], ids=["images", "a stack of images"])
def test_relu_keeps_its_output_alone(shape):
    """Neither its input nor zeros of that size: what a model's activations need is once their memory."""
    x = np.random.default_rng(0).standard_normal(shape)
    size, of_x = x.nbytes, weakref.ref(x)
    tracemalloc.start()
    y, backward = Activation("relu").forward({}, x, None, "")
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 1.2 * size
    np.testing.assert_array_equal(y, np.where(x > 0, x, 0.0))
    expected = np.where(x > 0, 2.0, 0.0)
    del x
    assert of_x() is None
    np.testing.assert_array_equal(backward(np.full(shape, 2.0), {}), expected)
