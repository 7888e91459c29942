from __future__ import annotations

import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from distsgd.core.errors import ConfigurationError
from distsgd.nn.losses import (
    LOSSES,
    AbsoluteError,
    BinaryCrossEntropy,
    BinaryFocal,
    Focal,
    Gaussian,
    Huber,
    Poisson,
    Quantile,
    SoftmaxCrossEntropy,
    SquaredError,
    loss_from,
)
from distsgd.testing import check_loss_gradient

REFERENCE = np.load(Path(__file__).parents[2] / "reference" / "layers.npz")
RANDOM = np.random.default_rng(0)
LABELS, VALUES = RANDOM.integers(0, 4, 9), RANDOM.random((9, 4))

# name: (loss, stored targets, outputs k)
UNDER_TEST = {
    "softmax": (SoftmaxCrossEntropy(), LABELS, 4),
    "softmax, uint8 labels": (SoftmaxCrossEntropy(), LABELS.astype(np.uint8), 4),
    "softmax, smoothed": (SoftmaxCrossEntropy(label_smoothing=0.2), LABELS, 4),
    "softmax, weighted": (SoftmaxCrossEntropy(class_weights=(1.0, 2.0, 0.0, 0.5)), LABELS, 4),
    "softmax, probabilities": (SoftmaxCrossEntropy(0.1, (1.0, 2.0, 3.0, 0.5)), VALUES, 4),
    "binary": (BinaryCrossEntropy(), VALUES, 4),
    "binary, labels": (BinaryCrossEntropy(), LABELS % 2, 1),
    "squared": (SquaredError(), VALUES, 4),
    "squared, labels": (SquaredError(), LABELS, 1),
    "squared, single values": (SquaredError(), VALUES[:, 0], 1),
    "squared, images": (SquaredError(), VALUES.reshape(9, 2, 2), 4),
    "binary, weighted": (BinaryCrossEntropy((3.0, 0.5, 1.0, 2.0), 0.1), VALUES, 4),
    "binary, smoothed": (BinaryCrossEntropy(label_smoothing=0.2), LABELS % 2, 1),
    "l1": (AbsoluteError(), VALUES, 4),
    "huber": (Huber(0.7), VALUES, 4),
    "poisson": (Poisson(), LABELS, 1),
    "gaussian": (Gaussian(), VALUES[:, :2], 4),
    "quantile": (Quantile((0.1, 0.5, 0.8)), VALUES[:, :2], 6),
    "focal": (Focal(), LABELS, 4),
    "focal, weighted": (Focal(0.5, (1.0, 2.0, 0.0, 0.5)), LABELS, 4),
    "focal without gamma": (Focal(0.0), LABELS, 4),
    "binary focal": (BinaryFocal(1.5, 0.25), VALUES, 4),
    "binary focal, labels": (BinaryFocal(), LABELS % 2, 1),
}


@pytest.fixture(params=UNDER_TEST)
def case(request):
    loss, stored, k = UNDER_TEST[request.param]
    return loss, stored, np.random.default_rng(1).standard_normal((k, 9)) * 3


def test_every_loss_is_under_test():
    assert {type(loss) for loss, _, _ in UNDER_TEST.values()} == set(LOSSES.values())


def test_the_gradient_is_the_derivative(case):
    loss, stored, outputs = case
    check_loss_gradient(loss, stored, outputs=outputs).raise_if_wrong()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_is_the_outputs_and_nothing_given_is_changed(case, dtype):
    loss, stored, outputs = case
    outputs = outputs.astype(dtype)
    y, weights = loss.targets(stored, outputs.dtype), np.full(9, 0.5)
    before = outputs.copy(), y.copy(), weights.copy()
    loss_sum, grad = loss.loss_and_grad(outputs, y, weights)
    assert type(loss_sum) is float
    assert grad.dtype == loss.per_example(outputs, y).dtype == loss.predict(outputs).dtype == dtype
    assert grad.shape == outputs.shape
    assert loss.predict(outputs).shape == (len(loss.point(outputs)), 9)
    assert all(np.array_equal(old, new) for old, new in zip(before, (outputs, y, weights), strict=True))
    assert not np.shares_memory(grad, outputs)


