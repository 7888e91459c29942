"""Code of a user's that keeps state or leaves gradients out: one thread calls it, and its gradients start at zero."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from distsgd import SGD, Activation, Dense, FunctionObjective, Layer, Sequential, SoftmaxCrossEntropy
from distsgd.core.device import Array, Shape
from distsgd.core.errors import ConfigurationError
from distsgd.core.layout import Views
from distsgd.core.random import normal
from distsgd.data.sampling import Sampler
from distsgd.nn.batch import Batch
from distsgd.nn.layers import Backward, StatefulLayer
from distsgd.nn.losses import SquaredError
from distsgd.nn.objective import Objective, Supervised
from distsgd.optim.optimizers import Optimizer
from distsgd.run.fit import fit
from distsgd.run.trained.trained_model import Result
from distsgd.training.metrics import Accuracy, Metric, UserMetric
from tests.threads import run_on_threads
from tests.waiting import LIMIT

X = normal((1400, 6), 1, "x")
Y = normal((1400, 1), 2, "y")
VALIDATION = (X[:1024], Y[:1024])
"""Two chunks, one for each thread."""
OPTIONS: dict[str, Any] = {"batch_size": 700, "epochs": 2, "optimizer": SGD(0.05), "dtype": "float64", "threads": 2}


class Watch:
    """Notices calls that overlap, and which threads call."""

    def __init__(self, meeting: threading.Barrier | None = None) -> None:
        self.inside, self.overlaps, self.threads, self.calls = 0, 0, set[int](), 0
        self._meeting, self._lock = meeting, threading.Lock()

    @contextmanager
    def call(self) -> Iterator[None]:
        with self._lock:
            self.inside += 1
            self.calls += 1
            self.overlaps += self.inside > 1
            self.threads.add(threading.get_ident())
        try:
            if self._meeting is not None:
                self._meeting.wait()
            time.sleep(0.001)  # lets other threads come
            yield
        finally:
            with self._lock:
                self.inside -= 1

    def saw_one_thread(self) -> bool:
        return self.calls > 2 and self.overlaps == 0 and self.threads == {threading.get_ident()}


def line(watch: Watch) -> Any:
    """Half the squared error of a linear model."""

    def function(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        with watch.call():
            error = params["w"] @ batch.x - batch.y
            grads["w"] = error @ batch.x.T
            return 0.5 * float(np.sum(np.square(error))), len(batch)

    return function


def outputs(watch: Watch) -> Any:
    def function(params: Views, batch: Batch) -> Array:
        with watch.call():
            return params["w"] @ batch.x

    return function


class Line(Objective):
    """The same as a class, with a choice of what its gradient does."""

    def __init__(self, watch: Watch) -> None:
        self._function = line(watch)

    def parameter_shapes(self) -> Mapping[str, Shape]:
        return {"w": (1, 6)}

    def initialize(self, params: Views, state: Views, seed: int) -> None:
        params["w"] = np.zeros((1, 6))

    def loss_and_grad(self, params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        return self._function(params, grads, batch)

    def score(self, params: Views, scratch: Views, batch: Batch) -> tuple[float, int, Array | None]:
        loss_sum, count = self._function(params, scratch, batch)
        return loss_sum, count, None


@dataclass(frozen=True)
class Watched(Dense):
    """A layer of distsgd's that a user has extended: what the base declares doesn't hold for it."""

    watch: Watch = field(default_factory=Watch, kw_only=True)

    def forward(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
        with self.watch.call():
            return super().forward(params, x, batch, path)


@dataclass(frozen=True)
class WatchedLoss(SquaredError):
    watch: Watch = field(default_factory=Watch, kw_only=True)

    def value_and_grad(self, outputs: Array, y: Array, want_grad: bool) -> tuple[Array, Array | None]:
        with self.watch.call():
            return super().value_and_grad(outputs, y, want_grad)


@dataclass(frozen=True)
class WatchedOptimizer(Optimizer):
    watch: Watch
    learning_rate: float = 0.05
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        pass

    def step(
        self, params: Array, grads: Array, state: tuple[Array, ...], scalars: tuple[float, ...], spare: Array
    ) -> None:
        with self.watch.call():
            params -= scalars[0] * grads


class WatchedMetric(Metric):
    name, mode = "watched", "min"

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def sums(self, outputs: Array, y: Array) -> Array:
        with self.watch.call():
            return np.array([np.square(outputs - y).sum(), y.size])


def squares(watch: Watch) -> Callable[[Array, Array], Array]:
    def function(outputs: Array, y: Array) -> Array:
        with watch.call():
            return np.square(outputs - y)[0]

    return function


def large(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
    """A model with so many parameters that several threads share an update."""
    grads["unused"][:1] = 1.0
    return skip(params, grads, batch)


LARGE = FunctionObjective(large, {"w": np.zeros((1, 6)), "unused": np.zeros(300_000)}, thread_safe=True)
W = {"w": np.zeros((1, 6))}
MODELS: dict[str, Callable[[Watch], dict[str, Any]]] = {
    "function": lambda watch: {"model": line(watch), "params": W},
    "Custom": lambda watch: {"model": FunctionObjective(line(watch), W)},
    "outputs": lambda watch: {"model": FunctionObjective(line(watch), W, outputs(watch))},
    "Objective": lambda watch: {"model": Line(watch)},
    "layer": lambda watch: {"model": Watched(6, 1, watch=watch)},
    "layer inside": lambda watch: {
        "model": Sequential([Dense(6, 4), Sequential([Activation("tanh"), Watched(4, 1, watch=watch)])])
    },
    "loss": lambda watch: {"model": Supervised(Dense(6, 1), WatchedLoss(watch=watch), (6,))},
    "optimizer": lambda watch: {"model": LARGE, "optimizer": WatchedOptimizer(watch)},
    "metric": lambda watch: {"model": Dense(6, 1), "metrics": [WatchedMetric(watch)]},
    "metric function": lambda watch: {"model": Dense(6, 1), "metrics": [UserMetric("error", squares(watch))]},
}  # fmt: skip


def train(model: Any, **options: Any) -> Result:
    return fit(model, (X, Y), validation=VALIDATION, **{**OPTIONS, **options})


def same(*results: Result) -> bool:
    return len({result.summary["parameters_sha256"] for result in results}) == 1


@pytest.mark.parametrize("case", list(MODELS))
def test_one_thread_calls_what_does_not_declare_more(case: str, capfd: pytest.CaptureFixture[str]) -> None:
    alone = train(**MODELS[case](Watch()), threads=1)
    assert "note" not in capfd.readouterr().err
    watch = Watch()
    assert same(alone, train(**MODELS[case](watch), threads=2))
    assert watch.saw_one_thread()
    reported = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(reported) == 1
    assert reported[0].startswith("note: only one of the 2 threads of a rank calls ")
    assert "thread_safe=True" in reported[0]


def test_threads_by_default_leave_a_function_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distsgd.run.build_trainer.affinity", lambda: {0, 1})
    start = {"w": np.zeros((1, 6)), "unused": np.zeros(200_000)}
    watch = Watch()
    result = train(line(watch), params=start, threads=None)
    assert result.summary["run"]["threads"] == 2
    assert watch.saw_one_thread()
    assert same(result, train(line(Watch()), params=start, threads=1))


def attribute(function: Any) -> Any:
    function.thread_safe = True
    return function


class SafeLine(Line):
    thread_safe = True


@dataclass(frozen=True)
class SafeLayer(Watched):
    thread_safe = True


DECLARED: dict[str, Callable[[Watch], Any]] = {
    "Custom": lambda watch: FunctionObjective(line(watch), W, thread_safe=True),
    "attribute": lambda watch: FunctionObjective(attribute(line(watch)), W),
    "attributes": lambda watch: FunctionObjective(attribute(line(watch)), W, attribute(outputs(Watch()))),
    "Objective": SafeLine,
    "layer": lambda watch: Supervised(SafeLayer(6, 1, watch=watch), SquaredError(), (6,)),
}


@pytest.mark.parametrize("case", list(DECLARED))
def test_several_threads_call_what_declares_it(case: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Two calls wait for each other: one thread alone would wait in vain, until the time is over."""
    meeting = threading.Barrier(2, timeout=LIMIT)
    found = train(DECLARED[case](Watch(meeting)), microbatches=4)
    assert "note" not in capfd.readouterr().err
    assert same(found, train(DECLARED[case](Watch()), threads=1))


