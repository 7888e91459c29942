"""Curves of loss and score over epochs or steps: points from the records of a run, and pictures of one or several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distsgd.core.errors import RunFolderError
from distsgd.core.output import counted
from distsgd.plots.canvas import BLUE, COLOURS, GREEN, GREY, VERMILLION, heading, new_figure, wrapped
from distsgd.plots.runs import Run, differences, names, steps_per_epoch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SPLITS = ("training", "validation", "test")
_OF_SPLIT = {"training": BLUE, "validation": VERMILLION, "test": GREEN}
_TITLES = {
    "loss": ("Loss", ""),
    "accuracy": ("Accuracy", "classified correctly (%)"),
    "error": ("Error", "misclassified (%)"),
    "r2": ("R²", "R²"),
}
_LEGEND_COLUMNS = 100
_LIGHT = "#BDBDBD"
_STAR = {"marker": "*", "markersize": 10, "linestyle": "none"}
_KEYS = {"training": "train_full", "validation": "validation", "test": "test"}
_LOG_ABOVE = 100.0
"""Losses that span a larger factor than this are drawn on a logarithmic scale: two decades."""


@dataclass(frozen=True)
class CurveOptions:
    """How curves are drawn.

    axis        epochs or steps
    loss_scale  linear, log, or auto: log where the losses span more than a factor of 100
    score       accuracy or error
    """

    axis: str = "epochs"
    loss_scale: str = "auto"
    score: str = "accuracy"


@dataclass(frozen=True)
class Curve:
    """Points in the order of their steps; y is NaN where the record has null."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    def at(self, x: float) -> float | None:
        """The value at x, None where the curve has no point there."""
        return next((value for place, value in zip(self.x, self.y, strict=True) if place == x), None)


@dataclass(frozen=True)
class RunCurves:
    """One run's curves by (quantity, split), such as ("loss", "validation"), and the x of its best validation."""

    label: str
    curves: Mapping[tuple[str, str], Curve]
    best: float | None

    @property
    def scored_by(self) -> str | None:
        """accuracy, error or r2; None where the loss is all that there is."""
        return next((quantity for quantity, _ in self.curves if quantity != "loss"), None)


def run_curves(run: Run, label: str, options: CurveOptions, axis: str) -> RunCurves:
    """The curves of a run: its loss, and the score that it was asked for or else r2.

    The training loss is the mean over the steps since the record before, or the score of the whole training set
    (--train-metrics full) where the run has it. Test points are those at each new best, or the summary's.
    """
    unit = (steps_per_epoch(run.records) if axis == "epochs" else None) or 1
    curves: dict[tuple[str, str], Curve] = {}
    for quantity in ("loss", options.score, "r2"):
        for split, key in _KEYS.items():
            points = _points(run.records, f"{key}_{quantity}")
            if (quantity, split) == ("loss", "training") and not points:
                points = training_losses(run.records)
            if split == "test" and not points:
                points = _from_summary(run, f"test_{quantity}")
            if points:
                x, y = zip(*points, strict=True)
                curves[quantity, split] = Curve(tuple(step / unit for step in x), y)
    best = None if run.best is None else run.best["step"] / unit
    return RunCurves(label, curves, best)


