"""Convolutional networks by name and in words."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from distsgd.core.errors import ConfigurationError
from distsgd.core.layout import Layout
from distsgd.nn.batch import Batch
from distsgd.nn.layers import (
    AveragePooling,
    BatchNormalization,
    Convolution,
    Dropout,
    Flatten,
    GlobalAveragePooling,
    MaxPooling,
)
from distsgd.nn.models import MODELS, ModelOptions, accepted_shape, build_model
from distsgd.nn.models.describe import describe
from distsgd.testing import check_layer_gradient
from tests.cases import first_of

CONV = "conv 20 5x5, pool 2, relu, conv 40 5x5, pool 2, relu, dense 100, relu, dense 10"
MNIST = (28, 28)


def build(text, shape=MNIST, outputs=10, **options):
    return build_model(text, shape, outputs, ModelOptions(**options))


def initialized(model, seed=0):
    layout = Layout.of(model.parameter_shapes())
    params = layout.views(np.full(layout.size, np.nan))
    model.initialize(params, seed, "")
    return params


def size(model):
    return Layout.of(model.parameter_shapes()).size


def test_a_list_of_layers():
    model = build(CONV)
    assert [layer.kind for layer in model.layers] == [
        "conv", "pool", "activation", "conv", "pool", "activation", "flatten", "dense", "activation", "dense",
    ]  # fmt: skip
    assert {name: shape for name, shape in model.parameter_shapes().items() if name.endswith("weight")} == {
        "conv1.weight": (20, 1, 5, 5), "conv2.weight": (40, 20, 5, 5),
        "dense1.weight": (100, 640), "dense2.weight": (10, 100),
    }  # fmt: skip
    assert accepted_shape(model, MNIST) == (1, 28, 28)
    assert model.output_shape((1, 28, 28)) == (10,)


WORDS = {
    "conv 32 3x3 same stride 2": Convolution(3, 32, (3, 3), (2, 2), "same"),
    "conv 8 5": Convolution(3, 8, (5, 5), (1, 1)),
    "conv 8 1x3 padding 2 stride 1x2": Convolution(3, 8, (1, 3), (1, 2), 2),
    "CONV  8   3x3 valid": Convolution(3, 8, (3, 3), (1, 1)),
    "pool 2": MaxPooling((2, 2)),
    "pool 3 stride 2": MaxPooling((3, 3), (2, 2)),
    "pool 1x2": MaxPooling((1, 2)),
    "average-pool 2": AveragePooling((2, 2)),
    "average_pool 3 stride 1": AveragePooling((3, 3), (1, 1)),
    "global-pool": GlobalAveragePooling(),
    "batch-norm": BatchNormalization(3),
    "dropout 0.5": Dropout(0.5),
    "channel-dropout .2": Dropout(0.2, channels=True),
    "flatten": Flatten(),
}


@pytest.mark.parametrize("text", WORDS)
def test_words(text):
    first, *_ = build(f"{text}, dense 10", (3, 16, 16)).layers
    if isinstance(first, Convolution):
        ours, wanted = (layer.window for layer in (first, WORDS[text]))
        assert (ours, first.filters, first.channels) == (wanted, WORDS[text].filters, WORDS[text].channels)
    else:
        assert first == WORDS[text]


def test_dense_alone_has_as_many_units_as_the_data_has_outputs():
    assert build("dense 5, tanh, dense", (4,), 3).output_shape((4,)) == (3,)
    assert build("dense", (4, 4), 7).output_shape((4, 4)) == (7,)


@pytest.mark.parametrize("text", [CONV, "lenet", "network3", "lasagne-cnn", "resnet20"])
def test_descriptions_are_lists_again(text):
    model = build(text, (1, 28, 28))
    printed = describe(model)
    assert "\n" not in printed
    if "residual" in printed:
        assert printed == "conv 16 3x3 same, batch-norm, relu, 9 residual blocks, global-pool, dense 10"
        return
    again = build(printed, (1, 28, 28))
    assert again.parameter_shapes() == model.parameter_shapes()
    assert [layer.kind for layer in again.layers] == [layer.kind for layer in model.layers]


def test_descriptions_say_padding_and_stride():
    text = (
        "conv 4 3x3 same, pool 3 stride 2, conv 4 3x2 padding 1 stride 2, channel-dropout 0.2, average-pool 2x1, dense"
    )
    assert describe(build(text, (3, 20, 20), 2)) == f"{text} 2"


ERRORS = {
    "cnov 20 5x5, dense 10": r"made of conv, pool, .*relu.*, got 'cnov 20 5x5'; did you mean conv\?",
    "conv 20, dense 10": r"expected conv FILTERS HEIGHTxWIDTH \[same \| padding N\] \[stride N\], got 'conv 20'",
    "conv 20 5x5 relu, dense 10": "got 'conv 20 5x5 relu'",
    "conv 20 5x5 pool 2, dense 10": "got 'conv 20 5x5 pool 2'",
    "pool x, dense 10": r"expected pool SIZE \[stride N\], got 'pool x'",
    "relu dense 10": "expected relu with nothing after it, got 'relu dense 10'; put a comma",
    "dropout, dense 10": "expected dropout RATE, got 'dropout'",
    "dropout 1.5, dense 10": "layer 1, dropout: dropout rate must be a finite number at least 0",
    "conv 20 5x5,, dense 10": "got ''",
    "dense 0, dense 10": "layer 1, dense: dense: expected at least one",
    "dense 10, conv 3 3x3": r"layer 2, conv: conv: expected images of shape \(1, height, width\), got \(10,\)",
    "conv 20 29x29, dense 10": "layer 1, conv: conv: a kernel of 29x29 doesn't fit images of 28x28",
    "pool 2 stride 0, dense 10": "layer 1, pool: pool stride: expected a number from 1",
    "conv " + "9" * 5000 + " 5x5, dense 10": "expected conv FILTERS",
    "nielsen: dense 10": "expected one of lenet, network3, lasagne-cnn in front of a list",
    "resnet": "expected one of softmax, mlp, lenet, .*, a list of layers such as 'conv .*, got 'resnet'",
}  # fmt: skip


@pytest.mark.parametrize("text", ERRORS)
def test_errors_name_the_word_and_what_there_is(text):
    with pytest.raises(ConfigurationError, match=ERRORS[text]) as caught:
        build(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", [{"dropout": 0.5}, {"batch_norm": True}, {"hidden": (5,)}, {"activation": "tanh"}])
@pytest.mark.parametrize("name", ["lenet", "resnet20", CONV])
def test_options_of_mlp_are_refused(name, option):
    with pytest.raises(ConfigurationError, match=f"{next(iter(option))} is an option of mlp, got it with '{name[:6]}"):
        build(name, **option)


def test_resnet20_needs_images():
    with pytest.raises(ConfigurationError, match="resnet20: expected images"):
        build("resnet20", (784,))


# --- the published networks

PARAMETERS = {
    "lenet": 20 * 26 + 50 * (20 * 25 + 1) + 500 * (50 * 16 + 1) + 10 * 501,
    "network3": 20 * 26 + 40 * (20 * 25 + 1) + 100 * (40 * 16 + 1) + 10 * 101,
    "lasagne-cnn": 32 * 26 + 32 * (32 * 25 + 1) + 256 * (32 * 16 + 1) + 10 * 257,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes(name):
    assert size(build(name)) == PARAMETERS[name]


def test_resnet20_is_the_papers():
    model = build("resnet20", (3, 32, 32))
    convolutions = [3 * 16 * 9, 6 * 16 * 16 * 9, 16 * 32 * 9, 5 * 32 * 32 * 9, 32 * 64 * 9, 5 * 64 * 64 * 9]
    assert size(model) == sum(convolutions) + 2 * (7 * 16 + 6 * 32 + 6 * 64) + 650 == 269_722
    assert model.multiply_adds((3, 32, 32)) == pytest.approx(40.8e6, rel=0.01)
    assert "block32.body.conv2.weight" in model.parameter_shapes()


@pytest.mark.parametrize("name", ["lenet", "network3", "lasagne-cnn", "resnet20"])
def test_models_run_in_float32(name):
    model = build(name, (1, 28, 28), 7)
    layout = Layout.of(model.parameter_shapes())
    params, grads = (layout.views(np.full(layout.size, np.nan, np.float32)) for _ in range(2))
    model.initialize(params, 0, "")
    x = np.random.default_rng(0).random((1, 28, 28, 3), np.float32)
    batch = Batch(x=x, y=np.zeros(3, np.int64), indices=np.arange(3), training=True)
    y, backward = model.forward_on_data(params, x, batch, "")
    assert (y.shape, y.dtype) == ((7, 3), np.float32)
    assert backward(y, grads) is None
    assert np.isfinite(grads.flat).all()


def test_a_dense_layer_on_flattened_data_skips_dx():
    model = build("dense 3, tanh, dense 2", (5, 4))
    layout = Layout.of(model.parameter_shapes())
    x, found = np.random.default_rng(0).random((1, 5, 4, 6)), []
    for forward in (model.forward_on_data, model.forward):
        grads = layout.views(np.full(layout.size, np.nan))
        batch = Batch(x=x, y=np.zeros(6), indices=np.arange(6))
        y, backward = forward(initialized(model), x, batch, "")
        found.append((backward(np.ones_like(y), grads), grads.flat))
    (nothing, flat), (dx, expected) = found
    assert nothing is None
    assert dx.shape == x.shape
    assert np.array_equal(flat, expected)


@pytest.mark.parametrize("name", first_of(["lenet: conv 3 3x3, pool 2, tanh, dense 4, tanh, dense 3", "resnet20"]))
def test_gradients_of_whole_models(name):
    check_layer_gradient(build(name, (2, 8, 8), 3), (2, 8, 8), n=4, per_parameter=False).raise_if_wrong()


def test_lenet_begins_as_theanos():
    params = initialized(build("lenet"))
    for name, fans in {"conv1": 25 + 125, "conv2": 500 + 312, "dense1": 800 + 500}.items():
        bound = sqrt(6 / fans)
        assert 0.98 * bound < np.abs(params[f"{name}.weight"]).max() < bound
    assert not params["dense2.weight"].any()
    assert not any(params[name].any() for name in params if name.endswith("bias"))


def test_network3_begins_as_nielsens():
    params = initialized(build("network3: conv 20 5x5, pool 2, relu, dense 1000, relu, dense 10"))
    assert params["conv1.weight"].std() == pytest.approx(sqrt(1 / 125), rel=0.1)
    assert params["dense1.weight"].std() == pytest.approx(sqrt(1 / 1000), rel=0.01)
    assert params["dense1.bias"].std() == pytest.approx(1.0, rel=0.1)
    assert params["conv1.bias"].std() == pytest.approx(1.0, rel=0.5)
    assert not params["dense2.weight"].any()
    assert not params["dense2.bias"].any()


def test_a_window_larger_than_all_of_a_filters_weights_counts_one_output():
    params = initialized(build("network3: conv 1 1x1, pool 2, sigmoid, dense 10"))
    assert np.isfinite(params["conv1.weight"]).all()


def test_lists_begin_by_their_activations():
    params = initialized(build("conv 64 5x5, pool 2, relu, conv 64 5x5, tanh, dense 10", (8, 16, 16)))
    assert params["conv1.weight"].std() == pytest.approx(sqrt(2 / 200), rel=0.05)
    assert params["conv2.weight"].std() == pytest.approx(sqrt(2 / (1600 + 1600)), rel=0.05)
    assert not params["conv1.bias"].any()


def test_initializers_that_are_asked_for_go_first():
    for name in ("network3", CONV):
        params = initialized(build(name, weight_initializer="constant(0.5)", bias_initializer="constant(2)"))
        assert all((params[key] == (0.5 if key.endswith("weight") else 2.0)).all() for key in params)
    assert not any(name.endswith("bias") for name in build("lenet", bias=False).parameter_shapes())


def test_every_model_is_covered_here():
    assert set(MODELS) == {"softmax", "mlp", "resnet20", *PARAMETERS}
