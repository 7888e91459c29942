"""The decision boundary of a model of two inputs, over the points that it was trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from distsgd.core.device import Array, Shape
from distsgd.nn.task import Task, predicted_classes, true_classes
from distsgd.plots.canvas import BLUE, COLOURS, VERMILLION, NothingToDraw, heading, new_figure
from distsgd.plots.misclassified import are_probabilities

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FEATURES = 3
_GRID = 240
"""Points along each axis at which the model is asked."""
_POINTS = 2000
_MARKERS = ("o", "^", "s", "D", "v", "P", "X")


@dataclass(frozen=True)
class Boundary:
    """A plane of inputs with the model's predictions, and the training points in it.

    Parameters
    ----------
    inputs
        Which two inputs vary.
    points, targets
        (n, 2), and (n,) classes, or values where `classes` is None.
    across, up
        The plane's coordinates (w,) and (h,).
    answers
        The model's predictions over the plane, (h, w, outputs).
    wrong
        Which of the points are taken for another class, (n,).
    total
        The number of training points, of which `points` are the first.
    probable
        Whether predictions are probabilities of classes.
    threshold
        Where class 1 begins in a single prediction.
    names
        The classes' names, where they are known.
    """

    inputs: tuple[int, int]
    points: Array
    targets: Array
    classes: int | None
    across: Array
    up: Array
    answers: Array
    wrong: Array
    total: int
    probable: bool = False
    threshold: float = 0.5
    names: tuple[str, ...] = ()


def may_be_flat(example_shape: Shape) -> bool:
    """Whether examples of this shape can have exactly two inputs that vary."""
    return len(example_shape) == 1 and 2 <= example_shape[0] <= _FEATURES


def find_boundary(x: Array, y: Array, task: Task, predict: Callable[[Array], Array]) -> Boundary:
    """The plane around training inputs x (n, 2), or more of which all but two are constant.

    y is (n,) or (n, k): the task says whether they are classes. Raises NothingToDraw where other than two inputs vary,
    or where targets have several values.
    """
    labelled, varying = task.kind == "classification", np.flatnonzero(x.min(axis=0) < x.max(axis=0))
    if len(varying) != 2:
        raise NothingToDraw(f"boundary: {len(varying)} inputs of the training examples vary; two make a picture")
    if y.size != len(y) and not labelled:
        raise NothingToDraw(f"boundary: the targets have {y.size // len(y)} values each; a single one makes a picture")
    total, x, y = len(x), x[:_POINTS], y[:_POINTS]
    num_classes = max(task.num_classes, 2) if labelled else None
    if labelled:
        targets = true_classes(y if y.ndim == 1 and y.dtype.kind != "f" else y.reshape(len(y), -1).T)
    else:
        targets = y.reshape(len(y))
    first, second = int(varying[0]), int(varying[1])
    across, up = (_around(x[:, column]) for column in (first, second))
    plane = np.empty((_GRID, _GRID, x.shape[1]), x.dtype if x.dtype.kind == "f" else np.float64)
    plane[...] = x[0]
    plane[..., first], plane[..., second] = across, up[:, None]
    answers, predictions = predict(plane.reshape(-1, x.shape[1])), predict(x)
    wrong = labelled & (predicted_classes(predictions.T, task.prediction_threshold) != targets)
    return Boundary(
        (first, second), x[:, [first, second]], targets, num_classes, across, up,
        answers.reshape(_GRID, _GRID, -1), wrong, total,
        labelled and are_probabilities(predictions),
        task.prediction_threshold, task.names,
    )  # fmt: skip


def _around(values: Array) -> Array:
    low, high = float(values.min()), float(values.max())
    return np.linspace(low - 0.15 * (high - low), high + 0.15 * (high - low), _GRID)


def draw_boundary(boundary: Boundary) -> Figure:
    """The figure: the plane shaded by the model's predictions, the boundary, and the points; wrong ones have a ring."""
    figure = new_figure(4.6, 6.2)
    panel = figure.subplots()
    if boundary.classes is None:
        _draw_values(figure, panel, boundary)
    else:
        _draw_classes(figure, panel, boundary)
    panel.set_xlabel(f"input {boundary.inputs[0] + 1}")
    panel.set_ylabel(f"input {boundary.inputs[1] + 1}")
    panel.set_xlim(boundary.across[0], boundary.across[-1])
    panel.set_ylim(boundary.up[0], boundary.up[-1])
    heading(figure, _title(boundary))
    return figure


