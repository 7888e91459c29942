"""Scores are those of the whole set, computed in one piece, and have the same bits on any number of ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distsgd.core.device import Array
from distsgd.core.layout import Layout, Views
from distsgd.core.random import normal
from distsgd.data.examples import Examples
from distsgd.data.loader import Loader
from distsgd.nn.layers import Dense
from distsgd.nn.losses import SoftmaxCrossEntropy
from distsgd.nn.objective import Supervised
from distsgd.parallel import Communicator
from distsgd.parallel.thread_pool import Workers
from distsgd.run.fit import fit
from distsgd.training.evaluator import CHUNK, Evaluator, predict_all
from distsgd.training.metrics import Accuracy, ConfusionMatrix, Metric, TopK, UserMetric
from tests.threads import run_on_threads

FEATURES, CLASSES = 7, 4
X = normal((3 * CHUNK + 77, FEATURES), 1, "x").astype(np.float32)
Y = (np.arange(len(X)) * 7 % CLASSES).astype(np.int64)
WEIGHTS = np.abs(normal((len(X),), 2, "weights")).astype(np.float32)
METRICS: list[Metric] = [Accuracy(), TopK(2), ConfusionMatrix(CLASSES), UserMetric("first", lambda out, y: out[0])]


def model() -> tuple[Supervised, Views]:
    objective = Supervised(Dense(FEATURES, CLASSES), SoftmaxCrossEntropy(), (FEATURES,))
    layout = Layout.of(objective.parameter_shapes())
    params = layout.views(normal((layout.size,), 3, "params").astype(np.float32))
    return objective, params


def score(communicator: Communicator, examples: Examples, workers: int = 1, on_root: bool = False) -> dict[str, Any]:
    objective, params = model()
    loader = Loader(examples, objective, np.dtype(np.float32), 0)
    crew = Workers(workers)
    scratch = [Layout.of(objective.parameter_shapes()).views(np.empty_like(params.flat)) for _ in range(workers)]
    evaluator = Evaluator(communicator, loader, METRICS, crew, on_root)
    found = evaluator.run(params, Layout.of({}).views(np.zeros(0)), scratch)
    crew.close()
    return found


def logits() -> Array:
    _, params = model()
    return (params["weight"].astype(float) @ X.T.astype(float)).T + params["bias"].astype(float)


def test_metrics_of_the_whole_set() -> None:
    found = run_on_threads(1, lambda c: score(c, Examples(X, Y)))[0]
    z = logits()
    losses = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(Y)), Y]
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-6)
    predicted = z.argmax(axis=1)
    assert found["accuracy"] == np.mean(predicted == Y)
    ranks = (z > z[np.arange(len(Y)), Y][:, np.newaxis]).sum(axis=1)
    assert found["top_2_accuracy"] == np.mean(ranks < 2)
    expected = np.zeros((CLASSES, CLASSES), int)
    np.add.at(expected, (Y, predicted), 1)
    assert np.array_equal(found["confusion_matrix"], expected)
    assert found["first"] == pytest.approx(z[:, 0].mean(), abs=1e-6)


@pytest.mark.parametrize("count", [1, CHUNK - 1, CHUNK, CHUNK + 1, len(X)])
def test_same_on_any_number_of_ranks(count: int) -> None:
    examples = Examples(X[:count], Y[:count], WEIGHTS[:count])
    first = run_on_threads(1, lambda c: score(c, examples))[0]
    for size in (2, 3, 5, 8):
        assert run_on_threads(size, lambda c: score(c, examples)) == [first] * size
    assert run_on_threads(3, lambda c: score(c, examples, workers=2)) == [first] * 3
    assert run_on_threads(3, lambda c: score(c, examples, on_root=True)) == [first] * 3


def test_sample_weights_multiply_losses() -> None:
    found = run_on_threads(2, lambda c: score(c, Examples(X, Y, WEIGHTS)))[0]
    z = logits()
    losses = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(Y)), Y]
    assert found["loss"] == pytest.approx((losses * WEIGHTS).mean(), rel=1e-6)


def test_subsets_and_scale() -> None:
    chosen = np.arange(0, len(X), 3)
    whole = Examples(X * np.float32(8), Y, scale=8.0).subset(chosen)
    assert run_on_threads(2, lambda c: score(c, whole)) == run_on_threads(
        2, lambda c: score(c, Examples(X[chosen], Y[chosen]))
    )


def test_predictions_are_those_of_one_piece() -> None:
    objective, params = model()
    loader = Loader(Examples(X, Y), objective, np.dtype(np.float32), 0, with_targets=False)
    found = predict_all(loader, params, Layout.of({}).views(np.zeros(0)))
    z = logits()
    expected = np.exp(z - z.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    assert found.shape == (len(X), CLASSES)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1, 3])
def test_metric_that_raises(size: int) -> None:
    def broken(outputs: Array, y: Array) -> Array:
        raise IndexError("in the metric")

    with pytest.raises(IndexError, match=r"(?s)in the metric.*scoring failed on rank \d"):
        run_on_threads(size, lambda c: fit(
            "softmax", (X, Y), communicator=c, epochs=1, metrics=[UserMetric("broken", broken)],
            validation_fraction=0.1))  # fmt: skip
