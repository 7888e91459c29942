"""Pictures of loss and accuracy over epochs or steps: of one run, or of several over each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from distsgd.core.errors import RunFolderError
from distsgd.plots.canvas import BLUE, COLOURS, GREEN, GREY, VERMILLION, heading, new_figure, wrapped
from distsgd.plots.runs import Run
from distsgd.plots.series import (
    SPLITS,
    CurveOptions,
    RunCurves,
    common_axis,
    is_logarithmic,
    labels,
    loss_label,
    run_curves,
    training_label,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OF_SPLIT = {"training": BLUE, "validation": VERMILLION, "test": GREEN}
_LEGEND_COLUMNS = 100


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
    lines = sum(wrapped(run.label, _LEGEND_COLUMNS).count("\n") + 1 for run in drawn)
    figure = new_figure(3.3 + (0.17 * lines if len(runs) > 1 else 0))
    figure.get_layout_engine().set(wspace=0.06)
    panels = figure.subplots(1, len(quantities), squeeze=False)[0]
    colours = _colours(len(runs))
    for quantity, panel in zip(quantities, panels, strict=True):
        for run, colour in zip(drawn, colours, strict=True):
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
        _legend_of_runs(figure, drawn, colours)
    return figure


def _colours(count: int) -> list[Any]:
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    from matplotlib import colormaps

    return [colormaps["viridis"](0.92 * index / (count - 1)) for index in range(count)]


def _draw_run(panel: Axes, run: RunCurves, quantity: str, colour: Any) -> None:
    """One run's curves of a quantity: coloured by split, or where `colour` is given by run."""
    percent = 100.0 if quantity in ("accuracy", "error") else 1.0
    alone = colour is None and {split for _, split in run.curves} == {"training"}
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

    panel.set_title({"loss": "Loss", "accuracy": "Accuracy", "error": "Error", "r2": "R²"}[quantity])
    panel.set_xlabel("epoch" if axis == "epochs" else "step")
    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    panel.set_xlim(left=0)
    panel.margins(x=0.02)
    panel.grid(axis="y")
    panel.set_axisbelow(True)
    wording = {"accuracy": "classified correctly (%)", "error": "misclassified (%)", "r2": "R²"}
    panel.set_ylabel(wording.get(quantity, ""))


def _legend_of_splits(figure: Figure, run: Run, drawn: RunCurves, axis: str) -> None:
    from matplotlib.lines import Line2D

    texts = {"training": training_label(run.records)}
    there = [split for split in SPLITS if any(split == other for _, other in drawn.curves)]
    handles = [
        Line2D([], [], color=_OF_SPLIT[split], label=texts.get(split, split),
               **_looks("validation" if there == ["training"] else split, 3))
        for split in there
    ]  # fmt: skip
    if drawn.best is not None:
        measure = "error" if drawn.scored_by in ("accuracy", "error") else "loss"
        monitor = run.options["monitor"] or f"validation_{measure}"
        where = f"best {monitor.replace('_', ' ')}: {axis[:-1]} {drawn.best:g}"
        handles.append(_star(where, _OF_SPLIT["validation"]))
    # Beside each other; four with long names are wider than the picture.
    wide = sum(len(str(handle.get_label())) for handle in handles) > 80
    figure.legend(handles=handles, loc="outside lower center", ncols=2 if wide else len(handles))


def _legend_of_runs(figure: Figure, drawn: Sequence[RunCurves], colours: Sequence[Any]) -> None:
    from matplotlib.lines import Line2D

    handles: list[Any] = [
        Line2D([], [], color=colour, label=wrapped(run.label, _LEGEND_COLUMNS), linewidth=2.5)
        for run, colour in zip(drawn, colours, strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=1, alignment="left")
    figure.legend(handles=list(_key(drawn)), loc="outside upper right", ncols=4)


def _key(drawn: Sequence[RunCurves]) -> Iterator[Any]:
    """What lines and marks mean, in grey."""
    from matplotlib.lines import Line2D

    for split in SPLITS:
        if any(split == there for run in drawn for _, there in run.curves):
            yield Line2D([], [], color=GREY, label=split, **_looks(split, 3))
    if any(run.best is not None for run in drawn):
        yield _star("best validation", GREY)


def _star(label: str, colour: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, marker="*", markersize=10, linestyle="none", label=label)