def _points(records: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """(step, value) of the records that have the key; none where no value is a finite number."""
    points = [(record["step"], _number(record[key])) for record in records if key in record]
    return points if any(math.isfinite(value) for _, value in points) else []


def training_losses(records: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """(step, mean loss over the steps since the record before, or since the epoch began).

    A record has the mean since its epoch began, which would draw teeth where an epoch has several records. Two of
    them, mₐ after a steps and m_b after b, give (b m_b - a mₐ) / (b - a).
    """
    per_epoch = steps_per_epoch(records)
    points: list[tuple[int, float]] = []
    began, before, mean_before = 0, 0, 0.0
    for record in records:
        step, penalty = record["step"], _number(record.get("penalty", 0.0))
        start = max(step - 1, 0) // per_epoch * per_epoch if per_epoch else 0
        if start != began:
            began, before, mean_before = start, 0, 0.0
        mean, steps = _number(record.get("train_loss")) - penalty, step - began
        if steps > before:
            points.append((step, (steps * mean - before * mean_before) / (steps - before) + penalty))
            before, mean_before = steps, mean
    return points if any(math.isfinite(value) for _, value in points) else []


def _from_summary(run: Run, key: str) -> list[tuple[int, float]]:
    """The score of the returned parameters, at their step."""
    summary = run.summary or {}
    step = summary.get("best_step") or summary.get("steps")
    if not isinstance(step, int) or not isinstance(summary.get(key), float):
        return []
    return [(step, float(summary[key]))]


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return math.nan


def common_axis(runs: Sequence[Run], axis: str) -> str:
    """Epochs only where each run has finished one."""
    return axis if all(steps_per_epoch(run.records) for run in runs) else "steps"


def is_logarithmic(curves: Sequence[RunCurves], loss_scale: str) -> bool:
    """Whether the losses are drawn on a logarithmic scale, which has no place for those of zero or less."""
    values = [y for run in curves for (quantity, _), curve in run.curves.items() if quantity == "loss" for y in curve.y]
    finite = [value for value in values if math.isfinite(value)]
    if loss_scale == "log":
        return any(value > 0 for value in finite)
    return loss_scale == "auto" and min(finite, default=0.0) > 0 and max(finite) / min(finite) > _LOG_ABOVE


def loss_label(runs: Sequence[Run], curves: Sequence[RunCurves]) -> str:
    """What the loss is, with its unit, as far as the configurations show."""
    kinds = set()
    usual = {"accuracy": "cross-entropy", "error": "cross-entropy", "r2": "squared-error"}
    for run, drawn in zip(runs, curves, strict=True):
        kind = run.options["loss"]
        kind = usual.get(drawn.scored_by or "", kind) if kind == "auto" else kind
        kinds.add("cross-entropy" if kind.endswith("cross-entropy") else kind)
    if kinds == {"cross-entropy"}:
        return "cross-entropy (nats per example)"
    return "squared error (½ Σ per example)" if kinds == {"squared-error"} else "loss (mean per example)"


def labels(runs: Sequence[Run]) -> list[str]:
    """What the legend calls each run: its name, and what differs between the configurations."""
    named = zip(names(runs), differences(runs), strict=True)
    return [f"{name}: {differs}" if differs else name for name, differs in named]


def training_label(records: Sequence[Mapping[str, Any]]) -> str:
    """What the training loss is a mean of."""
    if any("train_full_loss" in record for record in records):
        return "training"
    per_epoch = steps_per_epoch(records)
    often = per_epoch is None or any(record["step"] % per_epoch for record in records)
    penalty = ", with penalty" if any("penalty" in record for record in records) else ""
    return f"training (mean {'since the point before' if often else 'of the epoch'}{penalty})"


def draw_curves(runs: Sequence[Run], options: CurveOptions) -> Figure:
    """The figure: the loss, and beside it the score where there is one. Raises RunFolderError without records."""
    empty = next((run.path for run in runs if not run.records), None)
    if empty is not None:
        raise RunFolderError(
            f"{empty} has no records for curves yet; they come with the end of each epoch and each validation"
        )
    axis = common_axis(runs, options.axis)
    drawn = [run_curves(run, label, options, axis) for run, label in zip(runs, labels(runs), strict=True)]
    scores = list(dict.fromkeys(run.scored_by for run in drawn if run.scored_by is not None))
    quantities = ["loss", *scores[:1]]
    named, others = _best_of(drawn)
    lines = sum(wrapped(run.label, _LEGEND_COLUMNS).count("\n") + 1 for run in named) + bool(others)
    figure = new_figure(3.3 + (0.17 * lines if len(runs) > 1 else 0))
    figure.get_layout_engine().set(wspace=0.06)
    panels = figure.subplots(1, len(quantities), squeeze=False)[0]
    for quantity, panel in zip(quantities, panels, strict=True):
        for run in others:
            _draw_in_grey(panel, run, quantity)
        for run, colour in zip(named, COLOURS, strict=False):
            _draw_run(panel, run, quantity, colour if len(runs) > 1 else None)
        _finish_panel(panel, quantity, axis)
    panels[0].set_ylabel(loss_label(runs, drawn))
    if is_logarithmic(drawn, options.loss_scale):
        panels[0].set_yscale("log")
        panels[0].grid(axis="y", which="minor", linewidth=0.3)
    if len(runs) == 1:
        heading(figure, drawn[0].label)
        _legend_of_splits(figure, runs[0], drawn[0], axis)
    else:
        _legend_of_runs(figure, named, len(others))
    return figure


def _best_of(drawn: Sequence[RunCurves]) -> tuple[Sequence[RunCurves], Sequence[RunCurves]]:
    """(the runs that have a colour each, those in grey): of more than can be distinguished, the best have colours.

    The best are those with the best validation score; without any, with the lowest last loss.
    """
    if len(drawn) <= len(COLOURS):
        return drawn, []
    by_place = sorted(range(len(drawn)), key=lambda place: _standing(drawn[place]))
    named = by_place[: len(COLOURS)]
    return [drawn[place] for place in named], [run for place, run in enumerate(drawn) if place not in named]


def _standing(run: RunCurves) -> tuple[bool, float]:
    """What runs are put in order by: lower is better; runs without a score are last."""
    for quantity, split in ((run.scored_by, "validation"), ("loss", "validation"), ("loss", "training")):
        curve = None if quantity is None else run.curves.get((quantity, split))
        if curve is not None:
            finite = [y for y in curve.y if math.isfinite(y)]
            at_best = None if run.best is None else curve.at(run.best)
            sign = 1.0 if quantity in ("loss", "error") else -1.0
            value = at_best if at_best is not None and math.isfinite(at_best) else min(finite, key=lambda y: sign * y)
            return False, sign * value
    return True, 0.0


def _draw_in_grey(panel: Axes, run: RunCurves, quantity: str) -> None:
    """The curve of one of many runs: of validation, or else of training."""
    percent = 100.0 if quantity in ("accuracy", "error") else 1.0
    curve = run.curves.get((quantity, "validation")) or run.curves.get((quantity, "training"))
    if curve is not None:
        look = {"marker": ".", "markersize": 6.0} if len(curve.x) <= 2 else {}
        panel.plot(curve.x, [percent * y for y in curve.y], color=_LIGHT, linewidth=0.8, zorder=1.5, **look)


def _draw_run(panel: Axes, run: RunCurves, quantity: str, colour: Any) -> None:
    """One run's curves of a quantity: coloured by split, or where `colour` is given by run."""
    percent = 100.0 if quantity in ("accuracy", "error") else 1.0
    alone = colour is None and _splits([run]) == ["training"]
    for split in SPLITS:
        curve = run.curves.get((quantity, split))
        if curve is None:
            continue
        look = _looks("validation" if alone else split, len(curve.x)) | {"color": colour or _OF_SPLIT[split]}
        panel.plot(curve.x, [percent * y for y in curve.y], **look)
    validation = run.curves.get((quantity, "validation"))
    y = None if run.best is None or validation is None else validation.at(run.best)
    if run.best is not None and y is not None:
        panel.plot(
            [run.best], [percent * y], "*", color=colour or _OF_SPLIT["validation"], markersize=11,
            markeredgecolor="white", markeredgewidth=0.8, zorder=5,
        )  # fmt: skip
        if colour is None:
            panel.axvline(run.best, color=GREY, linewidth=0.7, linestyle=(0, (2, 3)), zorder=0)


def _looks(split: str, points: int) -> dict[str, Any]:
    """A curve's line and marks: splits differ in these too, for print in grey and for overlaid runs."""
    if split == "test":
        return {"linestyle": "none", "marker": "o", "markersize": 4.0, "fillstyle": "none"}
    line: dict[str, Any] = {"linestyle": "-" if split == "validation" else (0, (4, 1.5))}
    return line | ({"marker": ".", "markersize": 6.0} if points <= 2 else {})


def _finish_panel(panel: Axes, quantity: str, axis: str) -> None:
    from matplotlib.ticker import MaxNLocator

    title, label = _TITLES[quantity]
    panel.set_title(title)
    panel.set_xlabel("epoch" if axis == "epochs" else "step")
    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    panel.set_xlim(left=0)
    panel.margins(x=0.02)
    panel.grid(axis="y")
    panel.set_axisbelow(True)
    panel.set_ylabel(label)


def _legend_of_splits(figure: Figure, run: Run, drawn: RunCurves, axis: str) -> None:
    texts = {"training": training_label(run.records)}
    there = _splits([drawn])
    handles = [
        _mark(texts.get(split, split), _OF_SPLIT[split], _looks("validation" if there == ["training"] else split, 3))
        for split in there
    ]
    if drawn.best is not None:
        measure = "error" if drawn.scored_by in ("accuracy", "error") else "loss"
        monitor = run.options["monitor"] or f"validation_{measure}"
        where = f"best {monitor.replace('_', ' ')}: {axis[:-1]} {drawn.best:g}"
        handles.append(_mark(where, _OF_SPLIT["validation"], _STAR))
    # Beside each other; four with long names are wider than the picture.
    wide = sum(len(str(handle.get_label())) for handle in handles) > 80
    figure.legend(handles=handles, loc="outside lower center", ncols=2 if wide else len(handles))


def _legend_of_runs(figure: Figure, drawn: Sequence[RunCurves], others: int) -> None:
    handles = [
        _mark(wrapped(run.label, _LEGEND_COLUMNS), colour, {"linewidth": 2.5})
        for run, colour in zip(drawn, COLOURS, strict=False)
    ]
    if others:
        handles.append(_mark(f"{counted(others, 'more run')}, worse than these", _LIGHT, {"linewidth": 1.2}))
    figure.legend(handles=handles, loc="outside lower left", ncols=1, alignment="left")
    lines = [_mark(split, GREY, _looks(split, 3)) for split in _splits(drawn)]
    if any(run.best is not None for run in drawn):
        lines.append(_mark("best validation", GREY, _STAR))
    figure.legend(handles=lines, loc="outside upper right", ncols=4)


def _splits(drawn: Sequence[RunCurves]) -> list[str]:
    """The splits that any of the runs has a curve of."""
    return [split for split in SPLITS if any(split == there for run in drawn for _, there in run.curves)]


def _mark(label: str, colour: Any, look: Mapping[str, Any]) -> Any:
    """An entry of a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, label=label, **look)
