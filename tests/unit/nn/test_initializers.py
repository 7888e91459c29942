from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from distsgd.core.errors import ConfigurationError
from distsgd.nn.initializers import (
    INITIALIZERS,
    Constant,
    Glorot,
    He,
    LeCun,
    Normal,
    Uniform,
    Zeros,
    fans,
    parse_initializer,
)

SHAPE = (300, 500)
ARGUMENTS = {"constant": (0.3,), "normal": (0.2,), "uniform": (-0.1, 0.3)}


def make(name):
    return INITIALIZERS[name](*ARGUMENTS.get(name, ()))


@pytest.mark.parametrize("name", INITIALIZERS)
def test_every_initializer_is_a_function_of_its_arguments_alone(name):
    initializer = make(name)
    np.random.seed(1)
    first = initializer(SHAPE, 7, "initialize dense1.weight")
    np.random.seed(2)
    assert first.shape == SHAPE
    assert first.dtype == np.float64
    assert np.isfinite(first).all()
    assert np.array_equal(first, initializer(SHAPE, 7, "initialize dense1.weight"))


@pytest.mark.parametrize("other", [(8, "initialize dense1.weight"), (7, "initialize dense2.weight")])
@pytest.mark.parametrize("name", sorted(set(INITIALIZERS) - {"zeros", "constant"}))
def test_other_seeds_and_purposes_give_unrelated_values(name, other):
    initializer = make(name)
    first, second = initializer(SHAPE, 7, "initialize dense1.weight"), initializer(SHAPE, *other)
    correlation = np.corrcoef(first.ravel(), second.ravel())[0, 1]
    assert abs(correlation) < 5 / sqrt(first.size)


@pytest.mark.parametrize(
    ("initializer", "variance"),
    [
        (Glorot(), 2 / 800),
        (Glorot(gain=4.0), 32 / 800),
        (Glorot(distribution="normal"), 2 / 800),
        (He(), 2 / 500),
        (He(gain=0.5, distribution="uniform"), 0.5 / 500),
        (LeCun(), 1 / 500),
        (LeCun(gain=2.0, distribution="uniform"), 4 / 500),
        (Normal(0.2), 0.04),
        (Uniform(-0.3, 0.3), 0.03),
    ],
)
def test_mean_and_variance_are_the_textbooks(initializer, variance):
    values = initializer(SHAPE, 0, "test")
    assert abs(values.mean()) < 5 * sqrt(variance / values.size)
    assert values.var() == pytest.approx(variance, rel=0.03)


def test_uniform_distributions_stay_within_their_bounds_and_fill_them():
    bound = sqrt(6 / 800)  # Glorot & Bengio, eq. 16
    values = Glorot()(SHAPE, 0, "test")
    assert -bound <= values.min() < -0.999 * bound
    assert 0.999 * bound < values.max() < bound
    values = Uniform(2.0, 3.0)(SHAPE, 0, "test")
    assert 2.0 <= values.min() < 2.001
    assert 2.999 < values.max() < 3.0


def test_normal_distributions_have_normal_tails():
    values = He()((400, 500), 0, "test") / sqrt(2 / 500)
    for distance, beyond in ((1.0, 0.3173), (2.0, 0.0455), (3.0, 0.0027)):
        assert np.mean(np.abs(values) > distance) == pytest.approx(beyond, rel=0.15)


def test_fans_count_every_position_of_a_kernel():
    assert fans((20, 10)) == (10, 20)
    assert fans((8, 3, 5, 5)) == (75, 200)


@pytest.mark.parametrize("name", ["glorot", "he", "lecun"])
def test_variance_scaling_needs_two_dimensions(name):
    with pytest.raises(ConfigurationError, match="use zeros"):
        INITIALIZERS[name]()((10,), 0, "initialize dense1.bias")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("he", He()),
        ("He-Uniform", He(distribution="uniform")),
        ("he_normal(2)", He(2.0)),
        ("glorot(4)", Glorot(4.0)),
        ("glorot-normal", Glorot(distribution="normal")),
        ("lecun", LeCun()),
        ("zeros", Zeros()),
        ("zeros()", Zeros()),
        ("constant(1e-2)", Constant(0.01)),
        (" normal( 0.01 ) ", Normal(0.01)),
        ("uniform(-0.1, 0.1)", Uniform(-0.1, 0.1)),
    ],
)
def test_parse(text, expected):
    assert parse_initializer(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "xavier", "he(", "he(1, 2)", "he(normal)", "zeros(1)", "normal", "uniform(1)", "uniform(0.1, -0.1)",
     "normal(-1)", "normal(nan)", "constant(inf)", "he(-1)", "uniform(,)"],
)  # fmt: skip
def test_parse_refuses_what_makes_no_sense(text):
    with pytest.raises(ConfigurationError):
        parse_initializer(text)


def test_a_distribution_that_does_not_exist_is_refused():
    with pytest.raises(ConfigurationError, match="normal or uniform"):
        He(distribution="cauchy")
