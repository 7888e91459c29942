from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from distsgd.core.errors import ConfigurationError
from distsgd.core.layout import Layout
from distsgd.nn.batch import Batch
from distsgd.nn.layers import ACTIVATIONS, Activation, BatchNormalization, Dense, Dropout, Sequential
from distsgd.nn.models import MODELS, ModelOptions, accepted_shape
from distsgd.nn.models.describe import describe
from distsgd.testing import check_layer_gradient


def initialized(model, seed=0):
    layout = Layout.of(model.parameter_shapes())
    params = layout.views(np.zeros(layout.size))
    model.initialize(params, seed, "")
    return params


@pytest.mark.parametrize("options", [ModelOptions(), ModelOptions(hidden=()), ModelOptions((5,), batch_norm=True)])
@pytest.mark.parametrize("name", ["softmax", "mlp"])
def test_plain_models_take_flat_examples_and_gives_the_outputs(name, options):
    model = MODELS[name]((4, 3), 7, options)
    assert model.output_shape((12,)) == (7,)
    layout = Layout.of(model.parameter_shapes())
    params = layout.views(np.zeros(layout.size, np.float32))
    model.initialize(params, 0, "")
    x = np.ones((12, 5), np.float32)
    batch = Batch(x=x, y=np.zeros(5, np.int64), indices=np.arange(5), training=True)
    y, _ = model.forward(params, x, batch, "")
    assert y.shape == (7, 5)
    assert y.dtype == np.float32


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_of_whole_models(activation):
    options = ModelOptions((6, 5), activation, dropout=0.2, batch_norm=True, output_activation="sigmoid")
    check_layer_gradient(MODELS["mlp"]((4,), 3, options), (4,), n=8).raise_if_wrong()


def test_softmax_starts_at_zero():
    params = initialized(MODELS["softmax"]((8, 8), 10, ModelOptions()))
    assert {name: array.shape for name, array in params.items()} == {"dense1.weight": (10, 64), "dense1.bias": (10,)}
    assert not params.flat.any()


def test_the_order_after_a_hidden_layer():
    model = MODELS["mlp"]((4,), 3, ModelOptions((6,), "tanh", 0.2, batch_norm=True, output_activation="sigmoid"))
    assert isinstance(model, Sequential)
    assert [layer.kind for layer in model.layers] == [
        "dense", "batchnorm", "activation", "dropout", "dense", "activation",
    ]  # fmt: skip
    plain = MODELS["mlp"]((4,), 3, ModelOptions((6, 5), bias=False))
    assert list(plain.parameter_shapes()) == ["dense1.weight", "dense2.weight", "dense3.weight"]


@pytest.mark.parametrize(
    ("activation", "deviation"),
    [("relu", sqrt(2 / 400)), ("gelu", sqrt(2 / 400)), ("tanh", sqrt(2 / 600)), ("sigmoid", sqrt(2 / 600))],
)
def test_default_weights_fit_the_activation(activation, deviation):
    params = initialized(MODELS["mlp"]((400,), 10, ModelOptions((200,), activation)))
    assert params["dense1.weight"].std() == pytest.approx(deviation, rel=0.02)
    assert not params["dense1.bias"].any()


def test_chosen_initializers():
    options = ModelOptions((20,), weight_initializer="uniform(-0.5, -0.4)", bias_initializer="constant(0.1)")
    for name in ("softmax", "mlp"):
        params = initialized(MODELS[name]((4,), 3, options))
        assert -0.5 <= params["dense1.weight"].min() <= params["dense1.weight"].max() < -0.4
        assert (params["dense1.bias"] == 0.1).all()


@pytest.mark.parametrize(
    "options",
    [
        {"hidden": (0,)},
        {"activation": "swish"},
        {"dropout": 1.0},
        {"weight_initializer": "xavier"},
        {"bias_initializer": "normal"},
        {"output_activation": "tanh"},
    ],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ConfigurationError):
        ModelOptions(**options)


def test_accepted_shape():
    assert accepted_shape(Dense(12, 3), (4, 3)) == (12,)
    assert accepted_shape(Dense(12, 3), (12,)) == (12,)
    assert accepted_shape(BatchNormalization(4), (4, 3)) == (4, 3)
    with pytest.raises(ConfigurationError, match=r"got \(4, 4\)"):
        accepted_shape(Dense(12, 3), (4, 4))


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (MODELS["softmax"]((8, 8), 10, ModelOptions()), "64-10"),
        (MODELS["mlp"]((8, 8), 10, ModelOptions()), "64-128-128-10 relu"),
        (MODELS["mlp"]((2,), 1, ModelOptions((4,), "tanh", 0.5, True)), "2-4-1 batchnorm tanh dropout 0.5"),
        (Sequential([Sequential([Dense(3, 4)]), Activation("tanh"), Dense(4, 2)]), "3-4-2 tanh"),
        (Dropout(0.25), "dropout 0.25"),
    ],
)
def test_describe(model, text):
    assert describe(model) == text
