"""Microbatches that are computed at once have the bits of those that are computed one after the other.

A run that looks at each microbatch's gradient computes them one after the other: the reference of most tests here.
"""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import distsgd
from distsgd import fit, nn
from distsgd.core.kernels import several
from distsgd.core.kernels.blas import gemm
from distsgd.core.kernels.several import Addition, product_of_each, weight_gradients
from distsgd.parallel import Communicator
from distsgd.parallel.tree import TreeSum
from distsgd.training.stacks import Stacks
from tests.threads import run_on_threads

RNG = np.random.default_rng(0)
X = RNG.random((300, 40), dtype=np.float32)
LABELS = RNG.integers(0, 7, 300)
VALUES = RNG.random((300, 3), dtype=np.float32)
IMAGES = RNG.standard_normal((300, 2, 11, 13), dtype=np.float32)
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 64, "threads": 1, "microbatches": 4, "validation_fraction": 0.0}


def bits(data: Any, model: Any = "mlp", **options: Any) -> Any:
    return fit(model, data, **{**QUICK, **options}, quiet=True).summary["parameters_sha256"]


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many microbatches each stack had that was computed."""
    sizes: list[int] = []
    compute = Stacks.compute

    def counted(self: Stacks, minibatch: Any, *arguments: Any) -> bool:
        done = compute(self, minibatch, *arguments)
        sizes.append(len(minibatch.bounds) - 1 if done else 0)
        return done

    monkeypatch.setattr(Stacks, "compute", counted)
    return sizes


@pytest.mark.parametrize(
    "options",
    [
        {"hidden": (50,)},
        {"hidden": (33, 20), "activation": "sigmoid", "batch_size": 77},
        {"hidden": (64,), "activation": "gelu", "microbatches": 7, "batch_size": 100},
        {"hidden": (130, 90), "activation": "leaky-relu", "microbatches": 16, "batch_size": 300, "drop_last": True},
        {"hidden": (20,), "microbatches": 5, "optimizer": "adam", "clip_norm": 0.1},
        {"hidden": (50,), "activation": "tanh", "dtype": "float64"},
        {"hidden": (50,), "threads": 2},
        {"hidden": (3,), "l2": 0.01, "freeze": "dense1.bias"},
        {"hidden": (20,), "microbatches": 3, "batch_size": 4, "drop_last": True},
        {"hidden": (20,), "label_smoothing": 0.1},
        {"hidden": (700, 310), "batch_size": 40, "microbatches": 8},
        {"hidden": (17, 5), "batch_size": 78, "microbatches": 6, "activation": "sigmoid"},
        {"hidden": (1, 9)},
    ],
    ids=str,
)
def test_bits_of_networks(options: dict[str, Any], stacks: list[int]) -> None:
    found = bits((X, LABELS), **options)
    computed = [size for size in stacks if size]
    alone = options.get("batch_size") == 4 or options["hidden"][0] == 1
    assert bool(computed) != alone, "microbatches of one example, and layers of one output, are computed alone"
    stacks.clear()
    assert found == bits((X, LABELS), **options, on_non_finite="skip")
    assert not stacks


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("conv 20 3x3, pool 2, relu, conv 8 3x3, relu, dense 30, tanh, dense", {}),  # pooled in the convolution
        (
            "conv 6 3x3 same, relu, conv 4 3x3 same stride 2, global-pool, dense",
            {"microbatches": 7, "batch_size": 90},
        ),
        ("conv 3 1x1, sigmoid, conv 5 3x3 stride 2, average-pool 2, dense", {"batch_size": 77}),
        ("pool 2, conv 12 3x3, relu, dense", {"threads": 2}),
        ("conv 9 5x5, pool 3, relu, dense 20, gelu, dense", {"dtype": "float64", "microbatches": 3}),
        ("conv 4 3x3, relu, dense", {"optimizer": "adam", "freeze": "conv1.bias", "batch_size": 12}),
        ("conv 150 3x3 same, relu, conv 2 3x3, dense", {"batch_size": 200}),  # in several stacks
    ],
    ids=str,
)
def test_bits_of_networks_of_images(model: str, options: dict[str, Any], stacks: list[int]) -> None:
    data = (IMAGES, LABELS)
    found = bits(data, model, **options)
    assert stacks
    assert all(stacks)
    stacks.clear()
    assert found == bits(data, model, **options, on_non_finite="skip")
    assert not stacks


def test_memory_of_wide_convolutions_of_small_images(stacks: list[int]) -> None:
    """Each microbatch has its own gradients of convolutions, which may be far larger than its images."""
    data = (IMAGES[:64, :, :5, :5], LABELS[:64])

    def peak(**options: Any) -> int:
        tracemalloc.start()
        bits(data, "conv 128 3x3, relu, conv 512 3x3, relu, dense", microbatches=16, **options)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    apart = peak(on_non_finite="skip")
    assert peak() < 2 * apart
    assert stacks


def test_memory_of_many_examples_with_few_values() -> None:
    """A stack has the outputs of all of its microbatches: far more than inputs and parameters, where those are few."""
    x, y = RNG.random((16_384, 4), dtype=np.float32), RNG.integers(0, 3, 16_384)

    def peak(**options: Any) -> int:
        tracemalloc.start()
        bits((x, y), hidden=(256,), microbatches=32, batch_size=16_384, epochs=1, **options)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    alone = peak(on_non_finite="skip")
    assert peak() < alone + (24 << 20)


@pytest.mark.skipif(gemm("f") is None, reason="NumPy has another BLAS than OpenBLAS, whose products aren't added")
@pytest.mark.parametrize(("microbatches", "rows"), [(1, 1), (2, 1), (3, 2), (4, 2), (9, 2)])
def test_rows_of_gradients(microbatches: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A microbatch's gradients are added to those of the one before where they are computed, in pairs; what stays apart
    is added in the update."""
    added: set[int] = set()
    divided = TreeSum.divided

    def noted(self: TreeSum, *arguments: Any) -> Any:
        added.add(self.rows)
        return divided(self, *arguments)

    monkeypatch.setattr(TreeSum, "divided", noted)
    bits((X, LABELS), hidden=(20,), microbatches=microbatches)
    assert added == {rows}
    added.clear()
    bits((X, LABELS), hidden=(20,), microbatches=microbatches, on_non_finite="skip")
    assert added == {min(microbatches, 2)}


