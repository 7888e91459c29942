"""LARS and LAMB against their papers' equations in float64, on parameters that cross blocks and so ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd import Momentum
from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError, NonFiniteError
from distsgd.core.layout import Layout, Views
from distsgd.core.random import normal
from distsgd.data.sampling import Sampler
from distsgd.nn.batch import Batch
from distsgd.optim import LAMB, LARS, LayerwiseOptimizer, Optimizer, Scalars, Slots
from distsgd.parallel.reduction import BLOCK
from distsgd.run.fit import fit
from distsgd.run.trained.trained_model import Result
from tests.threads import run_on_threads

IN, HIDDEN, OUT, STEPS, BATCH, WARMUP = 70, 300, 60, 20, 12, 4
X, Y = normal((50, IN), 1, "x"), normal((50, OUT), 1, "y")
START = {
    "first.weight": normal((HIDDEN, IN), 2, "w1") / 8, "first.bias": np.zeros(HIDDEN),
    "second.weight": normal((OUT, HIDDEN), 2, "w2") / 16, "second.bias": normal((OUT,), 2, "b2"),
    "zero": np.zeros((2, 3)), "idle": normal((4, 2), 2, "idle"),
}  # fmt: skip
"""The weights cross block edges; one array begins at zero, and one has no gradient."""
SPANS = Layout.of({name: array.shape for name, array in START.items()}).spans

Arrays = dict[str, Array]


def loss_and_gradients(w: Any, x: Array, y: Array) -> tuple[float, Arrays]:
    """Of two linear layers: half the sum of the squared errors, and what has a constant gradient."""
    hidden = w["first.weight"] @ x + w["first.bias"][:, np.newaxis]
    error = w["second.weight"] @ hidden + w["second.bias"][:, np.newaxis] - y
    back, count = w["second.weight"].T @ error, x.shape[1]
    return 0.5 * float(np.sum(np.square(error))) + count * float(np.sum(w["zero"])), {
        "first.weight": back @ x.T, "first.bias": back.sum(axis=1), "second.weight": error @ hidden.T,
        "second.bias": error.sum(axis=1), "zero": np.full((2, 3), float(count)), "idle": np.zeros((4, 2)),
    }  # fmt: skip


def model(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
    loss, found = loss_and_gradients(params, batch.x, batch.y)
    for name, gradient in found.items():
        grads[name][...] = gradient
    return loss, len(batch)


def train(optimizer: Optimizer, size: int = 1, function: Any = model, **options: Any) -> list[Result]:
    options = {
        "validation_fraction": 0, "dtype": "float64", "batch_size": BATCH, "max_steps": STEPS, "microbatches": 4,
        "epochs": 9, "warmup_steps": WARMUP, **options,
    }  # fmt: skip
    run = {"params": START, "optimizer": optimizer, **options}
    return run_on_threads(size, lambda communicator: fit(function, (X, Y), communicator=communicator, **run))


def norm(array: Array) -> float:
    return float(np.sqrt(np.sum(np.square(array))))


def ratio(above: float, below: float, *norms: float) -> float:
    return above / below if all(norms) else 1.0


def lars(optimizer: LARS) -> Callable[..., Array]:
    """Algorithm 1 of You, Gitman & Ginsburg."""
    velocity: Arrays = {}

    def step(name: str, w: Array, g: Array, rate: float, decay: float, t: int) -> Array:
        c, sizes = optimizer.trust_coefficient, (norm(w), norm(g))
        local = ratio(c * sizes[0], sizes[1] + decay * sizes[0], *sizes) if w.ndim > 1 else 1.0
        velocity[name] = optimizer.momentum * velocity.get(name, 0.0) + rate * local * (g + decay * w)
        return w - velocity[name]

    return step


def lamb(optimizer: LAMB) -> Callable[..., Array]:
    """Algorithm 2 of You et al., with the identity as φ."""
    moments: dict[str, tuple[Any, Any]] = {}

    def step(name: str, w: Array, g: Array, rate: float, decay: float, t: int) -> Array:
        m, v = moments.get(name, (0.0, 0.0))
        m, v = optimizer.beta1 * m + (1 - optimizer.beta1) * g, optimizer.beta2 * v + (1 - optimizer.beta2) * g * g
        moments[name] = m, v
        corrected = np.sqrt(v / (1 - optimizer.beta2**t)) + optimizer.epsilon
        direction = m / (1 - optimizer.beta1**t) / corrected + decay * w
        sizes = norm(w), norm(direction)
        return w - rate * (ratio(*sizes, *sizes) if w.ndim > 1 else 1.0) * direction

    return step


def expected(
    optimizer: LARS | LAMB, l2: float = 0.0, clip_norm: float | None = None, freeze: tuple[str, ...] = ()
) -> Arrays:
    """The parameters after all steps, of whole minibatches and whole arrays."""
    step = lars(optimizer) if isinstance(optimizer, LARS) else lamb(optimizer)
    w, sampler = {name: array.copy() for name, array in START.items()}, Sampler(len(X), BATCH)
    for t in range(1, STEPS + 1):
        chosen = sampler.minibatch(t - 1)
        _, sums = loss_and_gradients(w, X[chosen].T, Y[chosen].T)
        g = {name: array / len(chosen) + 2 * l2 * w[name] * (w[name].ndim > 1) for name, array in sums.items()}
        g = {name: array * (name not in freeze) for name, array in g.items()}
        if clip_norm is not None:
            factor = min(1.0, clip_norm / (np.sqrt(sum(norm(array) ** 2 for array in g.values())) + 1e-6))
            g = {name: factor * array for name, array in g.items()}
        rate = optimizer.learning_rate * min(t / WARMUP, 1.0)
        for name in set(w) - set(freeze):
            decay = optimizer.weight_decay if w[name].ndim > 1 else 0.0
            w[name] = step(name, w[name], g[name], rate, decay, t)
    return w


OPTIMIZERS: dict[str, LARS | LAMB] = {
    "lars": LARS(0.05),
    "lars with decay": LARS(2.0, momentum=0.5, trust_coefficient=0.01, weight_decay=0.1),
    "lamb": LAMB(0.02),
    "lamb with decay": LAMB(0.02, beta1=0.8, beta2=0.95, epsilon=1e-3, weight_decay=0.1),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped, penalized, frozen": {"clip_norm": 0.5, "l2": 0.01, "freeze": ("first.bias", "second.weight")},
}


def test_weights_cross_the_edges_of_blocks() -> None:
    for name in ("first.weight", "second.weight"):
        assert SPANS[name].start // BLOCK < (SPANS[name].stop - 1) // BLOCK
        assert SPANS[name].start % BLOCK or SPANS[name].stop % BLOCK


@pytest.mark.parametrize("options", list(OPTIONS))
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_the_papers_equations(name: str, options: str) -> None:
    optimizer, chosen = OPTIMIZERS[name], OPTIONS[options]
    right = expected(optimizer, **chosen)
    for size in (1, 3):
        params = train(optimizer, size, **chosen)[0].params
        for array, value in right.items():
            np.testing.assert_allclose(params[array], value, rtol=1e-9, atol=1e-12, err_msg=array)
            if array not in chosen.get("freeze", ()) and (array != "idle" or optimizer.weight_decay or chosen):
                assert np.any(value != START[array]), array


@pytest.mark.parametrize("options", list(OPTIONS))
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_the_same_bits_on_ranks_threads_and_hosts(name: str, options: str) -> None:
    def sha(size: int, **more: Any) -> str:
        chosen = {**OPTIONS[options], "dtype": "float32", "log_every": 1, **more}
        return str(train(OPTIMIZERS[name], size, **chosen)[0].summary["parameters_sha256"])

    ways: list[dict[str, Any]] = [
        {"size": 1, "threads": 1}, {"size": 1, "threads": 2}, {"size": 2, "threads": 2}, {"size": 3}, {"size": 4},
        {"size": 3, "communication": "mpi"},
    ]  # fmt: skip
    assert len({sha(**way) for way in ways}) == 1


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_resumed_run_has_the_same_bits(name: str, tmp_path: Path) -> None:
    whole = train(OPTIMIZERS[name], 1, out=str(tmp_path / "whole"))[0].summary["parameters_sha256"]
    for size, stop in ((2, 7), (4, 11), (1, STEPS)):
        last = train(OPTIMIZERS[name], size, out=str(tmp_path / "run"), max_steps=stop)
    assert last[0].summary["parameters_sha256"] == whole


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_minibatch_that_is_not_finite_is_skipped_on_any_ranks(name: str) -> None:
    """The same as where its step isn't there at all: neither the state nor the count of updates has seen it."""

    def bad(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        loss, count = model(params, grads, batch)
        return (np.nan if batch.step == 5 and batch.microbatch == 2 else loss), count

    runs = [train(OPTIMIZERS[name], size, bad, on_non_finite="skip", warmup_steps=0)[0] for size in (1, 2, 4)]
    assert len({run.summary["parameters_sha256"] for run in runs}) == 1
    assert all(np.isfinite(array).all() for array in runs[0].params.values())
    assert (
        runs[0].summary["parameters_sha256"] != train(OPTIMIZERS[name], warmup_steps=0)[0].summary["parameters_sha256"]
    )


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_sum_that_is_not_finite_ends_the_run(name: str, size: int) -> None:
    def huge(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        loss, count = model(params, grads, batch)
        if batch.step == 3:
            grads["first.weight"][...] = 1e308  # finite in each microbatch, and no longer in their sum
        return loss, count

    with pytest.raises(NonFiniteError, match=r"not finite.* at step 4"):
        train(OPTIMIZERS[name], size, huge)


def test_an_optimizer_of_ones_own() -> None:
    class Unit(LayerwiseOptimizer):
        """w := w - η |w| g / |g|, and plain steps of biases."""

        learning_rate, weight_decay = 0.1, 0.0

        def trust_ratio(self, params_norm: float, direction_norm: float, weight_decay: float) -> float:
            return params_norm / direction_norm

        def step(self, params: Array, grads: Array, state: Slots, scalars: Scalars, spare: Array) -> None:
            params -= scalars[0] * grads

    one, three = (train(Unit(), size, max_steps=1, warmup_steps=0)[0] for size in (1, 3))  # type: ignore[abstract]
    for name in ("first.weight", "second.weight"):
        assert norm(one.params[name] - START[name]) == pytest.approx(0.1 * norm(START[name]), rel=1e-10)
    assert one.summary["parameters_sha256"] == three.summary["parameters_sha256"]


@pytest.mark.parametrize("optimizer", [LARS(), LAMB()])
def test_a_model_without_layers_is_refused(optimizer: Optimizer) -> None:
    frozen = ("first.weight", "second.weight", "zero", "idle")
    with pytest.raises(ConfigurationError, match="expected parameters of two or more dimensions to train"):
        train(optimizer, freeze=frozen)
    train(Momentum(0.01), freeze=frozen)
