"""What the other pictures show, before any is drawn: mistakes, confusion, filters, images, the plane of a boundary."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from distsgd.nn.task import Task
from distsgd.plots import boundary, confusion
from distsgd.plots.canvas import NothingToDraw, style
from distsgd.plots.filters import find_filters
from distsgd.plots.images import as_images, image_shape, mosaic, pictured
from distsgd.plots.misclassified import are_probabilities, draw_mistakes, find_mistakes
from distsgd.training.metrics import ConfusionMatrix

CLASSES, VALUES = Task("classification", 2), Task("regression")


def naive_mistakes(p: np.ndarray, labels: np.ndarray, most: int) -> list[tuple[int, int, float]]:
    wrong = []
    for index, (row, label) in enumerate(zip(p.tolist(), labels.tolist(), strict=True)):
        predicted = row.index(max(row)) if len(row) > 1 else int(row[0] > 0.5)
        if predicted != label:
            wrong.append((index, predicted, row[predicted] if len(row) > 1 else max(row[0], 1 - row[0])))
    return sorted(wrong, key=lambda item: (-item[2], item[0]))[:most]


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("most", [3, 1000])
def test_mistakes(classes: int, most: int) -> None:
    rng = np.random.default_rng(classes)
    p = rng.multinomial(10, rng.dirichlet(np.ones(classes), 300)) / 10  # so coarse that many are equal
    labels = rng.integers(0, classes, 300)
    found = find_mistakes("test", p, labels, CLASSES, most)
    expected = naive_mistakes(p, labels, most)
    assert found.probabilities is not None
    assert list(zip(found.chosen.tolist(), found.predicted.tolist(), found.probabilities.tolist(), strict=True)) == (
        expected
    )
    assert found.true.tolist() == labels[found.chosen].tolist()
    assert (found.wrong, found.total) == (len(naive_mistakes(p, labels, 1000)), 300)


def test_mistakes_of_one_output() -> None:
    p, labels = np.array([[0.9], [0.2], [0.4], [0.05], [0.5]]), np.array([0, 0, 1, 1, 0])
    found = find_mistakes("validation", p, labels, CLASSES, 10)
    assert found.chosen.tolist() == [3, 0, 2]
    np.testing.assert_allclose(found.probabilities, [0.95, 0.9, 0.6])


def test_mistakes_of_outputs_that_are_no_probabilities() -> None:
    z = np.array([[3.0, 1.0], [9.0, 8.5], [0.0, 5.0], [math.nan, 0.0]])
    found = find_mistakes("test", z, np.array([1, 1, 0, 0]), CLASSES, 10)
    assert found.chosen.tolist() == [2, 0, 1], "by how far the wrong class is ahead"
    assert found.probabilities is None
    assert (found.wrong, found.total) == (4, 4), "NaN is wrong, and can't be shown"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [([[0.25, 0.75]], True), ([[0.5, 0.6]], False), ([[-0.5, 1.5]], False), ([[0.3]], True), ([[1.3]], False)],
)
def test_probabilities(rows: list[list[float]], expected: bool) -> None:
    assert are_probabilities(np.array(rows)) is expected


def test_confusion() -> None:
    rng = np.random.default_rng(0)
    outputs, labels = rng.normal(size=(4, 200)), rng.integers(0, 3, 200)
    metric = ConfusionMatrix(4)
    expected = metric.value(metric.sums(outputs, labels))
    found = confusion.from_summary({"test": expected}, "test")
    assert found is not None
    assert found.counts.tolist() == expected
    wrong = labels != outputs.argmax(axis=0)
    assert found.error() == pytest.approx(wrong.mean())
    np.testing.assert_allclose(found.class_errors()[:3], [wrong[labels == label].mean() for label in range(3)])
    assert math.isnan(found.class_errors()[3]), "there is none of class 3"


@pytest.mark.parametrize(
    "matrices", [None, {}, {"test": None}, {"test": [[1, 2]]}, {"test": [[1], [2, 3]]}, {"test": [[0, 0], [0, 0]]},
                 {"test": [[1, -1], [0, 1]]}, {"test": "matrix"}, {"test": [[10**30]]}],
)  # fmt: skip
def test_unsound_matrices_are_none(matrices: Any) -> None:
    assert confusion.from_summary(matrices, "test") is None


def test_filters_of_a_dense_layer() -> None:
    rng = np.random.default_rng(0)
    params = {f"dense{n}.weight": rng.normal(size=(12, 12)) for n in (10, 2)}
    params["dense2.bias"] = rng.normal(size=12)
    found = find_filters(params, (3, 4), 10, 64)
    assert (found.name, found.total, found.is_chosen, found.classes) == ("dense2.weight", 12, False, False)
    assert (found.images == params["dense2.weight"].reshape(12, 3, 4)).all()


def test_the_strongest_filters() -> None:
    weight = np.random.default_rng(0).normal(size=(12, 16))
    found = find_filters({"dense1.weight": weight}, (4, 4), 12, 5)
    norms = np.linalg.norm(weight, axis=1)
    assert found.units == tuple(sorted(range(12), key=lambda unit: -norms[unit])[:5])
    assert (found.images == weight[list(found.units)].reshape(5, 4, 4)).all()
    assert found.is_chosen
    assert found.classes, "softmax regression: a unit is a class"


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(("shape", "channels"), [((28, 28), 1), ((1, 28, 28), 1), ((3, 32, 32), 3), ((32, 32, 3), 3)])
def test_filters_of_a_convolution(shape: tuple[int, ...], channels: int, flat: bool) -> None:
    weight = np.random.default_rng(0).normal(size=(6, channels, 5, 5))
    later = np.ones((8, 6, 5, 5))
    params = {"conv1.weight": weight, "conv2.weight": later, "dense1.weight": np.ones((10, 200))}
    if flat:
        params = {name: array.reshape(len(array), -1) for name, array in params.items()}
    found = find_filters(params, shape, 10, 64)
    expected = weight[:, 0] if channels == 1 else np.moveaxis(weight, 1, -1)
    assert found.name == "conv1.weight"
    assert (found.images == expected).all()


@pytest.mark.parametrize("shape", [(64,), (5, 8, 8), (2, 2)])
def test_no_images_no_filters(shape: tuple[int, ...]) -> None:
    with pytest.raises(NothingToDraw, match="no images"):
        find_filters({"dense1.weight": np.ones((4, math.prod(shape)))}, shape, 10, 64)


def test_no_first_layer_that_looks_at_images() -> None:
    with pytest.raises(NothingToDraw, match="no parameter has the shape"):
        find_filters({"w": np.ones((64, 4)), "b": np.ones(64)}, (8, 8), 10, 64)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((8, 8), (8, 8)), ((1, 28, 28), (28, 28)), ((3, 32, 32), (32, 32, 3)), ((32, 32, 3), (32, 32, 3)), ((64,), None),
     ((2, 8, 8), None), ((3, 2000), None), ((2, 3), None), ((3, 3, 3, 3), None), ((), None)],
)  # fmt: skip
def test_shapes_of_images(shape: tuple[int, ...], expected: tuple[int, ...] | None) -> None:
    assert image_shape(shape) == expected


def test_images_keep_their_pixels() -> None:
    rows = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    images = as_images(rows.reshape(2, -1), (3, 4, 5))
    assert images.shape == (2, 4, 5, 3)
    assert images[1, 2, 3, 0] == rows[1, 0, 2, 3]
    assert (as_images(rows[:, 0], (1, 4, 5)) == rows[:, 0]).all()


def test_images_are_ink_on_paper() -> None:
    digit = np.zeros((1, 4, 4), np.uint8)
    digit[0, 1, 2] = 16
    shown = pictured(digit)
    assert shown.shape == (1, 4, 4, 3)
    assert shown[0, 0, 0].tolist() == [255] * 3
    assert shown[0, 1, 2].tolist() == [0] * 3
    assert (pictured(16 - digit) == shown).all(), "what is light already stays so"
    assert pictured(np.full((1, 3, 3), 7.0)).shape == (1, 3, 3, 3)
    colours = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype(np.uint8)
    colours[0, 0, 0] = 0, 255, 128
    assert (pictured(colours) == colours).all()


def test_mosaic() -> None:
    tiles = np.random.default_rng(0).integers(0, 255, (5, 40, 80, 3)).astype(np.uint8)
    whole = mosaic(tiles, 2, (0.5, 0.25))
    assert whole.pixels.shape == (3 * 60, 180, 3)
    assert whole.corners == [(0, 0), (100, 0), (0, 60), (100, 60), (0, 120)]
    for tile, (left, top) in zip(tiles, whole.corners, strict=True):
        assert (whole.pixels[int(top) : int(top) + 40, int(left) : int(left) + 80] == tile).all()
    assert (whole.pixels[120:, 80:] == 255).all()
    small = mosaic(tiles[:, :8, :8], 5, (0, 0))
    assert (small.width, small.height) == (72, 72), "whole factors, so that pixels stay squares"
    assert (small.pixels[::9, ::9] == np.concatenate(list(tiles[:, :8, :8]), axis=1)).all()


def test_boundary_of_inputs_of_which_one_is_constant() -> None:
    x = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]], np.float32)
    y = np.array([[0.0], [1.0], [1.0], [0.0]])

    def model(rows: np.ndarray) -> np.ndarray:
        assert (rows[:, 2] == 1).all()
        return (rows[:, :1] + 2 * rows[:, 1:2]) / 3

    assert boundary.find_boundary(x, y, VALUES, model).classes is None, "0.0 and 1.0 are values, as predictions are"
    two = Task("classification", 2, ("no", "yes"), answer="probability")
    found = boundary.find_boundary(x, y, two, model)
    assert (found.inputs, found.classes, found.total, found.probable) == ((0, 1), 2, 4, True)
    expected = (found.across + 2 * found.up[:, None]) / 3
    np.testing.assert_allclose(found.answers[..., 0], expected, atol=1e-6)
    assert found.across[0] < 0
    assert found.up[-1] > 1
    assert found.wrong.tolist() == [False, False, True, True]
    one_hot = boundary.find_boundary(x, np.eye(2)[y[:, 0].astype(int)], two, model)
    assert np.array_equal(one_hot.targets, found.targets)
    with pytest.raises(NothingToDraw, match="2 values each"):
        boundary.find_boundary(x, np.zeros((4, 2)), VALUES, model)


def test_pictures_name_the_classes() -> None:
    """In the legend, beside the matrix, and in captions."""
    x, names = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]]), ("cat", "dog")
    task = Task("classification", 2, names)
    found = boundary.find_boundary(x, np.array([0, 1, 1, 0]), task, lambda rows: rows[:, :1])
    with style():
        (legend,) = boundary.draw_boundary(found).legends
        assert [text.get_text() for text in legend.get_texts()][:2] == ["cat", "dog"]
        counts = confusion.from_summary({"test": [[3, 1], [0, 2]]}, "test", names)
        assert counts is not None
        matrix = confusion.draw_confusion(counts).axes[0]
        assert [text.get_text() for text in (*matrix.get_xticklabels(), *matrix.get_yticklabels())] == [*names, *names]
        mistakes = find_mistakes("test", np.array([[0.9, 0.1]]), np.array([1]), task, 5)
        captions = [text.get_text() for text in draw_mistakes(mistakes, np.ones((1, 4, 4)), (4, 4)).axes[0].texts]
    assert "dog → cat" in captions


def test_boundary_of_values_and_of_many_points() -> None:
    x = np.random.default_rng(0).normal(size=(2500, 2))
    found = boundary.find_boundary(x, x[:, 0], VALUES, lambda rows: rows[:, :1])
    assert (found.classes, len(found.points), found.total) == (None, 2000, 2500)
    assert not found.wrong.any()


@pytest.mark.parametrize("x", [np.eye(3), np.ones((4, 2)), np.arange(4.0)[:, None] * [1, 0]])
def test_no_boundary_unless_two_inputs_vary(x: np.ndarray) -> None:
    with pytest.raises(NothingToDraw, match="two make a picture"):
        boundary.find_boundary(x, np.zeros(len(x)), CLASSES, lambda rows: rows)


@pytest.mark.parametrize(
    ("shape", "expected"), [((2,), True), ((3,), True), ((4,), False), ((1,), False), ((2, 2), False)]
)
def test_which_examples_may_be_flat(shape: tuple[int, ...], expected: bool) -> None:
    assert boundary.may_be_flat(shape) == expected
