"""A file as a user writes it, with every kind of object of their own, typed for mypy --strict and pyright."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, assert_type

import numpy as np

import distsgd
from distsgd import Array, Batch, Callback, ConfigurationError, DataError, RunView, Shape, Views
from distsgd.data import make_moons, open_dataset, read_array
from distsgd.metrics import Accuracy, Metric, UserMetric, Value
from distsgd.nn import Activation, Backward, Convolution, Dense, Initializer, Layer, Loss, MaxPooling, Sequential
from distsgd.optim import Adam, Cosine, Optimizer, Scalars, Schedule, Slots, Warmup
from distsgd.testing import GradientCheck, check_layer_gradient


@dataclass(frozen=True)
class Scale(Layer):
    features: int
    kind: ClassVar[str] = "scale"

    def parameter_shapes(self) -> Mapping[str, Shape]:
        return {"factor": (self.features,)}

    def initialize(self, params: Views, seed: int, path: str) -> None:
        params["factor"][...] = 1.0

    def output_shape(self, shape: Shape) -> Shape:
        if shape != (self.features,):
            raise ConfigurationError(f"scale: expected ({self.features},), got {shape}; flatten the examples")
        return shape

    def forward(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
        factor = params["factor"][:, None]

        def backward(dy: Array, grads: Views) -> Array:
            grads["factor"] = (dy * x).sum(axis=1)
            return dy * factor

        return x * factor, backward


@dataclass(frozen=True)
class AbsoluteError(Loss):
    def output_size(self, target_shape: Shape, num_classes: int | None) -> int:
        return int(np.prod(target_shape))

    def predict(self, outputs: Array) -> Array:
        return outputs

    def value_and_grad(self, outputs: Array, y: Array, want_grad: bool) -> tuple[Array, Array | None]:
        difference: Array = outputs - y
        return np.abs(difference).sum(axis=0), np.sign(difference) if want_grad else None


@dataclass(frozen=True)
class Largest(Metric):
    name = "largest"
    mode = "min"

    def sums(self, outputs: Array, y: Array) -> Array:
        return np.array([np.abs(outputs).max(), 1.0])

    def value(self, sums: Array) -> Value:
        return float(sums[0])


@dataclass(frozen=True)
class Signs(Optimizer):
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    slots: ClassVar[tuple[str, ...]] = ("velocity",)

    def step(self, params: Array, grads: Array, state: Slots, scalars: Scalars, spare: Array) -> None:
        state[0][...] = grads
        params -= scalars[0] * np.sign(grads)


@dataclass(frozen=True)
class Halves(Schedule):
    def multiplier(self, step: int, steps_per_epoch: int) -> float:
        return 1.0 / (1 + step // steps_per_epoch)


@dataclass(frozen=True)
class Small:
    gain: float = 1.0

    def __call__(self, shape: Shape, seed: int, purpose: str) -> Array:
        values: Array = self.gain * distsgd.random.normal(shape, seed, purpose)
        return values


class Watch(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.run: RunView | None = None

    def on_start(self, run: RunView) -> None:
        self.run = run

    def on_step(self, step: int, loss: float, examples: int) -> None:
        self.losses.append(loss)

    def on_record(self, record: Mapping[str, Any]) -> None:
        if self.run is not None and record["epoch"] >= 2:
            self.run.stop()


def hinge(weights: Views, gradients: Views, batch: Batch) -> tuple[float, int]:
    t = 2.0 * batch.y - 1.0
    margin = 1.0 - t * (weights["w"] @ batch.x)
    gradients["w"] = batch.x @ np.where(margin > 0, -t, 0.0)
    return float(np.maximum(margin, 0.0).sum()), len(batch)


def confidence(outputs: Array, y: Array) -> Array:
    largest: Array = outputs.max(axis=0)
    return largest


def funnel(input_shape: Shape, outputs: int, start: Initializer = Small(0.5)) -> Layer:
    first = Dense(input_shape[0], input_shape[0], weight_initializer=start)
    return Sequential([first, Scale(input_shape[0]), Activation("tanh"), Dense(input_shape[0], outputs)])


def images() -> distsgd.nn.Layer:
    return distsgd.nn.Sequential([Convolution(1, 2, 3), MaxPooling(2), distsgd.nn.Flatten(), Dense(18, 10)])


def scores(params: Views, batch: Batch) -> Array:
    found: Array = (params["w"] @ batch.x)[None]
    return found


def used(result: distsgd.Result, x: Array, y: Array) -> None:
    """All that a trained model can do, of fit and of load alike."""
    with tempfile.TemporaryDirectory() as folder:
        result.save(f"{folder}/a")
        result.save(Path(folder) / "b")
        model = distsgd.load(Path(folder) / "a", model=funnel((2,), 2), loss=None)
        ensemble = distsgd.load([f"{folder}/a", f"{folder}/b"], model=funnel((2,), 2))
    assert_type(model, distsgd.TrainedModel)
    assert_type(ensemble, distsgd.Ensemble)
    for one in (result, model):
        assert_type(one.evaluate(x, y, np.ones(60), metrics=["accuracy", confidence, Accuracy()]), dict[str, Any])
        print(one.predict(x), one.predict_proba(x.tolist()), one.labels(x), one.task.names, one.config["epochs"])
    print(ensemble.predict(x), ensemble.spread(x), ensemble.labels(x), len(ensemble), ensemble.members[0].params)
    distsgd.fit(
        hinge, x, y, params={"w": [0.0, 0.0]}, epochs=1, outputs=lambda params, batch: (params["w"] @ batch.x)[None]
    )
    distsgd.fit("mlp", open_dataset("moons"), epochs=1, early_stopping="none", loss="softmax-cross-entropy")
    distsgd.fit("mlp", x, y, batch_size="full", hidden=[4, 5], loss="auto", learning_rate=1, max_time="4h30", epochs=1)


def main() -> None:
    x, y = make_moons(60)
    check: GradientCheck = check_layer_gradient(Scale(3), (3,))
    check.raise_if_wrong()
    assert_type(check.max_relative_error, float)
    watch = Watch()
    result = distsgd.fit(
        funnel((2,), 2),
        (x, y),
        validation=(x, y),
        optimizer=Adam(1e-2),
        schedule=Warmup(Cosine(epochs=3), warmup_steps=2),
        metrics=[Accuracy(), UserMetric("confidence", confidence, mode="max")],
        callbacks=[watch],
        epochs=3,
        batch_size="full",
        freeze=["dense1.bias"],
        augment=(),
        max_time="4h30",
        loss="auto",
        seed=1,
    )
    assert_type(result, distsgd.Result)
    assert_type(result.params["dense1.weight"].shape, tuple[Any, ...])
    assert_type(result.summary, dict[str, Any])
    assert_type(result.history, list[dict[str, Any]])
    print(result.predict(x).argmax(axis=1), result.history[-1]["validation_loss"], watch.losses)
    distsgd.fit(hinge, (x, y), params={"w": np.zeros(2)}, epochs=1)
    distsgd.fit("softmax", x, y, weights=np.ones(60), epochs=1, patience=3, validation=(x, y))
    used(result, x, y)
    distsgd.fit("softmax", x, y, epochs=1, validation=(x, y), optimizer=Adam, lr=1e-2, metrics=["accuracy", confidence])
    objective = distsgd.FunctionObjective(hinge, {"w": np.zeros(2)})
    distsgd.fit(objective, (x, y), optimizer=Signs(0.1), schedule=Halves(), epochs=2, batch_size=16)
    values = (x[:, :1] * 2.0).astype(np.float32)
    model = distsgd.nn.Supervised(Dense(2, 1), AbsoluteError(), (2,))
    distsgd.fit(model, (x, values), validation=(x, values), metrics=[Largest()], epochs=1, optimizer="sgd")
    try:
        digits = read_array(open_dataset("digits").arrays["x_train"])
    except DataError as error:
        raise SystemExit(error.exit_status) from None
    try:
        distsgd.fit(images(), (digits[:40, None], np.arange(40) % 10), epochs=1)
    except distsgd.DistsgdError as error:
        print(error)
    if distsgd.is_root() and distsgd.rank() < distsgd.size():
        print(distsgd.__version__)


if __name__ == "__main__":
    main()
