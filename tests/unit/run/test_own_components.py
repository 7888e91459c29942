"""`fit` with losses and optimizers of the user's own, and what a script asks about its ranks."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd import Array, ConfigurationError, Shape
from distsgd.core.kernel_family import loaded_family
from distsgd.metrics import F1, Accuracy, ConfusionMatrix, Metric, UserMetric, per_set
from distsgd.nn import Dense, Loss, SoftmaxCrossEntropy, SquaredError, Supervised
from distsgd.optim import Optimizer, Scalars, Slots
from tests.unit.project.test_structure import ROOT

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
LABELS = (X[:, 0] > 0).astype(np.int64)
VALUES = X[:, :2] * 2.0


@dataclass(frozen=True)
class Own(Loss):
    """A builtin loss under a class of the user's own, with a number of outputs of its own."""

    inner: Loss
    outputs: int

    def output_size(self, target_shape: Shape, num_classes: int | None) -> int:
        return self.outputs

    def targets(self, rows: Array, dtype: np.dtype) -> Array:
        return self.inner.targets(rows, dtype)

    def predict(self, outputs: Array) -> Array:
        return self.inner.predict(outputs)

    def value_and_grad(self, outputs: Array, y: Array, want_grad: bool) -> tuple[Array, Array | None]:
        return self.inner.value_and_grad(outputs, y, want_grad)


@dataclass(frozen=True)
class Spread(Own):
    """Twice as many outputs as values, as a loss of a mean and a spread has them; only the first half is used."""

    def value_and_grad(self, outputs: Array, y: Array, want_grad: bool) -> tuple[Array, Array | None]:
        losses, grad = self.inner.value_and_grad(outputs[: len(y)], y, want_grad)
        return losses, None if grad is None else np.concatenate([grad, np.zeros_like(grad)])


def measured(loss: Loss, targets: Array, outputs: int) -> distsgd.Result:
    model = Supervised(Dense(4, outputs), loss, (4,))
    return distsgd.fit(model, (X, targets), validation=(X, targets), epochs=2, batch_size=20)


def test_an_own_loss_has_the_bits_and_metrics_of_what_it_computes() -> None:
    for inner, targets, outputs in ((SoftmaxCrossEntropy(), LABELS, 2), (SquaredError(), VALUES, 2)):
        own, same = (measured(loss, targets, outputs) for loss in (Own(inner, outputs), inner))
        assert own.summary["parameters_sha256"] == same.summary["parameters_sha256"]
        assert own.history[-1].keys() == same.history[-1].keys()


def test_an_own_loss_whose_outputs_mean_something_else_is_scored_by_itself_alone() -> None:
    record = measured(Spread(SquaredError(), 4), VALUES, 4).history[-1]
    assert record["validation_loss"] >= 0.0
    assert not [name for name in record if name.startswith("validation_") and name.endswith(("error", "r2"))]
    with pytest.raises(ConfigurationError, match="top_k: expected classes"):
        distsgd.fit(
            Supervised(Dense(4, 3), Own(SoftmaxCrossEntropy(), 3), (4,)),
            (X, LABELS),
            epochs=1,
            top_k=2,
            validation_fraction=0.1,
        )  # three outputs for two classes


def test_an_optimizer_without_the_common_fields_is_refused() -> None:
    @dataclass(frozen=True)
    class Still(Optimizer):
        weight_decay: float = 0.0

        def step(self, params: Array, grads: Array, state: Slots, scalars: Scalars, spare: Array) -> None: ...

    with pytest.raises(ConfigurationError, match="Still: expected the fields learning_rate and weight_decay"):
        Still()


def test_ranks_of_a_process_alone() -> None:
    assert (distsgd.rank(), distsgd.size(), distsgd.is_root()) == (0, 1, True)
    code = "import sys, distsgd; distsgd.is_root(); print('mpi4py' in sys.modules, 'distsgd.run.fit' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 20, "hidden": (3,)}


@dataclass(frozen=True)
class Returns(Loss):
    """A loss that returns something else than one loss for each example and their gradient."""

    change: Callable[[Array, Array], Any]

    def value_and_grad(self, outputs: Array, y: Array, want_grad: bool) -> tuple[Array, Array | None]:
        changed: tuple[Array, Array | None] = self.change(np.square(outputs - y).sum(axis=0), 2 * (outputs - y))
        return changed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda losses, grad: (losses.mean(), grad), r"losses \(\d+,\), one an example"),
        (lambda losses, grad: (losses[None], grad), r"got float32 \(1, \d+\) and"),
        (lambda losses, grad: (losses, grad.T), "one an example, and a gradient"),
        (lambda losses, grad: (losses, None), "and NoneType"),
        (lambda losses, grad: (losses * 1j, grad), "got complex64"),
        (lambda losses, grad: (losses.tolist(), grad), "got list and"),
        (lambda losses, grad: losses, "expected a tuple"),
    ],
)
@pytest.mark.parametrize("weights", [None, np.ones(60)])
def test_a_loss_that_is_none_for_each_example_is_refused(change: Any, words: str, weights: Any) -> None:
    function = lambda outputs, y: change(np.square(outputs - y).sum(axis=0), 2 * (outputs - y))  # noqa: E731
    for loss in (Returns(change), function):
        with pytest.raises(ConfigurationError, match=words):
            distsgd.fit("mlp", X, VALUES, weights=weights, loss=loss, **QUICK)


class Named(Metric):
    """A metric whose sums or value are what they are told to be."""

    def __init__(self, name: Any, sums: Any = (1.0, 2.0), value: Any = 0.5) -> None:
        self.name, self.found, self.result = name, sums, value

    def sums(self, outputs: Array, y: Array) -> Array:
        return self.found  # type: ignore[no-any-return]

    def value(self, sums: Array) -> Any:
        return self.result