def _draw_classes(figure: Figure, panel: Axes, boundary: Boundary) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    answers, classes = boundary.answers, boundary.classes or 0
    if (answers.shape[-1] == 1 and boundary.threshold == 0.5) or (answers.shape[-1] == 2 and boundary.probable):
        value = answers[..., -1]
        shades = LinearSegmentedColormap.from_list("two", ["#73AFD4", "#FFFFFF", "#E8A470"])
        shaded = panel.contourf(boundary.across, boundary.up, np.clip(value, 0, 1), np.linspace(0, 1, 21), cmap=shades)
        shaded.set_rasterized(True)  # as paths it would be most of the file
        panel.contour(boundary.across, boundary.up, value, [0.5], colors="black", linewidths=1.2)
        meaning = f"probability of {_name(boundary, 1)}" if boundary.probable else "model's output"
        figure.colorbar(shaded, ax=panel, label=meaning, ticks=[0, 0.25, 0.5, 0.75, 1], aspect=30)
    else:
        regions = predicted_classes(answers.reshape(-1, answers.shape[-1]).T, boundary.threshold)
        regions = regions.reshape(answers.shape[:2])
        levels = np.arange(-0.5, classes)
        panel.contourf(boundary.across, boundary.up, regions, levels, colors=_colours(classes), alpha=0.3)
        for label in range(1, classes):
            panel.contour(boundary.across, boundary.up, regions, [label - 0.5], colors="black", linewidths=0.8)
    for label, colour in enumerate(_colours(classes)):
        mine = boundary.targets == label
        panel.plot(
            *boundary.points[mine].T, _MARKERS[label % len(_MARKERS)], label=_name(boundary, label), color=colour,
            markersize=5.0, markeredgecolor="white", markeredgewidth=0.6,
        )  # fmt: skip
    if boundary.wrong.any():
        panel.plot(*boundary.points[boundary.wrong].T, "o", markersize=10, fillstyle="none", color="black",
                   markeredgewidth=0.9, label="misclassified")  # fmt: skip
    if classes <= 10:
        figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=6)


def _draw_values(figure: Figure, panel: Axes, boundary: Boundary) -> None:
    from matplotlib.ticker import MaxNLocator

    value = boundary.answers[..., 0]
    both = np.concatenate([value.ravel(), boundary.targets])
    low, high = float(both.min()), float(both.max())
    look: dict[str, Any] = {"cmap": "cividis", "vmin": low, "vmax": high}
    levels = np.linspace(low, high or 1.0, 25) if low < high else 2
    shaded = panel.contourf(boundary.across, boundary.up, value, levels, **look)
    shaded.set_rasterized(True)
    panel.scatter(*boundary.points.T, c=boundary.targets, s=22, edgecolors="white", linewidths=0.7, **look)
    ticks = MaxNLocator(7)
    figure.colorbar(shaded, ax=panel, label="predicted value; inside points: target", aspect=30, ticks=ticks)


def _name(boundary: Boundary, label: int) -> str:
    return boundary.names[label] if boundary.names else f"class {label}"


def _colours(classes: int) -> list[str]:
    order = (BLUE, VERMILLION, *(colour for colour in COLOURS if colour not in (BLUE, VERMILLION)))
    return [order[label % len(order)] for label in range(classes)]


def _title(boundary: Boundary) -> str:
    shown = len(boundary.points)
    first = f"the first {shown:,} of {boundary.total:,} points"
    of = f"{shown:,} training points" if shown == boundary.total else first
    if boundary.classes is None:
        return f"What the model predicts, and {of}"
    return f"Decision boundary: {int(boundary.wrong.sum()):,} of {of} misclassified"
