"""A model that computes other bits twice is named; inputs that are taken as they are stored arrive unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd.nn import Batch, Objective, Shape, Views

X = np.arange(40, dtype=np.float32).reshape(20, 2) / 40
OPTIONS: dict[str, Any] = {"epochs": 1, "batch_size": 10, "microbatches": 2}


class Stored(Objective):
    """Notes what it gets."""

    inputs_as_stored = True

    def __init__(self) -> None:
        self.seen: list[Batch] = []

    def parameter_shapes(self) -> Mapping[str, Shape]:
        return {"w": (2,)}

    def initialize(self, params: Views, state: Views, seed: int) -> None:
        params["w"][...] = 0

    def has_outputs(self) -> bool:
        return False

    def loss_and_grad(self, params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        self.seen.append(replace(batch, x=batch.x.copy()))  # the next step uses its memory again
        grads["w"][...] = len(batch)
        return float(params["w"].sum()) * len(batch), len(batch)

    def score(self, params: Views, scratch: Views, batch: Batch) -> tuple[float, int, None]:
        return 0.0, len(batch), None


def test_several_inputs_and_targets_of_any_shape() -> None:
    model = Stored()
    given = {"tokens": np.arange(60, dtype=np.int16).reshape(20, 3), "mask": np.arange(20) % 2 == 0, "x": X}
    distsgd.fit(model, given, np.arange(80, dtype=np.uint8).reshape(20, 2, 2), **OPTIONS)
    for batch in model.seen:
        for name, array in given.items():
            assert batch.x[name].dtype == array.dtype
            np.testing.assert_array_equal(batch.x[name], array[batch.indices])
        np.testing.assert_array_equal(np.moveaxis(np.asarray(batch.y), -1, 0).shape, (len(batch), 2, 2))


def test_inputs_of_other_lengths_are_refused() -> None:
    with pytest.raises(distsgd.DataError, match="arrays of one length"):
        distsgd.fit(Stored(), {"a": X, "b": X[1:]}, np.zeros(20), **OPTIONS)


def test_a_function_that_does_not_repeat_itself_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)

    def moody(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        grads["w"] += rng.random(2, np.float32) + params["w"]
        return 1.0, len(batch)

    summary = distsgd.fit(moody, X, np.zeros(20), params={"w": np.zeros(2)}, **OPTIONS).summary
    assert summary["same_bits"] is False
    assert "moody isn't repeatable" in summary["doubt"]
    assert "moody isn't repeatable" in capsys.readouterr().err


def test_a_function_that_does_is_not() -> None:
    def steady(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        grads["w"] += 1.0
        return 1.0, len(batch)

    summary = distsgd.fit(steady, X, np.zeros(20), params={"w": np.zeros(2)}, **OPTIONS).summary
    assert summary["same_bits"] is True
    assert "doubt" not in summary
