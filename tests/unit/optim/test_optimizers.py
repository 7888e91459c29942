"""Optimizers against PyTorch's steps, against their equations, and against other cuts of the same buffer."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsgd.core.errors import ConfigurationError
from distsgd.optim.layerwise import LARS, LayerwiseOptimizer
from distsgd.optim.optimizers import (
    SGD,
    Adam,
    AdamW,
    Momentum,
    Nesterov,
    Optimizer,
)
from distsgd.optim.registry import OPTIMIZERS, build_optimizer, linear_scaling

REFERENCE = dict(np.load(Path(__file__).parents[2] / "reference" / "optimizers.npz"))
SETTINGS = json.loads(str(REFERENCE["settings"]))
TOLERANCE = {"float32": 1e-6, "float64": 1e-13}

every_optimizer = pytest.mark.parametrize("name", list(OPTIMIZERS))
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def zeros(optimizer: Optimizer, params: Any) -> tuple[Any, ...]:
    """A state as every run begins with."""
    return tuple(np.zeros_like(params) for _ in optimizer.slots)


def walk(optimizer: Optimizer, start: Any, gradients: Any, rates: Any) -> Any:
    """The parameters after each step, (steps, n)."""
    params = start.copy()
    state = zeros(optimizer, params)
    scratch = np.empty((2, len(params)), params.dtype)
    rows = []
    for t, (rate, gradient) in enumerate(zip(rates, gradients, strict=True), start=1):
        scalars = optimizer.scalars(float(rate), t)
        optimizer.update(params, gradient.copy(), state, scalars, optimizer.weight_decay, scratch)
        rows.append(params.copy())
    return np.stack(rows)


@every_dtype
@pytest.mark.parametrize("setting", list(SETTINGS))
def test_agrees_with_pytorch_step_by_step(setting: str, dtype: str) -> None:
    name, hyper = SETTINGS[setting]
    start, gradients = REFERENCE["start"].astype(dtype), REFERENCE["gradients"].astype(dtype)
    ours = walk(OPTIMIZERS[name](**hyper), start, gradients, REFERENCE["rates"])
    theirs = REFERENCE[f"{setting}/{dtype}"]
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_every_optimizer_is_in_the_reference() -> None:
    """But those by layers, which PyTorch doesn't have: test_layerwise.py."""
    by_layers = {name for name, kind in OPTIMIZERS.items() if issubclass(kind, LayerwiseOptimizer)}
    assert {name for name, _ in SETTINGS.values()} == set(OPTIMIZERS) - by_layers


@given(data=st.data())
@settings(max_examples=25, deadline=None)
@every_dtype
@every_optimizer
def test_cuts_do_not_change_bits(name: str, dtype: str, data: st.DataObject) -> None:
    size, steps = data.draw(st.integers(1, 300), "size"), 3
    cuts = data.draw(st.lists(st.integers(0, size), max_size=6), "cuts")
    rng = np.random.default_rng(data.draw(st.integers(0, 99), "seed"))
    optimizer = OPTIMIZERS[name](weight_decay=0.01)
    start = rng.standard_normal(size).astype(dtype)
    gradients = rng.standard_normal((steps, size)).astype(dtype)
    whole = walk(optimizer, start, gradients, [0.1, 0.2, 0.05])

    params, state = start.copy(), zeros(optimizer, start)
    scratch = np.empty((2, size), dtype)
    edges = sorted({0, size, *cuts})
    for t, (rate, gradient) in enumerate(zip([0.1, 0.2, 0.05], gradients, strict=True), start=1):
        scalars, grads = optimizer.scalars(rate, t), gradient.copy()
        for begin, end in pairwise(edges):
            span = slice(begin, end)
            part = tuple(buffer[span] for buffer in state)
            optimizer.update(params[span], grads[span], part, scalars, 0.01, scratch)
    assert params.tobytes() == whole[-1].tobytes()


@every_dtype
@every_optimizer
def test_state_and_parameters_are_updated_in_place(name: str, dtype: str) -> None:
    optimizer = OPTIMIZERS[name]()
    params = np.ones(5, dtype)
    state = zeros(optimizer, params)
    scalars = optimizer.scalars(optimizer.learning_rate, 1)
    assert all(type(scalar) is float for scalar in scalars)
    optimizer.update(params, np.ones(5, dtype), state, scalars, 0.0, np.empty((2, 8), dtype))
    assert (params < 1).all()
    assert all((buffer > 0).all() for buffer in state)


@every_optimizer
def test_gradient_zero_and_no_decay_leave_parameters_alone(name: str) -> None:
    start = np.array([1.5, -2.0, 0.0, -0.0], np.float32)
    optimizer = OPTIMIZERS[name](weight_decay=0.0)
    end = walk(optimizer, start, np.zeros((3, 4), np.float32), [0.1] * 3)[-1]
    assert end.tobytes() == start.tobytes()


@every_optimizer
def test_weight_decay_shrinks_where_it_applies_and_nowhere_else(name: str) -> None:
    optimizer = OPTIMIZERS[name](weight_decay=0.1)
    ends = []
    for weight_decay in (0.1, 0.0):
        params = np.full(3, 2.0)
        state, scalars = zeros(optimizer, params), optimizer.scalars(0.01, 1)
        optimizer.update(params, np.zeros(3), state, scalars, weight_decay, np.empty((2, 3)))
        ends.append(params[0])
    assert ends[0] < 2.0
    assert ends[1] == 2.0


