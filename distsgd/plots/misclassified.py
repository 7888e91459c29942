"""The most confident wrong predictions of a model: often the label, the image or the model is at fault."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distsgd.core.device import Array, Shape
from distsgd.nn.task import Task, predicted_classes
from distsgd.plots.canvas import GREY, SPLIT_WORDS, WIDTH, NothingToDraw, heading
from distsgd.plots.images import as_images, mosaic, pictured

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CAPTION = 0.34
"""Height of a caption, in parts of an image's height."""

_LETTERS = 7
"""Of a class's name in a caption."""


@dataclass(frozen=True)
class Mistakes:
    """Wrong predictions of one split, the most confident first.

    Parameters
    ----------
    chosen
        Their positions (n,) in the split.
    true, predicted
        Their labels (n,) and the classes that the model predicts.
    probabilities
        The probability of the predicted class, (n,); None where the model gives no probabilities.
    wrong, total
        How many examples of the split are wrong, and how many there are.
    names
        The classes' names, where they are known.
    """

    split: str
    chosen: Array
    true: Array
    predicted: Array
    probabilities: Array | None
    wrong: int
    total: int
    names: tuple[str, ...] = ()


def find_mistakes(split: str, predictions: Array, labels: Array, task: Task, most: int) -> Mistakes:
    """The up to `most` wrong predictions of highest probability; of equal ones the earlier.

    predictions   (n, classes), or (n, 1): how probable class 1 is
    labels        (n,)
    task          says which class a prediction stands for

    What isn't a probability is ranked by how far the predicted class is above the true one. An example with a NaN
    among its predictions counts as wrong and isn't shown.
    """
    predicted = predicted_classes(predictions.T, task.prediction_threshold)
    wrong = np.flatnonzero(predicted != labels)
    shown = wrong[predicted[wrong] >= 0]
    columns = np.concatenate([1.0 - predictions, predictions], axis=1) if predictions.shape[1] == 1 else predictions
    of_predicted, of_true = columns[shown, predicted[shown]], columns[shown, labels[shown]]
    probable = are_probabilities(predictions)
    order = np.argsort(-(of_predicted if probable else of_predicted - of_true), kind="stable")[:most]
    chosen = shown[order]
    found = of_predicted[order] if probable else None
    return Mistakes(split, chosen, labels[chosen], predicted[chosen], found, len(wrong), len(labels), task.names)


def are_probabilities(predictions: Array) -> bool:
    """Whether all rows of (n, outputs) are probabilities: from 0 to 1, and several of them add up to 1."""
    finite = predictions[np.isfinite(predictions).all(axis=1)]
    within = bool(np.all((finite >= 0) & (finite <= 1)))
    return within and (finite.shape[1] == 1 or np.allclose(finite.sum(axis=1), 1, atol=1e-3))


def draw_mistakes(mistakes: Mistakes, rows: Array, shape: Shape) -> Figure:
    """The figure of their images, whose inputs are `rows` (n, …) of this shape.

    Raises NothingToDraw where nothing is wrong.
    """
    if not len(mistakes.chosen):
        raise NothingToDraw(f"misclassified: none of {mistakes.total:,} {SPLIT_WORDS[mistakes.split]} examples is")
    count = len(mistakes.chosen)
    columns = min(count, 5 if count <= 30 else 8)
    table = mosaic(pictured(as_images(rows, shape)), columns, (_CAPTION, 0.22))
    figure, panel = table.show(min(WIDTH, (1.35 if columns <= 5 else 0.88) * columns))
    size = 9.0 if columns <= 5 else 7.0
    for index, (left, top) in enumerate(table.corners):
        below = top + 1.04 * table.height
        text = f"{_name(mistakes, mistakes.true[index])} → {_name(mistakes, mistakes.predicted[index])}"
        panel.text(left, below, text, va="top", fontsize=size, fontweight="bold")
        if mistakes.probabilities is not None:
            text = _percent(float(mistakes.probabilities[index]))
            panel.text(left + table.width, below, text, va="top", ha="right", fontsize=size - 1, color=GREY)
    addition = "" if mistakes.probabilities is None else ", and the probability that it was given"
    panel.set_title(f"true class → predicted class{addition}", fontweight="normal")
    heading(figure, _title(mistakes))
    return figure


def _name(mistakes: Mistakes, label: int) -> str:
    """Short enough for two of them above an image's width."""
    return mistakes.names[label][:_LETTERS] if mistakes.names else str(label)


def _percent(probability: float) -> str:
    """Never 100 %, which no softmax means."""
    return f"{100 * probability:.1f} %" if probability < 0.9995 else "> 99.9 %"


def _title(mistakes: Mistakes) -> str:
    if mistakes.wrong == 1:
        return f"The only mistake in {mistakes.total:,} {SPLIT_WORDS[mistakes.split]} examples"
    part = "All" if len(mistakes.chosen) == mistakes.wrong else f"The {len(mistakes.chosen)} most confident of all"
    return f"{part} {mistakes.wrong:,} mistakes in {mistakes.total:,} {SPLIT_WORDS[mistakes.split]} examples"
