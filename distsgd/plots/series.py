"""What curves show: points of loss and score by step or epoch, from the records of a run, and what to call them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distsgd.core.errors import ConfigurationError
from distsgd.plots.runs import Run, differences, names, steps_per_epoch

SPLITS = ("training", "validation", "test")
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

    def __post_init__(self) -> None:
        choices = {"axis": ("epochs", "steps"), "loss_scale": ("auto", "linear", "log"), "score": ("accuracy", "error")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigurationError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")


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
    for run, drawn in zip(runs, curves, strict=True):
        kind = run.options["loss"]
        if kind == "auto":
            kind = {"accuracy": "cross-entropy", "error": "cross-entropy", "r2": "squared-error"}.get(
                drawn.scored_by or "", kind
            )
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