@every_optimizer
def test_minimises_a_quadratic(name: str) -> None:
    optimizer = OPTIMIZERS[name](learning_rate=0.05, weight_decay=0.0)
    curvature = np.array([1.0, 3.0, 10.0])
    params = np.ones(3)
    state, scratch = zeros(optimizer, params), np.empty((2, 3))
    for t in range(1, 401):
        optimizer.update(params, curvature * params, state, optimizer.scalars(0.05, t), 0.0, scratch)
    assert np.sum(curvature * np.square(params)) < 0.01 * curvature.sum()


def test_momentum_equation_with_dampening_from_the_first_step() -> None:
    gradients = np.array([[2.0], [3.0]])
    ends = walk(Momentum(momentum=0.9, dampening=0.9), np.zeros(1), gradients, [1.0, 1.0])
    first = (1 - 0.9) * 2.0
    second = 0.9 * first + (1 - 0.9) * 3.0
    np.testing.assert_allclose(ends[:, 0], [-first, -(first + second)], rtol=1e-14)


def test_tutorials_momentum_is_the_same_until_the_learning_rate_changes() -> None:
    rates, gradient, velocity, w = [0.1, 0.1, 0.01], 1.0, 0.0, 0.0
    tutorial = []
    for rate in rates:
        velocity = 0.9 * velocity - rate * gradient
        w += velocity
        tutorial.append(w)
    ours = walk(Momentum(momentum=0.9), np.zeros(1), np.ones((3, 1)), rates)[:, 0]
    np.testing.assert_allclose(ours[:2], tutorial[:2], rtol=1e-14)
    assert abs(ours[2] - ours[1]) < abs(tutorial[2] - tutorial[1]) / 5


def test_adam_first_step_has_the_size_of_the_learning_rate() -> None:
    gradients = np.array([[1e-3, -5.0, 1e4]])
    step = walk(Adam(), np.zeros(3), gradients, [0.01])[0]
    np.testing.assert_allclose(step, -0.01 * np.sign(gradients[0]), rtol=2e-5)


def test_adam_scalars_fold_the_bias_corrections() -> None:
    m, v, t = 0.3, 0.02, 7
    _, step_size, epsilon = Adam(epsilon=1e-3).scalars(0.01, t)
    corrected = 0.01 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-3)
    first, second = m / (1 - 0.9), v / (1 - 0.999)  # what the state holds
    assert step_size * first / (math.sqrt(second) + epsilon) == pytest.approx(corrected, rel=1e-12)


def test_adamw_decay_does_not_depend_on_the_gradient() -> None:
    plain = walk(AdamW(weight_decay=0.0), np.full(2, 4.0), np.array([[1.0, 100.0]]), [0.1])[0]
    decayed = walk(AdamW(weight_decay=0.5), np.full(2, 4.0), np.array([[1.0, 100.0]]), [0.1])[0]
    np.testing.assert_allclose(plain - decayed, 0.1 * 0.5 * 4.0, rtol=1e-12)


@every_optimizer
def test_fields_become_python_floats_and_are_frozen(name: str) -> None:
    optimizer = OPTIMIZERS[name](learning_rate=np.float64(0.5))
    names = [field.name for field in dataclasses.fields(optimizer)]  # type: ignore[arg-type]
    assert (names[0], names[-1]) == ("learning_rate", "weight_decay")
    assert all(type(getattr(optimizer, field)) is float for field in names)
    assert optimizer == OPTIMIZERS[name](0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        optimizer.learning_rate = 1.0  # type: ignore[misc]


def test_default_learning_rates() -> None:
    assert {name: kind().learning_rate for name, kind in OPTIMIZERS.items()} == {
        "sgd": 0.1,
        "momentum": 0.05,
        "nesterov": 0.05,
        "adagrad": 1e-2,
        "rmsprop": 1e-3,
        "adam": 1e-3,
        "adamw": 1e-3,
        "lars": 0.1,
        "lamb": 1e-3,
    }
    assert {name for name, kind in OPTIMIZERS.items() if kind().weight_decay} == {"adamw"}
    assert {name for name, kind in OPTIMIZERS.items() if kind.decoupled} == {"adamw"}


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, "fast", None])
@every_optimizer
def test_bad_learning_rate_is_refused(name: str, bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="learning_rate must be a finite number at least 0, got"):
        OPTIMIZERS[name](learning_rate=bad)


@pytest.mark.parametrize(
    ("kind", "hyper"),
    [
        (Momentum, {"momentum": 1.0}),
        (Momentum, {"dampening": -0.1}),
        (Nesterov, {"momentum": 1.5}),
        (Adam, {"beta2": 1.0}),
        (Adam, {"epsilon": 0.0}),
        (LARS, {"trust_coefficient": 0.0}),
        (SGD, {"weight_decay": -1e-4}),
    ],
)
def test_bad_hyper_parameter_is_refused(kind: type[Optimizer], hyper: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=f"{kind.__name__}: {next(iter(hyper))} must be"):
        kind(**hyper)


def test_build_optimizer() -> None:
    assert build_optimizer("momentum", learning_rate=None, momentum=0.5) == Momentum(momentum=0.5)
    with pytest.raises(ConfigurationError, match="expected one of sgd, momentum"):
        build_optimizer("sdg")
    with pytest.raises(ConfigurationError, match="optimizer sgd: has no momentum, only learning_rate, weight_decay"):
        build_optimizer("sgd", momentum=0.9)


def test_linear_scaling() -> None:
    assert linear_scaling(0.1, 8192, 256) == pytest.approx(3.2)
    with pytest.raises(ConfigurationError, match="at least 1"):
        linear_scaling(0.1, 0, 256)
