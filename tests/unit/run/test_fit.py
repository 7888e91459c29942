"""distsgd.fit: from any kind of model to parameters, history and predictions, on one rank or several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd.core.errors import ConfigurationError, DataError, DistsgdError
from distsgd.core.layout import Views
from distsgd.core.random import normal
from distsgd.nn.batch import Batch
from distsgd.optim.schedules import Constant, InverseTime
from distsgd.parallel import Communicator
from distsgd.parallel.serial import SerialCommunicator
from distsgd.run.fit import fit
from distsgd.run.trained.trained_model import Result
from distsgd.training.callbacks import RunView
from distsgd.training.metrics import UserMetric
from tests.threads import run_on_threads

X = normal((210, 8), 1, "x").astype(np.float32)
LABELS = (X[:, 0] + X[:, 1] > 0).astype(np.int64)
VALUES = X @ normal((8,), 2, "w").astype(np.float32)
QUICK: dict[str, Any] = {"epochs": 4, "batch_size": 20}
HELD_OUT: dict[str, Any] = {"validation_fraction": 0.1}


def test_named_model() -> None:
    result = fit("mlp", (X, LABELS), hidden=(16,), optimizer=distsgd.Adam(1e-2), **QUICK, **HELD_OUT)
    assert result.params.keys() == {"dense1.weight", "dense1.bias", "dense2.weight", "dense2.bias"}
    assert result.params["dense1.weight"].shape == (16, 8)
    assert result.params["dense1.weight"].dtype == np.float32
    assert len(result.history) == 4
    assert result.history[-1]["validation_loss"] < result.history[0]["validation_loss"]
    assert result.summary["status"] == "completed"
    predictions = result.predict(X)
    assert predictions.shape == (210, 2)
    np.testing.assert_allclose(predictions.sum(axis=1), 1, rtol=1e-5)
    assert np.mean(predictions.argmax(axis=1) == LABELS) > 0.85


def test_layers() -> None:
    model = distsgd.Sequential([
        distsgd.Dense(8, 12), distsgd.BatchNormalization(12), distsgd.Activation("tanh"), distsgd.Dense(12, 1)
    ])  # fmt: skip
    result = fit(model, (X, VALUES), optimizer="adam", learning_rate=0.03, epochs=8, batch_size=20, **HELD_OUT)
    assert result.summary["validation_r2"] > 0.8
    assert set(result.state) == {"batchnorm1.running_mean", "batchnorm1.running_variance"}
    assert result.predict(X[:5]).shape == (5, 1)


def test_function_without_layers() -> None:
    def line(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        error = params["w"] @ batch.x - batch.y
        grads["w"][...] = batch.x @ error
        return 0.5 * float(error @ error), len(batch)

    start = {"w": np.zeros(8)}
    result = fit(line, (X, VALUES), params=start, optimizer="sgd", learning_rate=0.1, epochs=30, batch_size=20)
    solution = np.linalg.lstsq(X, VALUES, rcond=None)[0]
    np.testing.assert_allclose(result.params["w"], solution, atol=1e-4)
    assert not start["w"].any(), "the caller's arrays stay"
    assert result.summary["train_loss"] < 1e-6


def test_predict_takes_the_shapes_of_training_and_flat_ones() -> None:
    x, y = np.ones((20, 3, 4, 5), np.float32), np.arange(20) % 2
    result = fit("conv 2 2x2, dense", (x, y), epochs=1, communicator=SerialCommunicator())
    for same in (x, x.reshape(20, 60)):
        assert result.predict(same).shape == (20, 2)
    with pytest.raises(DataError, match=r"examples of shape \(3, 4, 5\), the data has \(4, 5, 3\); put the axes"):
        result.predict(x.transpose(0, 2, 3, 1))
    with pytest.raises(DataError, match="60 numbers each, but the data has"):
        result.predict(x[..., 1:])
    grey = fit("conv 2 2x2, dense", (x[:, 0], y), epochs=1, communicator=SerialCommunicator())
    assert np.array_equal(grey.predict(x[:, 0]), grey.predict(x[:, :1]))


def test_custom_with_outputs_has_metrics_and_predictions() -> None:
    def line(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        error = params["w"] @ batch.x - batch.y
        grads["w"][...] = error @ batch.x.T
        return 0.5 * float(np.sum(np.square(error))), len(batch)

    model = distsgd.FunctionObjective(
        line, {"w": np.zeros((1, 8))}, outputs=lambda params, batch: params["w"] @ batch.x
    )
    result = fit(model, (X, VALUES[:, np.newaxis]), optimizer="sgd", epochs=20, batch_size=20, **HELD_OUT)
    assert result.summary["validation_r2"] > 0.99
    np.testing.assert_allclose(result.predict(X)[:, 0], VALUES, atol=0.1)


@pytest.mark.parametrize("size", [2, 4])
def test_every_rank_gets_the_same(size: int) -> None:
    def run(communicator: Communicator) -> Result:
        return fit(
            "mlp", (X, LABELS), communicator=communicator, hidden=(5,), batch_norm=True, **QUICK | {"batch_size": 32}
        )

    first, *others = run_on_threads(size, run)
    for other in others:
        assert all(other.params[name].tobytes() == array.tobytes() for name, array in first.params.items())
        assert all(other.state[name].tobytes() == array.tobytes() for name, array in first.state.items())
        assert other.summary == first.summary
        assert other.history == first.history
        assert other.predict(X).tobytes() == first.predict(X).tobytes()
    assert len(first.history) == 4


class Watch(distsgd.Callback):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_start(self, run: RunView) -> None:
        self.run = run
        self.calls.append("start")

    def on_step(self, step: int, loss: float, examples: int) -> None:
        self.calls.append(f"step {step} of {examples}")
        if step == 3:
            self.run.stop()

    def on_record(self, record: Mapping[str, Any]) -> None:
        self.calls.append(f"record {record['step']}")

    def on_end(self, summary: Mapping[str, Any]) -> None:
        self.calls.append(f"end {summary['status']}")

    def close(self) -> None:
        self.calls.append("close")


def test_callbacks_watch_on_rank_0() -> None:
    watches = [Watch() for _ in range(3)]

    def run(communicator: Communicator) -> Result:
        data, watch = (X[:50], LABELS[:50]), watches[communicator.rank]
        return fit("softmax", data, callbacks=[watch], communicator=communicator, validation_fraction=0, **QUICK)

    assert run_on_threads(3, run)[1].summary["status"] == "stopped"
    # The stop is asked for after the third step and reported with the fourth.
    assert watches[0].calls == [
        "start", "step 1 of 20", "step 2 of 20", "step 3 of 10", "record 3", "step 4 of 20",
        "end stopped", "close",
    ]  # fmt: skip
    assert watches[1].calls == watches[2].calls == []


@pytest.mark.parametrize("hook", ["on_start", "on_step", "on_record", "on_end"])
@pytest.mark.parametrize("size", [1, 3])
def test_callback_that_fails_ends_all_ranks(hook: str, size: int, tmp_path: Path) -> None:
    def fail(*arguments: Any, **keywords: Any) -> None:
        raise IndexError("in the hook")

    broken = type("Broken", (distsgd.Callback,), {hook: fail})

    def run(communicator: Communicator) -> str:
        options = {**QUICK, "callbacks": [broken()], "communicator": communicator, "out": str(tmp_path / "run")}
        with pytest.raises(IndexError, match=r"(?s)in the hook.*a callback failed at step \d") as caught:
            fit("softmax", (X, LABELS), **options)
        return str(caught.value)

    assert set(run_on_threads(size, run)) == {"in the hook"}
    assert '"status": "failed"' in (tmp_path / "run" / "summary.json").read_text()


def test_own_metric() -> None:
    metric = UserMetric("low", lambda outputs, y: outputs[0] < 0)
    result = fit("softmax", (X, LABELS), metrics=[metric], **QUICK, **HELD_OUT)
    assert all(0 <= record["validation_low"] <= 1 for record in result.history)


def test_validation_and_test_sets() -> None:
    given = {"validation": (X[:40], LABELS[:40]), "test": (X[40:60], LABELS[40:60])}
    result = fit("softmax", (X[60:], LABELS[60:]), **given, **QUICK)
    for name, (x, y) in given.items():
        predicted = result.predict(x).argmax(axis=1)
        assert result.summary[f"{name}_accuracy"] == np.mean(predicted == y)
        assert np.sum(result.summary["confusion_matrix"][name]) == len(x)


def test_bytes_are_scaled_and_labels_may_be_a_column() -> None:
    images = (np.abs(X) * 60).clip(0, 255).astype(np.uint8)
    result = fit("softmax", (images, LABELS[:, np.newaxis].astype(np.uint8)), **QUICK)
    scaled = fit("softmax", (images.astype(np.float32), LABELS), scale=255, **QUICK)
    assert result.summary["parameters_sha256"] == scaled.summary["parameters_sha256"]
    assert result.predict(images).tobytes() == scaled.predict(images.astype(np.float32)).tobytes()


def test_lists_are_arrays() -> None:
    result = fit("softmax", (X.tolist(), LABELS.tolist()), **QUICK)
    assert result.summary["parameters_sha256"] == fit("softmax", (X, LABELS), **QUICK).summary["parameters_sha256"]


def test_weights_of_0_leave_examples_out() -> None:
    weights = np.r_[np.ones(100), np.zeros(110)].astype(np.float32)
    labels = np.where(np.arange(210) < 100, LABELS, 1 - LABELS)
    result = fit("softmax", (X, labels, weights), learning_rate=0.5, validation_fraction=0, **QUICK)
    assert np.mean(result.predict(X).argmax(axis=1) == LABELS) > 0.9


def test_schedules_and_optimizers_by_name_or_as_objects() -> None:
    def sha(**options: Any) -> str:
        return fit("softmax", (X, LABELS), **QUICK, **options).summary["parameters_sha256"]

    by_name = sha(optimizer="rmsprop", learning_rate=0.01, schedule="inverse-time", decay_rate=0.5)
    as_objects = sha(optimizer=distsgd.RMSprop(0.01), schedule=InverseTime(decay_rate=0.5))
    assert by_name == as_objects != sha(optimizer=distsgd.RMSprop(0.01), schedule=Constant())


def test_lr_is_the_learning_rate() -> None:
    short, long = fit("softmax", (X, LABELS), lr=0.3, **QUICK), fit("softmax", (X, LABELS), learning_rate=0.3, **QUICK)
    assert short.summary["parameters_sha256"] == long.summary["parameters_sha256"]
    other = fit("softmax", (X, LABELS), **QUICK)
    assert other.summary["parameters_sha256"] != long.summary["parameters_sha256"]


def test_other_threads_of_blas_are_given_back() -> None:
    from threadpoolctl import threadpool_info, threadpool_limits

    def counts() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    with threadpool_limits(limits=2, user_api="blas"):
        before = counts()
        several = fit("softmax", (X, LABELS), **QUICK)
        assert counts() == before
    assert several.summary["parameters_sha256"] == fit("softmax", (X, LABELS), **QUICK).summary["parameters_sha256"]


def test_arrays_of_the_caller_stay_as_they_are() -> None:
    x, y = X.copy(), LABELS.copy()
    fit("mlp", (x, y), batch_norm=True, **QUICK)
    assert x.tobytes() == X.tobytes()
    assert y.tobytes() == LABELS.tobytes()
    assert x.flags.writeable


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model": 42}, "must be a distsgd.Layer"),
    ({"model": "mpl"}, "model: expected one of"),
    ({"model": distsgd.Dense(8, 5)}, r"puts out shape \(5,\), this loss needs \(2,\)"),
    ({"model": distsgd.Dense(7, 2)}, "7"),
    ({"batchsize": 3}, "unknown option 'batchsize'"),
    ({"lr": 0.1, "learning_rate": 0.1}, "learning_rate is given twice, under two names; give it once"),
    ({"lr": 0.1, "optimizer": distsgd.SGD(0.1)}, "learning_rate is the optimizer's; give it there"),
    ({"dataset": "digits"}, "unknown option 'dataset'"),
    ({"batch_size": 0}, "batch_size"),
    ({"batch_size": "big"}, "batch_size"),
    ({"epochs": 1.5}, "epochs: expected a whole number"),
    ({"x": (X,)}, "give x and y"),
    ({"x": X}, "give x and y"),
    ({"validation": (X[:, :5], LABELS)}, "validation examples have shape"),
    ({"target": "validation_loss=1", "validation_fraction": 0}, "nothing to measure"),
    ({"monitor": "validation_loss_of_hair", **HELD_OUT}, "monitor"),
    ({"drop_last": True, "batch_size": 500}, "smaller batch_size"),
    ({"validation_fraction": 0.999}, "leaves none"),
    ({"validation_last": 210}, "fewer than the 210"),
    ({"class_weights": (1.0, 1.0, 1.0)}, "class weights"),
    ({"freeze": ("dense7.*",)}, "matches no parameter"),
]


@pytest.mark.parametrize(("options", "reported"), REFUSED, ids=[str(reported) for _, reported in REFUSED])
@pytest.mark.parametrize("size", [1, 2])
def test_refused(options: dict[str, Any], reported: str, size: int) -> None:
    options = {"model": "softmax", "x": (X, LABELS), "epochs": 1, **options}
    with pytest.raises(DistsgdError, match=reported) as caught:
        run_on_threads(size, lambda c: fit(communicator=c, **options))
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("x", "y", "reported"),
    [
        (np.full((5, 2), np.nan), np.zeros(5, int), "example 0 holds nan"),
        (np.zeros((5, 2)), np.zeros(4, int), "targets: expected 5 entries"),
        (np.zeros((5, 2)), np.full(5, -1), "-1"),
        (np.zeros((0, 2)), np.zeros(0, int), "at least one example"),
        (np.array([["a"]]), np.zeros(1, int), "holds text"),
    ],
)
def test_data_that_cannot_be_trained_on(x: Any, y: Any, reported: str) -> None:
    with pytest.raises(DataError, match=reported):
        fit("softmax", (x, y))


def test_more_ranks_than_microbatches() -> None:
    with pytest.raises(ConfigurationError, match=r"5 ranks share 4 microbatches.*--microbatches 5"):
        run_on_threads(5, lambda c: fit("softmax", (X, LABELS), communicator=c))


def test_leaves_a_run_folder_only_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit("softmax", (X, LABELS), **QUICK)
    assert list(tmp_path.iterdir()) == []
    fit("softmax", (X, LABELS), out="here", **QUICK, **HELD_OUT)
    assert {path.name for path in (tmp_path / "here").iterdir()} == {
        "config.toml", "metrics.jsonl", "summary.json", "checkpoints", "validation_rows.npy"}  # fmt: skip


def test_arrays_in_any_order_of_memory() -> None:
    def sha256(x: Any) -> str:
        return fit("softmax", (x, LABELS), **QUICK).summary["parameters_sha256"]

    wide = np.zeros((210, 20), np.float32)
    wide[:, 4:12] = X
    assert sha256(np.asfortranarray(X)) == sha256(wide[:, 4:12]) == sha256(X)


def test_examples_lie_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """In any other order of memory each minibatch would copy the whole set."""
    given, split_data = [], distsgd.run.data.given.split_data

    def keeping(communicator: Any, decided: Any, names: Any, sets: Any, **keywords: Any) -> Any:
        given.append(sets["train"].x)
        return split_data(communicator, decided, names, sets, **keywords)

    monkeypatch.setattr(distsgd.run.data.given, "split_data", keeping)
    fit("softmax", (np.asfortranarray(X), LABELS), **QUICK)
    assert [x.flags.c_contiguous for x in given] == [True]


def test_a_callback_sees_a_run_and_no_more_of_it() -> None:
    class Look(distsgd.Callback):
        def __init__(self) -> None:
            self.seen: list[tuple[int, int, int]] = []

        def on_start(self, run: RunView) -> None:
            self.run = run
            assert {name for name in dir(run) if not name.startswith("_")} == {
                "epoch", "last_step", "steps_done", "steps_per_epoch", "stop",
            }  # fmt: skip
            with pytest.raises(AttributeError):
                run.epoch = 3  # type: ignore[misc]

        def on_step(self, step: int, loss: float, examples: int) -> None:
            self.seen.append((self.run.steps_done, self.run.epoch, self.run.last_step))

    look = Look()
    fit("softmax", (X[:50], LABELS[:50]), callbacks=[look], validation_fraction=0, batch_size=20, epochs=2)
    assert look.seen == [(1, 0, 6), (2, 0, 6), (3, 1, 6), (4, 1, 6), (5, 1, 6), (6, 2, 6)]
