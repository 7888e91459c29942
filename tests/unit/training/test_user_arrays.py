"""The arrays that a user's function is given: what it may write, what is refused, and what it may keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from distsgd import SGD, BatchNormalization, Dense, FunctionObjective, Sequential
from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError
from distsgd.core.layout import Views
from distsgd.core.random import normal
from distsgd.nn.batch import Batch
from distsgd.nn.layers import Backward, Convolution, Flatten, Layer, MaxPooling
from distsgd.run.fit import fit
from distsgd.run.trained.trained_model import Result
from tests.threads import run_on_threads

X = normal((700, 5), 1, "x")
Y = normal((700, 1), 2, "y")
START = {"w": np.zeros((1, 5)), "b": np.zeros(1)}
Function = Callable[[Views, Views, Batch], tuple[float, int]]


def plain(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
    """Half the squared error of a linear model."""
    error = params["w"] @ batch.x + params["b"] - batch.y
    grads["w"], grads["b"] = error @ batch.x.T, error.sum(axis=1)
    return 0.5 * float(np.sum(np.square(error))), len(batch)


def train(function: Function = plain, size: int = 1, model: Any = None, **options: Any) -> list[Result]:
    options = {"batch_size": 100, "epochs": 2, "optimizer": SGD(0.05), "dtype": "float64", **options}
    model = FunctionObjective(function, START) if model is None else model
    return run_on_threads(size, lambda c: fit(model, (X, Y), validation=(X, Y), communicator=c, **options))


def first(change: Callable[[Views, Views, Batch], Any]) -> Function:
    """The model after something else."""

    def function(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        result = plain(params, grads, batch)
        change(params, grads, batch)
        return result

    return function


def assign(which: str, name: str, value: Any) -> Function:
    def change(params: Views, grads: Views, batch: Batch) -> None:
        {"params": params, "grads": grads}[which][name] = value

    return first(change)


REFUSED: dict[str, tuple[Function, str]] = {
    "shape": (assign("grads", "w", np.zeros(5)), r"w: expected a value of shape \(1, 5\), got \(5,\)"),
    "one number": (assign("grads", "w", 0.0), r"w: expected a value of shape \(1, 5\), got \(\)"),
    "unknown": (assign("grads", "v", 0.0), "there is no array 'v'; expected one of: w, b"),
    "unknown, read": (first(lambda params, grads, batch: params["v"]), "there is no array 'v'"),
    "parameters": (assign("params", "w", np.zeros((1, 5))), "w: parameters .* read-only"),
}


@pytest.mark.parametrize("case", list(REFUSED))
@pytest.mark.parametrize("size", [1, 3])
def test_what_an_assignment_cannot_mean_is_one_sentence(case: str, size: int) -> None:
    function, reported = REFUSED[case]
    with pytest.raises(ConfigurationError, match=reported) as caught:
        train(function, size)
    assert "\n" not in str(caught.value)


def in_place(params: Views, grads: Views, batch: Batch) -> None:
    params["w"][...] = 0.0


def in_evaluation(params: Views, grads: Views, batch: Batch) -> None:
    if not batch.training:
        params["w"] *= 0.5


def numbers(params: Views, grads: Views, batch: Batch) -> None:
    batch.indices[...] = 0


@pytest.mark.parametrize("change", [in_place, in_evaluation, numbers])
@pytest.mark.parametrize("size", [1, 2])
def test_what_ranks_share_cannot_be_written(change: Any, size: int) -> None:
    with pytest.raises(ValueError, match="read-only"):
        train(first(change), size)


@pytest.mark.parametrize("sampling", [{}, {"shuffle": False}, {"sampling": "replacement"}])
def test_the_order_of_an_epoch_cannot_be_written(sampling: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="read-only"):
        train(first(numbers), **sampling)


@dataclass(frozen=True)
class Meddling(Dense):
    """Writes into the running statistics of the layer before."""

    def forward(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
        next(iter(batch.state.values()))[...] = 0.0
        return super().forward(params, x, batch, path)


def test_running_statistics_cannot_be_written_in_a_step() -> None:
    with pytest.raises(ValueError, match="read-only"):
        train(model=Sequential([BatchNormalization(5), Meddling(5, 1)]))


def test_a_function_may_write_into_its_examples() -> None:
    """They are copies: nothing of it is left for another microbatch, step or rank."""

    def spoil(params: Views, grads: Views, batch: Batch) -> None:
        batch.x[...] = np.nan
        batch.y[...] = np.nan

    hashes = {
        result.summary["parameters_sha256"]
        for size, threads in ((1, 1), (1, 2), (2, 1), (4, 1))
        for result in train(first(spoil), size, threads=threads)
    }
    assert hashes == {train()[0].summary["parameters_sha256"]}
    assert np.isfinite(X).all()
    assert np.isfinite(Y).all()


def test_a_function_may_return_the_same_array_in_each_call() -> None:
    """More than one chunk of predictions, in either order of memory."""
    kept: dict[int, Array] = {}

    def outputs(params: Views, batch: Batch) -> Array:
        found = kept.setdefault(len(batch), np.empty((1, len(batch))))
        np.matmul(params["w"], batch.x, out=found)
        return found

    result = train(model=FunctionObjective(plain, START, outputs))[0]
    twice = np.concatenate([X[:512], X[:512][::-1]])
    np.testing.assert_allclose(result.predict(twice), twice @ result.params["w"].T, rtol=1e-12)


def test_a_layer_may_return_the_same_array_in_each_call() -> None:
    """Images go through a model in parts of a chunk."""

    @dataclass(frozen=True)
    class Keeping(Dense):
        def forward(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
            y, backward = super().forward(params, x.reshape(4, -1), batch, path)
            if y.shape == kept.shape:
                kept[...] = y
                return kept, backward
            return y, backward

        def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
            return (1,)

        def multiply_adds(self, shape: tuple[int, ...]) -> int:
            return 1 << 23  # parts of 32

    images, kept = normal((128, 1, 2, 2), 3, "images"), np.empty((1, 32))
    result = fit(
        Keeping(4, 1), (images, Y[:128]), validation=(images, Y[:128]), epochs=1, batch_size=128, dtype="float64"
    )
    weight, bias = result.params["weight"], result.params["bias"]
    np.testing.assert_allclose(result.predict(images), images.reshape(128, 4) @ weight.T + bias, rtol=1e-12)


def reported(capfd: pytest.CaptureFixture[str], function: Function, size: int, **options: Any) -> str:
    train(function, size, **options)
    return capfd.readouterr().err


@pytest.mark.parametrize("size", [1, 3])
def test_a_gradient_that_is_never_written_is_named_once(size: int, capfd: pytest.CaptureFixture[str]) -> None:
    def forgetful(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        error = params["w"] @ batch.x + params["b"] - batch.y
        grads["w"] = error @ batch.x.T
        return 0.5 * float(np.sum(np.square(error))), len(batch)

    def last_microbatch_alone(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        result = forgetful(params, grads, batch)
        if batch.microbatch == 3:
            grads["b"][...] = 1.0
        return result

    found = reported(capfd, forgetful, size)
    assert found.startswith("note: the gradient of b is zero for every example of the first minibatch")
    assert len(found.splitlines()) == 1
    assert reported(capfd, forgetful, size, freeze=("b",)) == ""
    assert reported(capfd, last_microbatch_alone, size) == ""
    assert reported(capfd, plain, size) == ""


def test_a_subclass_of_a_layer_computes_what_it_says() -> None:
    """A convolution and a pooling after it are one computation, where both are distsgd's own."""

    @dataclass(frozen=True)
    class Negated(MaxPooling):
        def forward(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
            y, backward = super().forward(params, x, batch, path)
            return -y, lambda dy, grads: backward(-dy, grads)

    @dataclass(frozen=True)
    class Silent(Convolution):
        def forward(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
            y, backward = super().forward(params, x, batch, path)
            return 0.0 * y, lambda dy, grads: backward(0.0 * dy, grads)

    images, flat = normal((40, 1, 8, 8), 3, "images"), [Flatten(), Dense(20 * 9, 1)]

    def predicted(*layers: Layer) -> Array:
        model = Sequential([*layers, *flat])
        return fit(model, (images, Y[:40]), validation=(images, Y[:40]), max_steps=1, learning_rate=1e-9).predict(
            images
        )

    plain = predicted(Convolution(1, 20, 3), MaxPooling(2))
    np.testing.assert_allclose(predicted(Convolution(1, 20, 3), Negated(2)), -plain, atol=1e-5)
    assert np.abs(predicted(Silent(1, 20, 3), MaxPooling(2))).max() < 1e-5 < np.abs(plain).max()


@dataclass(frozen=True)
class Passing(Layer):
    """y := x, and a gradient of the model's input for no one."""

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def forward(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
        return x + 0.0, lambda dy, grads: None


def test_a_layer_that_forgets_to_return_dx_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="passing1: backward returned None, but dense1 before it") as caught:
        train(model=Sequential([Dense(5, 4), Passing(), Dense(4, 1)], ["dense1", "passing1", "dense2"]))
    assert "\n" not in str(caught.value)
    train(model=Sequential([Passing(), Dense(5, 1)]))  # the model's own input needs none