@pytest.mark.parametrize("loss", ["squared-error", "huber", "quantile", "binary-cross-entropy"])
def test_bits_of_losses_of_values_with_weights(loss: str, stacks: list[int]) -> None:
    weights = RNG.random(300, dtype=np.float32)
    data = (X, np.round(VALUES) if loss == "binary-cross-entropy" else VALUES, weights)
    found = bits(data, loss=loss)
    assert all(stacks)
    assert found == bits(data, loss=loss, on_non_finite="skip")


def test_layers_may_have_any_names() -> None:
    """One that has another one's with an apostrophe, too."""
    layers = [nn.Dense(40, 30), nn.Activation("relu"), nn.Dense(30, 50), nn.Activation("relu"), nn.Dense(50, 7)]
    model = nn.Sequential(layers, ["a", "b", "c", "d", "c'"])
    options = {"batch_size": 100}
    assert bits((X, LABELS), model, **options) == bits((X, LABELS), model, **options, on_non_finite="skip")


def test_bits_of_a_softmax_alone() -> None:
    assert bits((X, LABELS), "softmax") == bits((X, LABELS), "softmax", on_non_finite="skip")


def test_bits_without_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where NumPy has a BLAS without the function, NumPy adds."""
    found = bits((X, LABELS), hidden=(150,))
    monkeypatch.setattr(several, "adds_as_numpy", lambda *shape: False)
    assert found == bits((X, LABELS), hidden=(150,))


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize(
    ("data", "model"), [((X, LABELS), "mlp"), ((IMAGES, LABELS), "conv 20 3x3, pool 2, relu, dense 9, relu, dense")]
)
def test_bits_on_ranks(ranks: int, data: Any, model: str) -> None:
    options = {"hidden": (50,)} if model == "mlp" else {}

    def train(communicator: Communicator) -> Any:
        return bits(data, model, **options, microbatches=8, communicator=communicator)

    assert run_on_threads(ranks, train) == [bits(data, model, **options, microbatches=8)] * ranks


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize(
    ("data", "model"),
    [
        ((X, LABELS), "dropout 0.2, dense 30, relu, dropout 0.5, dense 20, dropout 0, dense"),
        (
            (IMAGES, LABELS),
            "channel-dropout 0.1, conv 9 3x3, pool 2, relu, dropout 0.4, dense 9, relu, dropout 0.5, dense",
        ),
    ],
    ids=["vectors", "images"],
)
def test_dropout_is_each_microbatchs_own(ranks: int, data: Any, model: str, stacks: list[int]) -> None:
    """Its random numbers depend on the microbatch, whatever is computed with it."""

    def train(communicator: Communicator) -> Any:
        return bits(data, model, microbatches=8, communicator=communicator)

    found = run_on_threads(ranks, train)
    assert stacks
    assert all(stacks)
    assert found == [bits(data, model, microbatches=8, on_non_finite="skip")] * ranks


def test_other_layers_are_computed_one_after_the_other(stacks: list[int]) -> None:
    class Own(nn.Activation):
        pass

    def images(layer: nn.Layer) -> nn.Sequential:
        return nn.Sequential([nn.Convolution(2, 3, 3), layer, nn.Flatten(), nn.Dense(297, 7)])

    for layer in (nn.BatchNormalization(3), nn.Residual(nn.Activation("relu"))):
        fit(images(layer), (IMAGES, LABELS), **QUICK, quiet=True)
    for model in (
        nn.Sequential([nn.Dense(40, 20), nn.BatchNormalization(20), nn.Dense(20, 7)]),
        nn.Sequential([nn.Dense(40, 20), Own("relu"), nn.Dense(20, 7)]),
    ):
        fit(model, (X, LABELS), **QUICK, quiet=True)
    assert not stacks


def test_a_loss_that_is_not_finite_is_named_by_its_microbatch() -> None:
    with pytest.raises(distsgd.NonFiniteError, match="microbatch"):
        fit("mlp", (X, LABELS), **QUICK, hidden=(20,), learning_rate=1e30, quiet=True)


@pytest.mark.parametrize("kind", ["f4", "f8"])
@pytest.mark.parametrize("x_in_order", [False, True])
@pytest.mark.parametrize(("m", "k", "n"), [(50, 784, 25), (10, 50, 25), (7, 3, 2), (130, 200, 64), (5, 784, 50)])
def test_products(m: int, k: int, n: int, x_in_order: bool, kind: str) -> None:
    """Of both kinds, near those of float64, and with the bits of each microbatch's own."""
    parts, eps = 4, float(np.finfo(kind).eps)
    w, x = RNG.random((m, k)).astype(kind), np.array(RNG.random((k, parts * n)), kind, order="C" if x_in_order else "F")
    product = product_of_each(w, x, parts)(w, x)
    np.testing.assert_allclose(product, w.astype("f8") @ x.astype("f8"), rtol=k * eps)
    alone = product_of_each(w, x[:, :n], 1)(w, np.array(x[:, :n], order="C" if x_in_order else "F"))
    assert (product[:, :n] == alone).all()

    dy = RNG.random((m, parts * n)).astype(kind)
    buffers = np.full((5, m, k), np.nan, kind)
    first, second = Addition(buffers[0], None, ()), Addition(buffers[0], buffers[2], ())
    after = ((buffers[1], buffers[3]), (buffers[0], buffers[1]))
    third, fourth = Addition(buffers[1], None, ()), Addition(buffers[3], None, after)
    weight_gradients([first, second, third, fourth], n, x_in_order)(dy, x)
    np.testing.assert_allclose(buffers[0], dy.astype("f8") @ x.T.astype("f8"), rtol=4 * n * eps)


