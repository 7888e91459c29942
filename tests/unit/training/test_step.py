"""One step against an independent computation of the whole minibatch; errors reach every rank."""

from __future__ import annotations

from traceback import format_exception
from typing import Any

import numpy as np
import pytest

from distsgd import SGD, FunctionObjective, Momentum
from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError, DistsgdError, NonFiniteError, OutOfMemoryError
from distsgd.core.layout import Views
from distsgd.core.random import normal
from distsgd.data.sampling import Sampler
from distsgd.nn.batch import Batch
from distsgd.parallel import Communicator
from distsgd.run.fit import fit
from distsgd.run.trained.trained_model import Result
from tests.threads import run_on_threads

X = normal((37, 5), 1, "x")
Y = (X @ normal((5,), 1, "true weights") + 0.3)[:, np.newaxis]
START = {"w": normal((1, 5), 2, "w"), "b": np.zeros(1)}


def linear(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
    """Half the squared error of a linear model."""
    error = params["w"] @ batch.x + params["b"] - batch.y
    grads["w"][...] = error @ batch.x.T
    grads["b"][...] = error.sum(axis=1)
    return 0.5 * float(np.sum(np.square(error))), len(batch)


def train(function: Any = linear, size: int = 1, **options: Any) -> list[Result]:
    options = {
        "validation_fraction": 0, "dtype": "float64", "batch_size": 10, "optimizer": SGD(0.1), "epochs": 2, **options,
    }  # fmt: skip
    return run_on_threads(size, lambda c: fit(function, (X, Y), params=START, communicator=c, **options))


def whole_batches(steps: int, batch_size: int = 10) -> list[tuple[Array, Array]]:
    sampler = Sampler(len(X), batch_size)
    return [(X[chosen], Y[chosen, 0]) for chosen in map(sampler.minibatch, range(steps))]


def gradient(w: Array, b: float, x: Array, y: Array) -> tuple[Array, float]:
    """Of the mean of half the squared error."""
    error = x @ w + b - y
    return x.T @ error / len(x), float(error.mean())


def test_plain_steps() -> None:
    w, b = START["w"][0].copy(), 0.0
    for x, y in whole_batches(8):
        dw, db = gradient(w, b, x, y)
        w, b = w - 0.1 * dw, b - 0.1 * db
    params = train()[0].params
    np.testing.assert_allclose(params["w"][0], w, rtol=1e-12)
    np.testing.assert_allclose(params["b"][0], b, rtol=1e-12)


def test_the_loss_that_is_recorded_is_the_mean_over_the_epoch() -> None:
    w, b, losses = START["w"][0].copy(), 0.0, []
    for x, y in whole_batches(4):
        losses.append(0.5 * np.square(x @ w + b - y).sum())
        dw, db = gradient(w, b, x, y)
        w, b = w - 0.1 * dw, b - 0.1 * db
    assert train()[0].history[0]["train_loss"] == pytest.approx(sum(losses) / len(X), rel=1e-12)


@pytest.mark.parametrize("clip", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("size", [1, 3])
def test_clipping(clip: float, size: int) -> None:
    l2, w, b, norms = 0.05, START["w"][0].copy(), 0.0, []
    for x, y in whole_batches(8):
        dw, db = gradient(w, b, x, y)
        dw = dw + 2 * l2 * w
        norm = np.sqrt(dw @ dw + db * db)
        factor = min(1.0, clip / (norm + 1e-6))
        norms.append(norm)
        w, b = w - 0.1 * factor * dw, b - 0.1 * factor * db
    result = train(size=size, clip_norm=clip, l2=l2, log_every=1)[0]
    np.testing.assert_allclose(result.params["w"][0], w, rtol=1e-12)
    recorded = [record["gradient_norm"] for record in result.history]
    np.testing.assert_allclose(recorded, norms, rtol=1e-12)


def test_penalties_show_in_the_loss() -> None:
    result = train(l1=0.01, l2=0.02)[0]
    w = result.params["w"]
    penalty = 0.01 * np.abs(w).sum() + 0.02 * np.square(w).sum()
    assert result.history[-1]["penalty"] == pytest.approx(penalty, rel=1e-12)
    assert result.summary["train_loss"] == result.history[-1]["train_loss"]


@pytest.mark.parametrize("size", [1, 3])
def test_frozen_parameters_stay(size: int) -> None:
    optimizer = Momentum(0.1, weight_decay=0.1)
    result = train(size=size, freeze=("w",), optimizer=optimizer, l2=0.1, clip_norm=0.5)[0]
    assert result.params["w"].tobytes() == START["w"].tobytes()
    assert result.params["b"][0] != 0


def test_weight_decay_leaves_biases_alone() -> None:
    def flat(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        grads["w"][...], grads["b"][...] = 0.0, 0.0
        return 1.0, len(batch)

    start = {"w": np.ones((1, 5)), "b": np.ones(1)}
    options: dict[str, Any] = {"optimizer": SGD(0.5, weight_decay=0.1), "max_steps": 2, "dtype": "float64"}
    params = fit(flat, (X, Y), params=start, validation_fraction=0, **options).params
    np.testing.assert_allclose(params["w"], 0.95**2, rtol=1e-14)
    assert params["b"].tolist() == [1.0]


def test_what_a_batch_says() -> None:
    """Microbatches of all ranks together are the minibatch, and each knows where it is."""
    seen: list[tuple[int, int, int, tuple[int, ...]]] = []

    def watch(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        assert batch.training
        assert batch.x.shape == (5, len(batch))
        assert batch.y.shape == (1, len(batch))
        assert batch.x.tobytes(order="F") == X[batch.indices].tobytes()
        seen.append((batch.epoch, batch.step, batch.microbatch, tuple(batch.indices.tolist())))
        return linear(params, grads, batch)

    train(watch, size=3, microbatches=5)
    sampler = Sampler(len(X), 10)
    for step in range(8):
        microbatches = sorted({entry for entry in seen if entry[1] == step})  # each rank's first one comes three times
        assert {entry[0] for entry in microbatches} == {step // 4}
        assert [index for entry in microbatches for index in entry[3]] == sampler.minibatch(step).tolist()
    assert (len({entry[1:3] for entry in seen}), len(seen)) == (8 * 5, 8 * 5 + 3 * 2)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("communication", ["shared", "mpi"])
def test_an_exception_on_one_rank_is_raised_on_all(size: int, communication: str) -> None:
    def fail(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        if batch.step == 2 and batch.microbatch == 3:
            raise ZeroDivisionError("the user's own mistake")
        return linear(params, grads, batch)

    def run(communicator: Communicator) -> str:
        with pytest.raises(ZeroDivisionError, match="the user's own mistake") as caught:
            fit(fail, (X, Y), params=START, communicator=communicator, communication=communication, batch_size=10)
        return "".join(format_exception(caught.value))

    texts = run_on_threads(size, run)
    assert f"rank {size - 1} (" in texts[0]
    assert "step 3, microbatch 3" in texts[0]
    assert "raise ZeroDivisionError" in texts[0]
    assert texts[0].count("Traceback") == 1


def test_the_lowest_rank_is_reported_where_several_fail() -> None:
    def fail(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        raise KeyError(batch.microbatch)

    with pytest.raises(KeyError, match=r"(?s)0.*rank 0 .* microbatch 0$"):
        train(fail, size=4)


def test_a_minibatch_that_exceeds_memory_is_reported_in_one_sentence() -> None:
    def fail(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        np.empty(1 << 58)
        return 0.0, len(batch)

    with pytest.raises(
        OutOfMemoryError, match=r"rank 0 .* microbatch 0: out of memory \(.*; use fewer ranks"
    ) as caught:
        train(fail, size=2)
    assert "Traceback" not in str(caught.value)


def test_ones_own_sentence_stays_a_sentence() -> None:
    def fail(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        raise ConfigurationError("the data don't suit this function")

    with pytest.raises(ConfigurationError, match=r"^the data don't suit this function$"):
        train(fail, size=2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("size", [1, 3])
def test_loss_that_is_not_finite(value: float, size: int) -> None:
    chosen: list[int] = []

    def fail(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        loss, count = linear(params, grads, batch)
        if (batch.step, batch.microbatch) == (1, 2):
            chosen[:] = batch.indices.tolist()
            return value, count
        return loss, count

    with pytest.raises(NonFiniteError) as caught:
        train(fail, size=size, validation_fraction=0.2)
    named = ", ".join(map(str, chosen))
    assert f"the loss is {value} at step 2, microbatch 2 (examples {named});" in str(caught.value)


@pytest.mark.parametrize("result", [1.0, None, ("a", 3), (1.0,), (1.0, 2, 3)])
def test_loss_functions_that_return_something_else(result: Any) -> None:
    with pytest.raises(ConfigurationError, match="loss_sum, example_count"):
        train(lambda params, grads, batch: result)


def test_counting_no_examples() -> None:
    with pytest.raises(DistsgdError, match="counted 0 examples at step 1"):
        train(lambda params, grads, batch: (1.0, 0))


def test_outputs_that_cannot_be_had() -> None:
    model = FunctionObjective(linear, START)
    result = fit(model, (X, Y), validation_fraction=0, epochs=1)
    with pytest.raises(ConfigurationError, match="no outputs"):
        result.predict(X)
