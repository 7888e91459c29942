"""The confusion matrix: which classes are taken for which, and how often each is missed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from distsgd.core.device import Array
from distsgd.plots.canvas import BLUE, GREY, SPLIT_WORDS, VERMILLION, WIDTH, heading, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WRITTEN = 20
"""Up to this many classes each cell has its count written into it."""

_LONG = 16
"""Letters of a class's name beside the matrix."""


@dataclass(frozen=True)
class Confusion:
    """Counts (classes, classes) of one split's examples: the row is the true class, the column the predicted one.

    `names` are the classes' names, where they are known.
    """

    split: str
    counts: Array
    names: tuple[str, ...] = ()

    @property
    def examples(self) -> int:
        """In all."""
        return int(self.counts.sum())

    def class_errors(self) -> Array:
        """The part of each class that is taken for another, (classes,); NaN for a class without examples."""
        totals = self.counts.sum(axis=1)
        with np.errstate(invalid="ignore"):
            errors: Array = 1.0 - np.diagonal(self.counts) / totals
        return errors

    def error(self) -> float:
        """The part of all examples that is taken for another class than theirs."""
        return 1.0 - float(np.trace(self.counts)) / self.examples


def from_summary(matrices: Any, split: str, names: tuple[str, ...] = ()) -> Confusion | None:
    """The matrix that a summary holds for this split, None where it holds no sound one."""
    try:
        counts = np.array(matrices[split], dtype=np.int64)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    sound = counts.ndim == 2 and counts.shape[0] == counts.shape[1] and np.all(counts >= 0) and counts.sum() > 0
    return Confusion(split, counts, names if len(names) == len(counts) else ()) if sound else None


def draw_confusion(confusion: Confusion) -> Figure:
    """The figure: right answers in blue, wrong ones in orange on a scale of their own, and beside it each class's
    error."""
    from matplotlib.ticker import MaxNLocator

    classes = len(confusion.counts)
    across = min(WIDTH - 2.2, max(0.49 * classes, 2.8))
    figure = new_figure(min(max(0.36 * classes, 1.4), 5.4) + 0.95, across + 2.2)
    matrix, bars = figure.subplots(1, 2, sharey=True, width_ratios=(across, 1.55))
    matrix.imshow(_shades(confusion), aspect="auto", interpolation="none")
    matrix.set_xlabel("predicted class")
    matrix.set_ylabel("true class")
    matrix.spines[:].set_visible(True)
    matrix.spines[:].set_color(GREY)
    matrix.set_title("Number of examples")
    matrix.tick_params(length=0)
    if classes <= _WRITTEN:
        matrix.set_xticks(range(classes))
        matrix.set_yticks(range(classes))
        if confusion.names:
            names = [name if len(name) <= _LONG else f"{name[: _LONG - 1]}…" for name in confusion.names]
            matrix.set_xticklabels(names, rotation=90 if max(map(len, names)) > 2 else 0)
            matrix.set_yticklabels(names)
        _write(matrix, confusion.counts)
    errors = 100.0 * confusion.class_errors()
    bars.barh(range(classes), np.nan_to_num(errors), color=VERMILLION, height=0.62)
    bars.set_title("Error of each class")
    bars.set_xlabel("misclassified (%)")
    bars.tick_params(axis="y", length=0)
    largest = float(np.nanmax(errors))
    right = 1.35 * largest if largest > 0 else 1.0
    bars.set_xticks([tick for tick in MaxNLocator(4).tick_values(0, right) if tick <= min(right, 100.0)])
    bars.set_xlim(0, right)
    if classes <= _WRITTEN:
        for row, value in enumerate(errors):
            text = "no examples" if np.isnan(value) else f"{value:.1f}"
            bars.text(np.nan_to_num(value) + 0.03 * max(largest, 1e-3), row, text, va="center", fontsize=8)
    wrong = confusion.examples - int(np.trace(confusion.counts))
    of = f"{wrong:,} of {confusion.examples:,} {SPLIT_WORDS[confusion.split]} examples"
    heading(figure, f"{of} misclassified ({100 * confusion.error():.2f} %)")
    return figure


def _shades(confusion: Confusion) -> Array:
    """RGB (classes, classes, 3): parts of each true class, blue on the diagonal, beside it orange up to the largest."""
    from matplotlib.colors import to_rgb

    totals = np.maximum(confusion.counts.sum(axis=1, keepdims=True), 1)
    parts = confusion.counts / totals
    wrong = parts - np.diag(np.diagonal(parts))
    strength = np.sqrt(wrong / max(float(wrong.max()), 1e-12))  # so that single mistakes are seen beside many
    shades: Array = 1.0 - strength[..., None] * (1.0 - np.array(to_rgb(VERMILLION))) * 0.85
    right = np.diagonal(parts)[:, None] * 0.55
    diagonal = np.arange(len(parts))
    shades[diagonal, diagonal] = 1.0 - right * (1.0 - np.array(to_rgb(BLUE)))
    return shades


def _write(panel: Axes, counts: Array) -> None:
    size = 8.5 if len(counts) <= 12 else 6.0
    for row, column in np.argwhere(counts):
        number = int(counts[row, column])
        weight = "bold" if row == column else "normal"
        panel.text(column, row, f"{number:,}", ha="center", va="center", fontsize=size, fontweight=weight)
