"""Predicted against true values, with the residuals beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distsgd.core.device import Array
from distsgd.plots.canvas import BLUE, GREY, SPLIT_WORDS, VERMILLION, heading, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_OUTPUTS = 6
"""So many outputs are drawn, each in a row of its own."""
_MOST_POINTS = 5000
_MOST_BARS = 150
"""More points and bars cover one another; so many are drawn, at equal distances in the order of the examples."""


@dataclass(frozen=True)
class Regression:
    """True and predicted values (n, k) of one split's examples, and the ends of their intervals, where there are some.

    coverage  the probability with which a value is to lie in its interval
    """

    split: str
    true: Array
    predicted: Array
    lower: Array | None = None
    upper: Array | None = None
    coverage: float | None = None


def draw_regression(found: Regression) -> Figure:
    """The figure: a row for each output, with predicted against true values, and residuals against predicted ones."""
    examples, outputs = found.true.shape
    rows = min(outputs, MOST_OUTPUTS)
    figure = new_figure(2.9 * rows + 0.7)
    panels = figure.subplots(rows, 2, squeeze=False, width_ratios=(1.0, 1.15))
    shown = np.unique(np.linspace(0, examples - 1, min(examples, _MOST_POINTS)).astype(np.int64))
    for output, (left, right) in enumerate(panels):
        of = f", output {output}" if outputs > 1 else ""
        true, predicted = found.true[:, output], found.predicted[:, output]
        _predicted(left, true[shown], predicted[shown])
        _residuals(right, predicted[shown], true[shown] - predicted[shown])
        left.set_title(f"Predicted and true{of}")
        root = np.sqrt(np.mean(np.square(true - predicted)))
        right.set_title(f"Residuals{of} (root mean square {root:.3g})")
        if found.lower is not None and found.upper is not None:
            _bars(left, true, predicted, found.lower[:, output], found.upper[:, output])
    text = f"Predictions for {examples:,} {SPLIT_WORDS[found.split]} examples"
    if found.lower is not None and found.upper is not None and found.coverage is not None:
        inside = np.mean((found.lower <= found.true) & (found.true <= found.upper))
        text += f": {100 * inside:.1f} % of values in {100 * found.coverage:g} % intervals"
    if outputs > rows:
        text += f"; the first {rows} of {outputs} outputs"
    heading(figure, text)
    return figure


def _predicted(panel: Axes, true: Array, predicted: Array) -> None:
    values = np.concatenate([true, predicted])
    low, high = _range(values[np.isfinite(values)])
    panel.plot([low, high], [low, high], color=GREY, linewidth=1.0, zorder=1)
    panel.scatter(true, predicted, s=_size(len(true)), color=BLUE, alpha=0.55, linewidths=0, zorder=3)
    panel.set_xlim(low, high)
    panel.set_ylim(low, high)
    panel.set_xlabel("true")
    panel.set_ylabel("predicted")


def _residuals(panel: Axes, predicted: Array, residuals: Array) -> None:
    panel.axhline(0.0, color=GREY, linewidth=1.0, zorder=1)
    panel.scatter(predicted, residuals, s=_size(len(predicted)), color=VERMILLION, alpha=0.55, linewidths=0, zorder=3)
    low, high = _range(residuals[np.isfinite(residuals)])
    end = max(abs(low), abs(high))
    panel.set_ylim(-end, end)
    panel.set_xlabel("predicted")
    panel.set_ylabel("true - predicted")


def _bars(panel: Axes, true: Array, predicted: Array, lower: Array, upper: Array) -> None:
    place = np.unique(np.linspace(0, len(true) - 1, min(len(true), _MOST_BARS)).astype(np.int64))
    panel.vlines(true[place], lower[place], upper[place], color=BLUE, alpha=0.3, linewidth=0.9, zorder=2)
    ends = np.concatenate([lower[place], upper[place], np.asarray(panel.get_ylim())])
    panel.set_ylim(*_range(ends[np.isfinite(ends)], margin=0.0))


def _range(values: Array, margin: float = 0.05) -> tuple[float, float]:
    """The ends of an axis on which all of these values are."""
    if not values.size:
        return -1.0, 1.0
    low, high = float(values.min()), float(values.max())
    beside = margin * (high - low) if high > low else margin * max(abs(high), 1.0)
    return low - beside, high + beside


def _size(points: int) -> float:
    return 14.0 if points <= 500 else 7.0
