"""`fit` with losses and optimizers of the user's own, and what a script asks about its ranks."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest

import distsgd
from distsgd import Array, ConfigurationError, Shape
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
