"""Every example exactly once an epoch, in microbatches that tile the minibatch, from any step on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError
from distsgd.data.orders import Order
from distsgd.data.sampling import Sampler, epoch_order, microbatch_bounds

counts = st.integers(1, 120)


@given(examples=counts, batch=st.integers(1, 150), seed=st.integers(0, 99), shuffle=st.booleans())
def test_every_example_once_an_epoch(examples: int, batch: int, seed: int, shuffle: bool) -> None:
    sampler = Sampler(examples, batch, seed, shuffle)
    assert sampler.steps_per_epoch == -(-examples // batch)
    orders = []
    for epoch in range(2):
        steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
        batches = [sampler.minibatch(step) for step in steps]
        assert all(len(one) == batch for one in batches[:-1])
        assert len(batches[-1]) == (examples - 1) % batch + 1
        orders.append(np.concatenate(batches).tolist())
        assert sorted(orders[-1]) == list(range(examples))
    if not shuffle:
        assert orders == [list(range(examples))] * 2
    elif examples > 20:
        assert orders[0] != orders[1] != list(range(examples))


@given(examples=counts, batch=st.integers(1, 60), seed=st.integers(0, 99))
def test_drop_last(examples: int, batch: int, seed: int) -> None:
    if batch > examples:
        with pytest.raises(ConfigurationError, match="smaller batch_size"):
            Sampler(examples, batch, seed, drop_last=True)
        return
    sampler = Sampler(examples, batch, seed, drop_last=True)
    batches = [sampler.minibatch(step) for step in range(sampler.steps_per_epoch)]
    assert [len(one) for one in batches] == [batch] * (examples // batch)
    assert len(set(np.concatenate(batches).tolist())) == batch * (examples // batch)


@given(st.data(), counts, st.integers(1, 60), st.sampled_from(["shuffle", "keep", "drop", "replacement"]))
def test_starts_at_any_step(data: st.DataObject, examples: int, batch: int, kind: str) -> None:
    options = {"shuffle": kind != "keep", "drop_last": kind == "drop", "replacement": kind == "replacement"}
    batch = min(batch, examples)
    walked = Sampler(examples, batch, 3, **options)
    whole = [walked.minibatch(step) for step in range(3 * walked.steps_per_epoch)]
    steps = data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=5))
    jumping = Sampler(examples, batch, 3, **options)
    for step in steps:
        assert jumping.minibatch(step).tolist() == whole[step].tolist()
        assert Sampler(examples, batch, 3, **options).minibatch(step).tolist() == whole[step].tolist()


def test_replacement() -> None:
    sampler = Sampler(50, 20, 1, replacement=True)
    assert sampler.steps_per_epoch == 3
    batches = [sampler.minibatch(step) for step in range(3000)]
    assert all(len(one) == 20 and one.dtype == np.int64 for one in batches)
    hits = np.bincount(np.concatenate(batches), minlength=50)
    assert len(hits) == 50
    assert np.abs(hits - 1200).max() < 5 * np.sqrt(1200)
    assert any(len(set(one.tolist())) < 20 for one in batches[:20])
    assert Sampler(5, 20, replacement=True).minibatch(0).max() < 5


@given(length=st.integers(0, 300), microbatches=st.integers(1, 40))
def test_microbatches_tile_the_minibatch(length: int, microbatches: int) -> None:
    bounds = microbatch_bounds(length, microbatches)
    assert bounds[0] == 0
    assert bounds[-1] == length
    sizes = np.diff(bounds)
    assert len(sizes) == microbatches
    assert set(sizes.tolist()) <= {length // microbatches, -(-length // microbatches)}


@given(length=st.integers(0, 300), microbatches=st.integers(1, 40), least=st.integers(2, 20))
def test_as_many_microbatches_are_filled_as_have_enough_examples(length: int, microbatches: int, least: int) -> None:
    bounds = microbatch_bounds(length, microbatches, least)
    sizes = np.diff(bounds)
    assert (bounds[0], bounds[-1], len(sizes)) == (0, length, microbatches)
    filled = sizes[sizes > 0]
    assert len(filled) == (0 if length == 0 else max(1, min(microbatches, length // least)))
    assert len(filled) <= 1 or filled.min() >= least
    # They are those that as few microbatches alone would be, so that the place among empty ones changes nothing.
    assert filled.tolist() == [size for size in np.diff(microbatch_bounds(length, max(1, len(filled)))) if size]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    orders = {(seed, epoch): tuple(epoch_order(40, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(set(orders.values())) == 9
    assert tuple(epoch_order(40, 2, 1)) == orders[2, 1]


class Reversed(Order):
    """Each epoch from the last example to the first, moved by the epoch."""

    def indices(self, epoch: int, start: int, stop: int) -> Array:
        return (49 - np.arange(start, stop) + epoch) % 50


def test_another_order_is_cut_into_the_same_minibatches() -> None:
    sampler = Sampler(50, 20, order=Reversed())
    batches = [sampler.minibatch(step) for step in (4, 0, 2)]
    assert [len(one) for one in batches] == [20, 20, 10]
    assert batches[0].tolist() == list(range(30, 10, -1))
    assert batches[2].tolist() == list(range(9, -1, -1))
    assert not any(one.flags.writeable for one in batches)
    assert Sampler(50, 20, drop_last=True, order=Reversed()).steps_per_epoch == 2