def test_the_sum_is_the_sum_of_the_examples_and_weights_multiply_them(case):
    loss, stored, outputs = case
    y, weights = loss.targets(stored, outputs.dtype), np.arange(9.0)
    each = loss.per_example(outputs, y)
    assert each.shape == (9,)
    assert loss.loss_and_grad(outputs, y)[0] == pytest.approx(each.sum(), rel=1e-14)
    weighted_sum, weighted_grad = loss.loss_and_grad(outputs, y, weights)
    assert weighted_sum == pytest.approx(each @ weights, rel=1e-14)
    np.testing.assert_allclose(weighted_grad, loss.loss_and_grad(outputs, y)[1] * weights, rtol=1e-14)


def test_an_example_does_not_depend_on_its_neighbours(case):
    loss, stored, outputs = case
    whole = loss.per_example(outputs, loss.targets(stored, outputs.dtype))
    part = loss.per_example(outputs[:, 4:5], loss.targets(stored[4:5], outputs.dtype))
    assert whole[4] == pytest.approx(part[0], rel=1e-14)


def test_huge_outputs_stay_finite(case):
    loss, stored, outputs = case
    if isinstance(loss, Poisson | Gaussian):
        pytest.skip("their losses are exponentials of outputs, and as large")
    huge = (outputs * 1e4).astype(np.float32)
    loss_sum, grad = loss.loss_and_grad(huge, loss.targets(stored, huge.dtype))
    assert np.isfinite(loss_sum)
    assert np.isfinite(grad).all()
    assert np.isfinite(loss.predict(huge)).all()


def test_no_examples_cost_nothing(case):
    loss, stored, outputs = case
    loss_sum, grad = loss.loss_and_grad(outputs[:, :0], loss.targets(stored[:0], outputs.dtype))
    assert loss_sum == 0.0
    assert grad.shape == (outputs.shape[0], 0)


def test_the_output_size_fits_the_targets(case):
    loss, stored, outputs = case
    classes = 4 if stored.dtype.kind in "iu" and outputs.shape[0] == 4 else None
    assert loss.output_size(stored.shape[1:], classes) == outputs.shape[0]


def test_wrong_weights_are_refused(case):
    loss, stored, outputs = case
    with pytest.raises(ConfigurationError, match="sample weights"):
        loss.loss_and_grad(outputs, loss.targets(stored, outputs.dtype), np.ones(8))


def test_wrong_shapes_are_refused(case):
    loss, stored, outputs = case
    with pytest.raises(ConfigurationError, match="expected"):
        loss.loss_and_grad(outputs, loss.targets(stored[:-1], outputs.dtype))


def reference(case, dtype):
    prefix = case + "/"
    found = {name.removeprefix(prefix): REFERENCE[name] for name in REFERENCE.files if name.startswith(prefix)}
    return {name: array.astype(dtype) if array.dtype.kind == "f" else array for name, array in found.items()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 1e-5)])
@pytest.mark.parametrize("case", sorted({n.split("/")[0] for n in REFERENCE.files if "losses" in n}))
def test_values_are_pytorchs(case, dtype, tolerance):
    r = reference(case, dtype)
    kind, *options = case.split()
    if kind == "softmax":
        weights = tuple(map(float, r["class_weights"])) if options[2] == "weighted" else None
        loss, y = SoftmaxCrossEntropy(float(options[1]), weights), r[options[0]]
    else:
        loss, y = {"binary": BinaryCrossEntropy(), "squared": SquaredError()}[kind], r["values"]
    loss_sum, grad = loss.loss_and_grad(r["outputs"], y)
    close = {"rtol": tolerance, "atol": tolerance}
    np.testing.assert_allclose(loss.per_example(r["outputs"], y), r["losses"], **close)
    np.testing.assert_allclose(loss_sum, r["losses"].sum(dtype=np.float64), **close)
    np.testing.assert_allclose(grad, r["grad"], **close)
    np.testing.assert_allclose(loss.predict(r["outputs"]), r["predicted"], **close)


def test_targets_become_batch_last_rows_that_are_contiguous():
    y = SquaredError().targets(VALUES, np.dtype(np.float32))
    assert y.shape == (4, 9)
    assert y.dtype == np.float32
    assert y.flags.c_contiguous
    assert SoftmaxCrossEntropy().targets(LABELS, np.dtype(np.float32)) is LABELS


