from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distsgd.core.errors import ConfigurationError
from distsgd.nn.batch import Batch
from distsgd.nn.losses import LOSSES, BinaryCrossEntropy, SoftmaxCrossEntropy, SquaredError
from distsgd.testing import check_gradient

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
}


@pytest.fixture(params=UNDER_TEST)
def case(request):
    loss, stored, k = UNDER_TEST[request.param]
    return loss, stored, np.random.default_rng(1).standard_normal((k, 9)) * 3


def test_every_loss_is_under_test():
    assert {type(loss) for loss, _, _ in UNDER_TEST.values()} == set(LOSSES.values())


@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_is_the_derivative(case, weighted):
    loss, stored, outputs = case
    y = loss.targets(stored, outputs.dtype)
    weights = np.random.default_rng(2).random(9) * 2 if weighted else None

    def function(params, grads, batch):
        loss_sum, grad = loss.loss_and_grad(params["outputs"], batch.y, batch.weights)
        grads["outputs"][...] = grad
        return loss_sum, len(batch)

    batch = Batch(x=np.zeros((0, 9)), y=y, indices=np.arange(9), weights=weights)
    check_gradient(function, {"outputs": outputs}, batch, per_parameter=True).raise_if_wrong()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_is_the_outputs_and_nothing_given_is_changed(case, dtype):
    loss, stored, outputs = case
    outputs = outputs.astype(dtype)
    y, weights = loss.targets(stored, outputs.dtype), np.full(9, 0.5)
    before = outputs.copy(), y.copy(), weights.copy()
    loss_sum, grad = loss.loss_and_grad(outputs, y, weights)
    assert type(loss_sum) is float
    assert grad.dtype == loss.per_example(outputs, y).dtype == loss.predict(outputs).dtype == dtype
    assert grad.shape == loss.predict(outputs).shape == outputs.shape
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
