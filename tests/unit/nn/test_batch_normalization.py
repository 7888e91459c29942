"""Batch normalization's statistics: what microbatches report, how they are combined, what evaluation uses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsgd.core.errors import ConfigurationError
from distsgd.core.layout import Layout
from distsgd.nn.layers import BatchNormalization, Dense, Sequential
from distsgd.nn.layers.normalization import combine
from distsgd.nn.losses.regression import SquaredError
from distsgd.nn.objective import Supervised
from distsgd.run.fit import fit
from tests.unit.nn.test_layers import N, make, with_statistics


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20),
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20),
    st.floats(-1e4, 1e4),
)
def test_combining_samples_gives_the_statistics_of_both(first, second, offset):
    samples = np.array(first) + offset, np.array(second) + offset
    parts = [(float(len(s)), np.mean(s), np.sum(np.square(s - np.mean(s)))) for s in samples]
    count, mean, m2 = combine(*parts)
    whole = np.concatenate(samples)
    assert count == len(whole)
    assert mean == pytest.approx(np.mean(whole), rel=1e-12, abs=1e-9)
    assert m2 == pytest.approx(np.sum(np.square(whole - np.mean(whole))), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("empty", [(), (1,), (0, 3)])
def test_pairs_at_once_are_the_pairs_one_by_one(empty):
    layer = Sequential([BatchNormalization(3), BatchNormalization(1)])
    layout = Layout.of(layer.statistics_shapes())
    first, second = np.random.default_rng(0).random((2, 4, layout.size))
    layout.rows(first)["batchnorm2.count"][list(empty)] = 0.0
    one_by_one = first.copy()
    for left, right in zip(one_by_one, second, strict=True):
        layer.combine_statistics(layout.views(left), layout.views(right))
    before = second.copy()
    layer.combine_pairs(layout.rows(first), layout.rows(second))
    assert first.tobytes() == one_by_one.tobytes()
    assert second.tobytes() == before.tobytes()


def test_an_objective_joins_statistics_as_its_model_does():
    """Be it one pair, as an objective around it may ask for, or several."""
    objective = Supervised(Sequential([BatchNormalization(2), Dense(2, 1)]), SquaredError(), (2,))
    layout = Layout.of(objective.statistics_shapes())
    first, second = np.random.default_rng(2).random((2, 3, layout.size))
    one_by_one = first.copy()
    for left, right in zip(one_by_one, second, strict=True):
        objective.combine_statistics(layout.views(left), layout.views(right))
    objective.combine_pairs(layout.rows(first), layout.rows(second))
    assert first.tobytes() == one_by_one.tobytes()
    assert (one_by_one[:, 0] > 1).any()


@pytest.mark.parametrize("microbatches", [1, 5, 8])
def test_an_epochs_statistics_are_those_of_all_its_examples(microbatches):
    """One minibatch an epoch, which has fewer examples than microbatches would like: with momentum 1 the running
    statistics are the data's own."""
    x = np.random.default_rng(1).normal(3.0, 2.0, (41, 2)).astype(np.float64)
    result = fit(
        Sequential([BatchNormalization(2, momentum=1.0), Dense(2, 1)]), (x, x[:, :1]), dtype="float64", epochs=1,
        batch_size=41, microbatches=microbatches, validation_fraction=0, loss="squared-error", quiet=True,
    )  # fmt: skip
    np.testing.assert_allclose(result.state["batchnorm1.running_mean"], x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(result.state["batchnorm1.running_variance"], x.var(axis=0, ddof=1), rtol=1e-12)


def test_a_microbatch_without_examples_is_skipped():
    layer = Sequential([BatchNormalization(2)])
    layout = Layout.of(layer.statistics_shapes())
    empty, full = layout.views(np.full(layout.size, np.nan)), layout.views(np.arange(1.0, 6.0))
    empty["batchnorm1.count"][...] = 0.0
    expected = full.flat.copy()
    layer.combine_statistics(full, empty)
    assert np.array_equal(full.flat, expected)
    layer.combine_statistics(empty, full)
    assert np.array_equal(empty.flat, expected)
    state = make(layer, (2,))[3].state
    empty["batchnorm1.count"][...] = 0.0
    layer.update_state(state, empty)
    assert np.array_equal(state.flat, [0.0, 0.0, 1.0, 1.0])


def test_one_value_a_feature_says_nothing_of_the_variance():
    """A last minibatch of one example, which PyTorch refuses: the running statistics stay."""
    layer = BatchNormalization(2)
    state, layout = make(layer, (2,))[3].state, Layout.of(layer.statistics_shapes())
    one, two = layout.views(np.array([1.0, 5.0, 6.0, 0.0, 0.0])), layout.views(np.array([2.0, 5.0, 6.0, 8.0, 2.0]))
    layer.update_state(state, one)
    assert np.array_equal(state.flat, [0.0, 0.0, 1.0, 1.0])
    layer.update_state(state, two)
    np.testing.assert_allclose(state.flat, [0.5, 0.6, 1.7, 1.1])


def test_batch_normalization_reports_under_its_own_names_and_leaves_the_state_alone():
    layer = Sequential([Dense(3, 2), BatchNormalization(2)])
    params, _, x, batch = make(layer, (3,), np.float32)
    statistics = with_statistics(layer, batch)
    layer.forward(params, x, batch, "")
    assert list(statistics) == ["batchnorm1.count", "batchnorm1.mean", "batchnorm1.m2"]
    hidden = (params["dense1.weight"] @ x + params["dense1.bias"][:, None]).astype(np.float64)
    assert statistics["batchnorm1.count"] == N
    np.testing.assert_allclose(statistics["batchnorm1.mean"], hidden.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(statistics["batchnorm1.m2"], hidden.var(1) * N, rtol=1e-5)
    assert np.array_equal(batch.state.flat, [0.0, 0.0, 1.0, 1.0])
    batch.training = False
    statistics.flat[...] = -1.0
    layer.forward(params, x, batch, "")
    assert (statistics.flat == -1.0).all()


def test_a_wide_state_does_not_widen_the_outputs():
    layer = BatchNormalization(4)
    params, _, x, batch = make(layer, (4,), np.float32, training=False)
    batch.state = {name: array.astype(np.float64) for name, array in batch.state.items()}
    assert layer.forward(params, x, batch, "")[0].dtype == np.float32


def test_evaluation_without_running_statistics_is_refused():
    params, _, x, batch = make(BatchNormalization(4), (4,), training=False)
    batch.state = {}
    with pytest.raises(ConfigurationError, match="running_mean"):
        BatchNormalization(4).forward(params, x, batch, "")
