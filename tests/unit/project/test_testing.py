from __future__ import annotations

import numpy as np
import pytest

from distsgd.nn.batch import Batch
from distsgd.nn.layers import Dense
from distsgd.nn.layers.activation import Activation
from distsgd.testing import check_gradient, check_layer_gradient

PARAMS = {"a": np.array([0.5, -1.5, 2.0], np.float32), "b": np.array([[1.0, 2.0]], np.float32)}


def batch(n=4):
    return Batch(x=np.linspace(0, 1, n, dtype=np.float32)[None], y=np.zeros(n, np.int64), indices=np.arange(n))


def smooth(params, grads, batch):
    """Σ sin(a) · Σ b² · Σ x, with its gradient."""
    s, q, total = np.sin(params["a"]).sum(), np.square(params["b"]).sum(), batch.x.sum()
    grads["a"][...] = np.cos(params["a"]) * q * total
    grads["b"][...] = 2 * params["b"] * s * total
    return float(s * q * total), len(batch)


@pytest.mark.parametrize("per_parameter", [False, True])
def test_a_right_gradient_passes(per_parameter):
    result = check_gradient(smooth, PARAMS, batch(), per_parameter=per_parameter)
    assert result.ok
    assert result.max_relative_error < 1e-8
    assert result.checked == (5 if per_parameter else 20)
    result.raise_if_wrong()
    assert "right" in str(result)


def test_a_gradient_of_zero_passes():
    def constant(params, grads, batch):
        grads["a"][...] = grads["b"][...] = 0.0
        return 1e3 + float(0 * params["a"].sum()), len(batch)

    assert check_gradient(constant, PARAMS, batch()).ok


def spoil_element(grads):
    grads["b"][0, 1] *= 1.0001


def skip(grads):
    grads["b"][...] = np.nan


def wrong_sign(grads):
    grads["b"] *= -1.0


@pytest.mark.parametrize("spoil", [spoil_element, skip, wrong_sign])
def test_a_wrong_gradient_is_found_and_named(spoil):
    def wrong(params, grads, batch):
        result = smooth(params, grads, batch)
        spoil({"a": grads["a"], "b": grads["b"]})
        return result

    result = check_gradient(wrong, PARAMS, batch(), per_parameter=True)
    assert not result.ok
    assert result.worst in ("b[0, 0]", "b[0, 1]")
    along = check_gradient(wrong, PARAMS, batch())
    assert along.worst == "b"
    with pytest.raises(AssertionError, match=r"WRONG.* at b"):
        along.raise_if_wrong()


def test_adding_to_the_gradient_is_right_in_training_and_found_where_asked():
    def adding(params, grads, batch):
        before = grads["a"].copy()
        result = smooth(params, grads, batch)
        grads["a"] += before
        return result

    assert check_gradient(adding, PARAMS, batch()).ok
    result = check_gradient(adding, PARAMS, batch(), start=np.nan)
    assert not result.ok
    assert result.worst == "a"


def test_a_gradient_that_is_not_written_is_found():
    def forgetful(params, grads, batch):
        views = {"a": grads["a"], "b": np.empty((1, 2))}
        return smooth(params, views, batch)

    result = check_gradient(forgetful, PARAMS, batch())
    assert not result.ok
    assert result.worst == "b"


def test_a_layer_of_distsgd_is_asked_for_more_than_a_users():
    class Adding(Dense):
        def forward(self, params, x, batch, path):
            y, backward = super().forward(params, x, batch, path)

            def added(dy, grads):
                before = grads["bias"].copy()
                dx = backward(dy, grads)
                grads["bias"] += before
                return dx

            return y, added

    assert check_layer_gradient(Adding(3, 2), (3,)).ok
    Adding.__module__ = "distsgd.nn.layers.adding"
    assert not check_layer_gradient(Adding(3, 2), (3,)).ok


def test_nothing_given_is_changed():
    given, before = batch(), {name: array.copy() for name, array in PARAMS.items()}
    check_gradient(smooth, PARAMS, given)
    assert given.x.dtype == np.float32
    assert all(np.array_equal(before[name], PARAMS[name]) for name in PARAMS)


def test_a_loss_that_is_not_finite_is_not_right():
    def infinite(params, grads, batch):
        smooth(params, grads, batch)
        return float("nan"), len(batch)

    assert not check_gradient(infinite, PARAMS, batch()).ok


def test_a_layer_that_is_wrong_is_found():
    class NoGradientOfX(Dense):
        def forward(self, params, x, batch, path):
            y, backward = super().forward(params, x, batch, path)
            return y, lambda dy, grads: backward(dy, grads) * 0.5

    assert check_layer_gradient(Dense(3, 2), (3,)).ok
    result = check_layer_gradient(NoGradientOfX(3, 2), (3,))
    assert not result.ok
    assert result.worst.startswith("x[")

    class Biased(Dense):
        def forward(self, params, x, batch, path):
            y, backward = super().forward(params, x, batch, path)

            def wrong(dy, grads):
                dx = backward(dy, grads)
                grads["bias"][0] += 1.0
                return dx

            return y, wrong

    assert check_layer_gradient(Biased(3, 2), (3,)).worst == "layer.bias[0]"


def test_a_layer_without_parameters_is_checked_by_its_x():
    assert check_layer_gradient(Activation("tanh"), (3, 2), n=4).checked == 24