def scored(*metrics: Any) -> dict[str, Any]:
    return distsgd.fit("mlp", X, LABELS, validation=(X, LABELS), metrics=metrics, **QUICK).summary


def zero(outputs: Array, y: Array) -> Array:
    return outputs[0] * 0.0


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ([UserMetric("loss", zero)], "metric loss: the loss has this name"),
        ([UserMetric("accuracy", zero)], "metric accuracy: Accuracy has this name, too"),
        ([UserMetric("confusion_matrix", zero)], "metric confusion_matrix: UserMetric has this name, too"),
        (["f1", UserMetric("f1", zero)], "metric f1: F1 has this name, too"),
        ([F1(threshold=0.1), "f1"], "metric f1: F1 has this name, too"),
        ([Named(3)], "metric Named: expected a name for the records"),
        ([Named("a", sums=np.zeros(3))], "metric a: expected 2 sums, as its width says, got an array of shape"),
        ([Named("a", sums=1.0)], "metric a: expected 2 sums"),
        ([Named("a", value="much")], "metric a: expected a number or a list of some, got str"),
        ([UserMetric("a", lambda outputs, y: outputs[0] * 1j)], "expected one value for each .* of complex numbers"),
        ([UserMetric("a", lambda outputs, y: np.array(["1"] * 60))], "expected one value for each .* of <U1"),
        ([UserMetric("a", lambda outputs, y: None, per="set")], "one number of the whole set, got NoneType"),  # type: ignore[arg-type, return-value]
    ],
)
def test_metrics_that_would_hide_another_or_are_no_numbers_are_refused(metrics: list[Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        scored(*metrics)


def test_metrics_that_are_given_twice_alike() -> None:
    found = scored("f1", F1(), "f1", Named("b", value=np.float32(0.25)), ConfusionMatrix(2))
    assert found["validation_b"] == 0.25
    assert "validation_f1" in found
    strict = scored(Accuracy(threshold=0.0))["validation_accuracy"]
    assert strict == scored()["validation_accuracy"]


def test_a_function_that_takes_no_attribute() -> None:
    with pytest.raises(ConfigurationError, match="takes no attribute; give UserMetric"):
        per_set(len)


def test_weights_in_a_column_are_the_same_weights() -> None:
    weights = np.linspace(0.1, 2.0, 60)
    alike = [
        distsgd.fit("mlp", X, LABELS, weights=one, validation=(X, LABELS, one), **QUICK)
        for one in (weights, weights[:, None])
    ]
    assert alike[0].summary["parameters_sha256"] == alike[1].summary["parameters_sha256"]
    assert alike[0].summary["validation_loss"] == alike[1].summary["validation_loss"]
    scores = [alike[0].evaluate(X, LABELS, one)["loss"] for one in (weights, weights[:, None])]
    assert scores[0] == scores[1] == pytest.approx(alike[0].summary["validation_loss"])


def test_paths_as_objects(tmp_path: Path) -> None:
    first = distsgd.fit("mlp", X, LABELS, out=tmp_path / "a", **QUICK)
    again = distsgd.fit("mlp", X, LABELS, init_from=tmp_path / "a", **(QUICK | {"epochs": 0}))
    assert all((first.params[name] == again.params[name]).all() for name in first.params)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("mlp", "digits"), {}, "got str; distsgd.open_dataset opens a data set by its name or path"),
        (("mlp", None, LABELS), {}, "train x: expected an array, got None"),
        (("mlp", X, LABELS), {"validation": (X, None)}, "validation y: expected an array, got None"),
        ((zero, X, VALUES), {}, "a function needs its initial values; give params="),
        ((zero, X, VALUES), {"params": {1: np.zeros(3)}}, "a parameter's name is text, got 1"),
        ((Dense, X, VALUES), {}, "got the class Dense; make an object of it"),
        (("mlp", X, LABELS), {"metrics": ["mcc"], "validation": (X, LABELS)}, "did you mean matthews_correlation"),
        (("mlp", X, VALUES), {"loss": "mae"}, "did you mean l1"),
        (("mlp", X, LABELS), {"metrics": [lambda a, b: a]}, "<function <lambda>> has no name for the records"),
    ],
)
def test_a_sentence_says_what_to_give(arguments: tuple[Any, ...], options: dict[str, Any], words: str) -> None:
    with pytest.raises(distsgd.DistsgdError, match=words):
        distsgd.fit(*arguments, epochs=1, **options)


@pytest.mark.skipif(loaded_family() != "avx2", reason="the folder is of a run with the kernels avx2")
def test_a_run_whose_metric_was_stored_without_the_field_per_is_continued(tmp_path: Path) -> None:
    """The folder was made before UserMetric had that field."""
    copied = tmp_path / "run"
    shutil.copytree(ROOT / "tests" / "reference" / "run_without_per", copied)

    def margin(outputs, y):  # type: ignore[no-untyped-def]  # as it was written there
        return outputs[1] - outputs[0]

    x, y = np.eye(4, dtype=np.float32), np.arange(4) % 2
    options: dict[str, Any] = {"validation": (x, y), "batch_size": 4, "out": copied}
    result = distsgd.fit("softmax", x, y, epochs=2, metrics=[UserMetric("margin", margin, mode="max")], **options)
    assert [record["epoch"] for record in result.history] == [1, 2]
    assert result.history[0] == result.history[0] | {"validation_margin": 0.0}
    with pytest.raises(distsgd.DistsgdError, match="began with other metrics"):
        distsgd.fit("softmax", x, y, epochs=3, metrics=[UserMetric("margin", margin, mode="min")], **options)