@pytest.mark.parametrize(
    ("loss", "shape", "classes"),
    [
        (SoftmaxCrossEntropy(), (), None),
        (SoftmaxCrossEntropy(), (2, 2), None),
        (SoftmaxCrossEntropy(class_weights=(1.0, 2.0)), (), 3),
        (BinaryCrossEntropy(), (), 3),
    ],
)
def test_a_loss_that_does_not_fit_the_targets_is_refused(loss, shape, classes):
    with pytest.raises(ConfigurationError):
        loss.output_size(shape, classes)


def test_float_labels_and_class_weights_of_another_length_are_refused():
    outputs = np.zeros((4, 9))
    with pytest.raises(ConfigurationError, match="integer labels"):
        SoftmaxCrossEntropy().loss_and_grad(outputs, LABELS.astype(float))
    with pytest.raises(ConfigurationError, match="expected 4 numbers, got 2"):
        SoftmaxCrossEntropy(class_weights=(1.0, 2.0)).loss_and_grad(outputs, LABELS)
    with pytest.raises(ConfigurationError, match="float32"):
        SquaredError().loss_and_grad(outputs, np.zeros((4, 9), np.float32))


@pytest.mark.parametrize("options", [{"label_smoothing": 1.0}, {"label_smoothing": -0.1}, {"label_smoothing": np.nan},
                                     {"class_weights": (1.0, -1.0)}, {"class_weights": (0.0, 0.0)},
                                     {"class_weights": (1.0, np.inf)}])  # fmt: skip
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ConfigurationError):
        SoftmaxCrossEntropy(**options)


Z = np.array([[-2.0, 0.0, 0.3, 5.0], [1.0, -1.0, 4.0, 0.5]])
T = np.array([[0.0, 1.0, 1.0, 3.0], [2.0, 0.0, 1.0, 0.5]])


def by_loops(one):
    """The losses of the four examples, from a formula for one output z and one target t."""
    return [math.fsum(one(z, t) for z, t in zip(Z[:, n], T[:, n], strict=True)) for n in range(4)]


def sigma(z):
    return 1 / (1 + math.exp(-z))