@given(
    hidden=st.lists(st.integers(2, 70), min_size=1, max_size=2),
    dropout=st.sampled_from([0.0, 0.4]),
    microbatches=st.integers(2, 9),
    batch_size=st.integers(12, 120),
    features=st.integers(2, 40),
    kind=st.sampled_from(["float32", "float64"]),
)
@settings(max_examples=15, deadline=None)
def test_bits_of_any_network(
    hidden: list[int], dropout: float, microbatches: int, batch_size: int, features: int, kind: str
) -> None:
    options = {"hidden": tuple(hidden), "microbatches": microbatches, "batch_size": batch_size, "epochs": 1}
    options["dropout"] = dropout
    data = (X[:, :features] - 0.5, LABELS)
    assert bits(data, **options, dtype=kind) == bits(data, **options, dtype=kind, on_non_finite="skip")


@given(
    layers=st.lists(
        st.sampled_from(
            ["conv 1 3x3", "conv 7 3x3 same", "conv 20 2x2, pool 2", "conv 4 3x3 same stride 2", "conv 5 1x1", "pool 2",
             "average-pool 2", "relu", "softplus", "dropout 0.3", "channel-dropout 0.2"]
        ), min_size=1, max_size=4,
    ),
    microbatches=st.integers(2, 9),
    batch_size=st.integers(18, 120),
    kind=st.sampled_from(["float32", "float64"]),
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_bits_of_any_network_of_images(layers: list[str], microbatches: int, batch_size: int, kind: str) -> None:
    model = ", ".join(["conv 6 2x2", *layers, "dense 12, relu, dense"])
    options = {"microbatches": microbatches, "batch_size": batch_size, "epochs": 1, "dtype": kind}
    data = (np.pad(IMAGES, ((0, 0), (0, 0), (4, 4), (3, 3))), LABELS)
    try:
        stacked = bits(data, model, **options)
    except distsgd.ConfigurationError as error:
        assume("doesn't fit" not in str(error))  # such layers make images smaller, down to nothing
        raise
    assert stacked == bits(data, model, **options, on_non_finite="skip")


def test_ranks_may_differ_in_what_they_compute_at_once() -> None:
    """Microbatches of another length make stacks of their own, on whichever rank they are."""
    for size in (61, 62, 63):
        assert bits((X, LABELS), batch_size=size) == bits((X, LABELS), batch_size=size, on_non_finite="skip")
