"""Which pictures a run has something for, and all of them drawn: for --plot, for fit, and for the command plot."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import (
    REPORTED_ONLY,
    CheckpointError,
    ConfigurationError,
    DataError,
    DistsgdError,
    RunFolderError,
    text_of,
)
from distsgd.core.files import expanded
from distsgd.core.output import say
from distsgd.data.examples import Examples
from distsgd.nn.task import true_classes
from distsgd.plots import boundary, confusion, filters, misclassified, regression
from distsgd.plots.canvas import NothingToDraw, check_installed, save, style
from distsgd.plots.curves import CurveOptions, draw_curves
from distsgd.plots.images import image_shape
from distsgd.plots.runs import Run
from distsgd.run.config import TrainConfig
from distsgd.run.data.loading import Data
from distsgd.run.picture_material import SPLITS, Material, read_run, run_of, stored_material
from distsgd.run.trained.stored_model import StoredModel
from distsgd.run.user_code import CodeName
from distsgd.training.metrics.classes import ConfusionMatrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = ("curves", "filters", "confusion", "misclassified", "regression", "boundary")
_CLASSES = 100
"""Above this many classes a confusion matrix is no longer something to look at."""


@dataclass(frozen=True)
class Choices:
    """Which pictures, of what, and how.

    only       the pictures that are wanted; empty for all that the run has something for
    split      of confusion and misclassified; None for test, or validation where there is no test set
    examples   how many misclassified examples
    filters    how many units or filters of the first layer
    """

    only: tuple[str, ...] = ()
    curves: CurveOptions = field(default_factory=CurveOptions)
    split: str | None = None
    examples: int = 25
    filters: int = 64


@dataclass
class Drawn:
    """What came of it: names of pictures in `folder`, sentences about the runs, and those pictures that are skipped, by
    the sentence that says why."""

    folder: Path
    names: list[str] = field(default_factory=list)
    of_runs: Sequence[str] = ()
    skipped: dict[str, list[str]] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """One sentence for each reason."""
        skipped = [f"{', '.join(names)} skipped: {reason}" for reason, names in self.skipped.items()]
        return [*self.of_runs, *skipped]


def draw_run(material: Material, folder: Path, choices: Choices) -> Drawn:
    """Draws the pictures into `folder`, and returns which.

    A picture that the run has nothing for is skipped; one whose file can't be read is skipped with a sentence, which is
    raised where `choices.only` names the picture, or where there would be none.
    """
    drawn, problem = Drawn(folder, of_runs=material.run.notes), None
    with style():
        for name in choices.only or PICTURES:
            try:
                figure = _MAKERS[name](material, choices)
            except (CheckpointError, ConfigurationError, DataError, RunFolderError) as error:
                if choices.only or (type(error) is ConfigurationError and error is not material.failed):
                    raise
                problem = problem or error
                if not isinstance(error, NothingToDraw):
                    drawn.skipped.setdefault(str(error), []).append(name)
                continue
            save(figure, folder, name)
            drawn.names.append(name)
    if problem is not None and not drawn.names:
        raise problem
    return drawn


def draw_overlay(runs: Sequence[Run], folder: Path, choices: Choices) -> Drawn:
    """Draws the curves of several runs over each other."""
    if set(choices.only) - {"curves"}:
        raise ConfigurationError(f"only: several runs share a picture of curves alone, got {' '.join(choices.only)}")
    with style():
        save(draw_curves(runs, choices.curves), folder, "curves")
    return Drawn(folder, ["curves"], [note for run in runs for note in run.notes])


def draw_after_training(path: Path, stored: StoredModel, data: Data, *, quiet: bool = False) -> None:
    """Draws into `path`/plots when a run has ended, on rank 0; an error is a warning of one line, never raised."""
    _draw_and_report(lambda: Material(read_run(path), lambda: (stored, data)), path, quiet)


def draw_model(
    records: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    stored: StoredModel,
    folder: str | os.PathLike[str] | None,
) -> Figure:
    """The curves of a model in memory; draws all pictures that need no data into the folder, where one is given."""

    def no_data() -> tuple[StoredModel, Data]:
        raise DataError("a model in memory keeps no data; fit(plot=True) and the command plot draw them")

    check_installed()
    place = Path("model") if folder is None else expanded(folder)
    run = run_of(place, stored.config, records, summary or None)
    with style():
        figure = draw_curves([run], CurveOptions())
    if folder is not None:
        draw_run(Material(run, no_data, lambda: (stored.params, stored.signature)), place, Choices())
    return figure


def draw_finished(path: Path, config: TrainConfig) -> None:
    """As draw_after_training, of a run that had ended before."""
    code = config.model if isinstance(config.model, CodeName) else None
    _draw_and_report(lambda: stored_material(read_run(path), code, config.data_dir), path, config.quiet)


def _draw_and_report(material: Callable[[], Material], path: Path, quiet: bool) -> None:
    try:
        drawn = draw_run(material(), path / "plots", Choices())
    except REPORTED_ONLY as error:
        text = str(error) if isinstance(error, DistsgdError) else f"{type(error).__name__}: {text_of(error)}"
        say(f"warning: plot: {' '.join(text.split())}", sys.stderr)
        return
    for note in drawn.notes:
        say(f"warning: plot: {note}", sys.stderr)
    if not quiet:
        say(f"pictures   {drawn.folder}: {', '.join(drawn.names)}")


def _curves(material: Material, choices: Choices) -> Figure:
    return draw_curves([material.run], choices.curves)


def _filters(material: Material, choices: Choices) -> Figure:
    params, signature = material.weights()
    found = filters.find_filters(params, signature.example_shape, signature.num_classes, choices.filters)
    return filters.draw_filters(found)


def _confusion(material: Material, choices: Choices) -> Figure:
    matrices, words = (material.run.summary or {}).get("confusion_matrix"), material.run.options.get("classes") or ()
    for split in [choices.split] if choices.split else SPLITS[:2]:
        found = confusion.from_summary(matrices, split, words)
        if found is not None:
            return confusion.draw_confusion(found)
    task = material.task()
    classes = task.num_classes
    if task.kind != "classification":
        raise NothingToDraw("confusion: the targets are no classes")
    if classes > _CLASSES:
        raise NothingToDraw(f"confusion: {classes} classes are too many to look at, up to {_CLASSES} are drawn")
    split, examples = material.examples(choices.split)
    metric = ConfusionMatrix(max(classes, 2), task.prediction_threshold)
    matrix = metric.value(metric.sums(material.predictions(split, examples).T, _labels(examples)))
    return confusion.draw_confusion(confusion.Confusion(split, np.array(matrix), task.names))


def _misclassified(material: Material, choices: Choices) -> Figure:
    _, signature = material.weights()
    task = material.task()
    if task.kind != "classification" or image_shape(signature.example_shape) is None:
        raise NothingToDraw("misclassified: the examples are no images of classes")
    split, examples = material.examples(choices.split)
    mistakes = misclassified.find_mistakes(
        split, material.predictions(split, examples), _labels(examples), task, choices.examples
    )
    inside = mistakes.chosen if examples.indices is None else examples.indices[mistakes.chosen]
    return misclassified.draw_mistakes(mistakes, examples.x[inside], signature.example_shape)


def _regression(material: Material, choices: Choices) -> Figure:
    _, signature = material.weights()
    loss = str(material.run.options.get("loss"))
    classes = signature.num_classes is not None and any(word in loss for word in ("auto", "entropy", "focal"))
    if classes or material.task().kind != "regression":
        raise NothingToDraw("regression: the targets are no values")
    split, examples = material.examples(choices.split)
    predicted = material.predictions(split, examples)
    true = _chosen(examples)[1].reshape(len(predicted), -1).astype(np.float64)
    if true.shape != predicted.shape:
        raise NothingToDraw(f"regression: {predicted.shape[1]} predictions of {true.shape[1]} values an example")
    found = regression.Regression(split, true, predicted)
    if (interval := material.interval(examples)) is not None:
        found = replace(found, lower=interval[0], upper=interval[1], coverage=interval[2])
    return regression.draw_regression(found)


def _boundary(material: Material, choices: Choices) -> Figure:
    _, signature = material.weights()
    if not boundary.may_be_flat(signature.example_shape):
        raise NothingToDraw(f"boundary: examples of shape {signature.example_shape} have not two inputs")
    _, data = material.trained()
    x, y = _chosen(data.train)

    def predict(rows: Array) -> Array:
        return material.predict(data.signature.examples(rows))

    return boundary.draw_boundary(boundary.find_boundary(x, y, material.task(), predict))


def _labels(examples: Examples) -> Array:
    """The labels of a set, in its order."""
    y = _chosen(examples)[1]
    return true_classes(y if y.ndim == 1 and y.dtype.kind != "f" else y.reshape(len(y), -1).T)


def _chosen(examples: Examples) -> tuple[Array, Array]:
    """The inputs and targets of a set, in its order."""
    rows = slice(None) if examples.indices is None else examples.indices[:]
    return examples.x[rows], examples.y[rows]


_MAKERS = {
    "curves": _curves,
    "filters": _filters,
    "confusion": _confusion,
    "misclassified": _misclassified,
    "regression": _regression,
    "boundary": _boundary,
}