def test_a_declaration_is_not_inherited() -> None:
    class Further(SafeLine):
        pass

    train(Further(watch := Watch()))
    assert watch.saw_one_thread()


def test_one_function_that_declares_it_does_not_speak_for_the_other() -> None:
    train(FunctionObjective(attribute(line(Watch())), W, outputs(watch := Watch())))
    assert watch.saw_one_thread()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_declaration_is_true_or_false(threads: int) -> None:
    with pytest.raises(ConfigurationError, match=r"FunctionObjective: thread_safe must be True or False, got 'no'"):
        train(FunctionObjective(line(Watch()), W, thread_safe="no"), threads=threads)  # type: ignore[arg-type]


def test_metrics_of_distsgd_keep_their_threads() -> None:
    layer = SafeLayer(6, 2, watch=Watch(threading.Barrier(2, timeout=LIMIT)))
    x, labels = X[:1024], (Y[:1024, 0] > 0).astype(np.int64)
    fit(
        Supervised(layer, SoftmaxCrossEntropy(), (6,)),
        (x, labels),
        validation=(x, labels),
        metrics=[Accuracy()],
        **OPTIONS,
    )


def reference(gradient: Callable[[Array, Array, Array, int], Array], steps: int = 4, microbatches: int = 4) -> Array:
    """w after SGD on the sums of the microbatches' gradients, without distsgd but for the order of the examples."""
    w, sampler = np.zeros((1, 6)), Sampler(len(X), 700)
    for step in range(steps):
        chosen = sampler.minibatch(step)
        total = np.zeros((1, 6))
        for microbatch in range(microbatches):
            part = chosen[len(chosen) * microbatch // microbatches : len(chosen) * (microbatch + 1) // microbatches]
            total += gradient(w, X[part].T, Y[part].T, microbatch)
        w = w - 0.05 * total / len(chosen)
    return w


def odd_microbatches(w: Array, x: Array, y: Array, microbatch: int) -> Array:
    """The gradient of half the squared error that microbatches 1 and 3 alone have."""
    return (w @ x - y) @ x.T if microbatch % 2 else np.zeros_like(w)


def skip(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
    error = params["w"] @ batch.x - batch.y
    if batch.microbatch % 2:
        grads["w"][...] = error @ batch.x.T
    return 0.5 * float(np.sum(np.square(error))), len(batch)


def add(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
    error = params["w"] @ batch.x - batch.y
    for half in (0.5 * error, 0.5 * error) if batch.microbatch % 2 else ():
        grads["w"] += half @ batch.x.T
    return 0.5 * float(np.sum(np.square(error))), len(batch)


def assign(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
    own = {"w": np.empty((1, 6))}
    result = skip(params, own, batch)  # type: ignore[arg-type]
    if batch.microbatch % 2:
        grads["w"] = own["w"]
    return result


class Conditional(Line):
    def loss_and_grad(self, params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        return skip(params, grads, batch)


@dataclass(frozen=True)
class ConditionalLayer(Layer):
    """y := w x, whose gradient microbatches 1 and 3 alone have."""

    def parameter_shapes(self) -> Mapping[str, Shape]:
        return {"w": (1, 6)}

    def output_shape(self, shape: Shape) -> Shape:
        return (1,)

    def forward(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
        def backward(dy: Array, grads: Views) -> None:
            if batch.microbatch % 2:
                grads["w"] += dy @ x.T

        return params["w"] @ x, backward


CONDITIONAL: dict[str, Any] = {
    "left out": FunctionObjective(skip, W),
    "added": FunctionObjective(add, W),
    "assigned": FunctionObjective(assign, W),
    "Objective": Conditional(Watch()),
    "layer": ConditionalLayer(),
    "layer inside": Sequential([ConditionalLayer()]),
    "declared": FunctionObjective(skip, W, thread_safe=True),
}


@pytest.mark.parametrize("case", list(CONDITIONAL))
@pytest.mark.parametrize("looked_at", ["stop", "skip"])
def test_gradients_start_at_zero(case: str, looked_at: str) -> None:
    wanted, found = reference(odd_microbatches), []
    for size, threads in ((1, 1), (2, 1), (4, 1), (1, 2), (2, 2)):
        options = {**OPTIONS, "threads": threads, "on_non_finite": looked_at}
        model = CONDITIONAL[case]
        found += run_on_threads(size, lambda c: fit(model, (X, Y), validation=VALIDATION, communicator=c, **options))  # noqa: B023
    assert same(*found)
    (w,) = found[0].params.values()
    np.testing.assert_allclose(w, wanted, rtol=1e-12)


def test_statistics_start_at_zero() -> None:
    """What one microbatch reports in a step, another that reports nothing must not repeat."""

    @dataclass(frozen=True)
    class Counting(StatefulLayer, Dense):
        def state_shapes(self) -> Mapping[str, Shape]:
            return {"seen": (1,)}

        def statistics_shapes(self) -> Mapping[str, Shape]:
            return {"seen": (1,)}

        def initialize_state(self, state: Views) -> None:
            state["seen"][...] = 0.0

        def combine_statistics(self, first: Views, second: Views) -> None:
            first["seen"] += second["seen"]

        def update_state(self, state: Views, statistics: Views) -> None:
            state["seen"] += statistics["seen"]

        def forward(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
            if batch.training and batch.microbatch == batch.step % 4:
                batch.statistics["seen"][...] = x.shape[1]
            return super().forward(params, x, batch, path)

    for size in (1, 2, 4):
        for result in run_on_threads(
            size, lambda c: fit(Counting(6, 1), (X, Y), validation=VALIDATION, communicator=c, **OPTIONS)
        ):
            assert result.state["seen"].tolist() == [4 * 175]  # four steps, of each one microbatch in four