FORMULAS = {
    "l1": (AbsoluteError(), lambda z, t: abs(z - t)),
    "huber": (Huber(0.8), lambda z, t: (z - t) ** 2 / 2 if abs(z - t) < 0.8 else 0.8 * (abs(z - t) - 0.4)),
    "poisson": (Poisson(), lambda z, t: math.exp(z) - t * z),
    "binary": (
        BinaryCrossEntropy((3.0,), 0.1),
        lambda z, t: -3 * (0.9 * t + 0.05) * math.log(sigma(z)) - (0.95 - 0.9 * t) * math.log(sigma(-z)),
    ),
    "binary focal": (
        BinaryFocal(1.5, 0.25),
        lambda z, t: (
            -0.25 * t * sigma(-z) ** 1.5 * math.log(sigma(z)) - 0.75 * (1 - t) * sigma(z) ** 1.5 * math.log(sigma(-z))
        ),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_values_are_those_of_the_formula(name):
    loss, formula = FORMULAS[name]
    np.testing.assert_allclose(loss.per_example(Z, T), by_loops(formula), rtol=1e-13)


def test_gaussian_by_hand():
    loss, outputs, t = Gaussian(), np.array([[1.0, 0.0], [math.log(4.0), 0.0]]), np.array([[3.0, 0.5]])
    normal = [NormalDist(1.0, 2.0), NormalDist(0.0, 1.0)]
    expected = [-math.log(one.pdf(value)) - math.log(2 * math.pi) / 2 for one, value in zip(normal, t[0], strict=True)]
    np.testing.assert_allclose(loss.per_example(outputs, t), expected, rtol=1e-13)
    assert loss.point(outputs).tolist() == loss.predict(outputs).tolist() == [[1.0, 0.0]]
    lower, upper = loss.interval(outputs, 0.8)
    np.testing.assert_allclose(lower, [[one.inv_cdf(0.1) for one in normal]])
    np.testing.assert_allclose(upper, [[one.inv_cdf(0.9) for one in normal]])


def test_quantile_by_hand():
    loss = Quantile((0.1, 0.5, 0.9))
    outputs = np.array([[0.0, 4.0], [3.0, 2.0], [2.0, 9.0]])
    pinball = [0.1 * 1 + 0.5 * 2 + 0.1 * 1, 0.9 * 3 + 0.5 * 1 + 0.1 * 8]
    np.testing.assert_allclose(loss.per_example(outputs, np.array([[1.0, 1.0]])), pinball)
    assert loss.point(outputs).tolist() == [[2.0, 4.0]]  # quantiles that cross are sorted
    lower, upper = loss.interval(outputs, 0.8)
    assert (lower.tolist(), upper.tolist()) == ([[0.0, 2.0]], [[3.0, 9.0]])
    assert loss.usual_coverage == pytest.approx(0.8)
    with pytest.raises(ConfigurationError, match=r"the quantiles 0.05 and 0.95, the model has 0.1, 0.5, 0.9"):
        loss.interval(outputs, 0.9)


def test_the_constant_with_the_least_quantile_loss_is_the_quantile():
    values = np.random.default_rng(3).standard_normal(1001)[:, None]
    grid = np.linspace(-3, 3, 601)
    for tau in (0.1, 0.75):
        loss = Quantile((tau,))
        sums = [loss.loss_and_grad(np.full((1, 1001), one), values.T)[0] for one in grid]
        assert grid[int(np.argmin(sums))] == pytest.approx(np.quantile(values, tau), abs=0.02)


def test_focal_by_hand():
    z = np.array([[0.0, 3.0, 60.0], [1.0, -1.0, 0.0], [0.5, 0.0, 0.0]])
    p = np.exp(z[:, :2]) / np.exp(z[:, :2]).sum(axis=0)
    losses = Focal(2.0, (1.0, 2.0, 4.0)).per_example(z, np.array([2, 1, 0]))
    expected = [-4 * (1 - p[2, 0]) ** 2 * np.log(p[2, 0]), -2 * (1 - p[1, 1]) ** 2 * np.log(p[1, 1])]
    np.testing.assert_allclose(losses[:2], expected, rtol=1e-13)
    assert 0 <= losses[2] < 1e-60  # 1 - p isn't rounded to 0 where p is near 1
    np.testing.assert_allclose(
        Focal(0.0).per_example(z, LABELS[:3] % 3), SoftmaxCrossEntropy().per_example(z, LABELS[:3] % 3), rtol=1e-13
    )


def test_the_prediction_of_poisson_is_the_rate():
    assert Poisson().predict(np.array([[0.0, math.log(3.0)]])).tolist() == [[1.0, pytest.approx(3.0)]]


def test_loss_from_a_function():
    def cubic(outputs, y):
        return (np.abs(outputs - y) ** 3).sum(axis=0), 3 * (outputs - y) * np.abs(outputs - y)

    check_loss_gradient(loss_from(cubic), VALUES, outputs=4).raise_if_wrong()
    wrong = check_loss_gradient(loss_from(lambda outputs, y: (cubic(outputs, y)[0], outputs * 0)), VALUES, outputs=4)
    assert not wrong.ok
    with pytest.raises(ConfigurationError, match="one an example"):
        loss_from(lambda outputs, y: (np.float64(1.0), outputs)).loss_and_grad(Z, T)
    with pytest.raises(ConfigurationError, match="a tuple"):
        loss_from(lambda outputs, y: outputs).loss_and_grad(Z, T)


@pytest.mark.parametrize(
    ("loss", "rows", "words"),
    [
        (Poisson(), np.array([1, -2]), "counts of at least 0"),
        (BinaryCrossEntropy(), np.array([0.0, 2.0]), "probabilities from 0 to 1"),
        (BinaryFocal(), np.array([0.0, -1.0]), "probabilities from 0 to 1"),
        (SoftmaxCrossEntropy(), np.array([[0.5, 0.6]]), "add up to 1"),
    ],
)
def test_targets_that_a_loss_cannot_take(loss, rows, words):
    assert words in loss.wrong_targets(rows)
    assert loss.wrong_targets(np.abs(rows) / np.abs(rows).sum()) is None


@pytest.mark.parametrize(
    "make",
    [lambda: Huber(0.0), lambda: Quantile((0.5, 0.5)), lambda: Quantile(()), lambda: Quantile((0.0,)),
     lambda: Focal(-1.0), lambda: Focal(1.0, (0.0, 0.0)), lambda: BinaryFocal(2.0, 1.0), lambda: loss_from(3),
     lambda: BinaryCrossEntropy((0.0,)), lambda: BinaryCrossEntropy((1.0, 2.0)).output_size((3,), None),
     lambda: Focal().output_size((), None)],
)  # fmt: skip
def test_losses_that_make_no_sense_are_refused(make):
    with pytest.raises(ConfigurationError):
        make()
