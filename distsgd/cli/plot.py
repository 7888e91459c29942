"""python -m distsgd.plot RUN …: pictures of a run, or of several runs over each other."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distsgd.cli.commands import run_command
from distsgd.core.options import option
from distsgd.core.output import say

if TYPE_CHECKING:
    from distsgd.parallel import Communicator
    from distsgd.run.pictures import Drawn


@dataclass(frozen=True)
class Options:
    """Draw pictures of a run, as PNG and SVG: curves, filters, confusion, misclassified, regression and
    boundary.

    Several runs are drawn over each other in one picture of curves. Needs matplotlib, which distsgd[plot] installs.
    """

    # fmt: off
    runs: tuple[str, ...] = option((), "The runs' folders.", positional=True, path=True)
    out: str | None = option(None, path=True, help=
        "The folder to draw into. Default: plots in the run's folder; of several runs, plots here.")
    only: tuple[str, ...] = option((), "The pictures to draw. Default: all that the run has something for.",
        choices=("curves", "filters", "confusion", "misclassified", "regression", "boundary"))
    axis: str = option("epochs", "What curves run over.", choices=("epochs", "steps"))
    loss_scale: str = option("auto",
        "The scale of losses; auto: log where they span more than a factor of 100.", choices=("auto", "linear", "log"))
    score: str = option("accuracy", "What is drawn beside the loss.", choices=("accuracy", "error"))
    split: str | None = option(None,
        "The examples of confusion, misclassified and regression. Default: test, or validation without a test set.",
        choices=("test", "validation", "train"))
    examples: int = option(25, "How many misclassified examples to show.", interval="[1, 400]")
    filters: int = option(64,
        "How many units or filters of the first layer to show, the strongest first.", interval="[1, 400]")
    data_dir: str | None = option(None, "Where data-set files are. Default: where the run had them.", path=True)
    model: str | None = option(None, "file.py:function, where the run's model is your own code.", code=True, path=True)
    # fmt: on


def main() -> int:
    """The command; returns the exit status."""
    return run_command(plot)


def plot(communicator: Communicator, arguments: Sequence[str]) -> int:
    """Draws on rank 0. Collective."""
    from distsgd.cli.command_line import parse_arguments
    from distsgd.run.kernels import choose_for

    options = communicator.on_root(lambda: parse_arguments(Options, arguments, "python -m distsgd.plot"))
    choose_for(communicator, next(iter(options.runs), "."))
    drawn = communicator.on_root(lambda: draw(options))
    if communicator.is_root:
        for name in drawn.names:
            say(f"{drawn.folder / name}.png and .svg")
        for note in drawn.notes:
            say(f"warning: {note}", sys.stderr)
    return 0


_DRAWN_WITH = {
    "axis": ("curves",), "loss_scale": ("curves",), "score": ("curves",),
    "split": ("confusion", "misclassified", "regression"),
    "examples": ("misclassified",), "filters": ("filters",),
    **dict.fromkeys(("data_dir", "model"), ("filters", "confusion", "misclassified", "regression", "boundary")),
}  # fmt: skip
"""Which pictures an option is for."""


def refuse_unused(options: Options) -> None:
    """Raises ConfigurationError for an option of pictures that are not drawn."""
    from distsgd.core.errors import ConfigurationError
    from distsgd.core.options import options_of

    for name, pictures in _DRAWN_WITH.items():
        drawn = ("curves",) if len(options.runs) > 1 else options.only or pictures
        if getattr(options, name) != options_of(Options)[name].default and not set(pictures) & set(drawn):
            raise ConfigurationError(f"{name}: is for {' and '.join(pictures)}, which are not drawn here; leave it out")


def draw(options: Options) -> Drawn:
    """Draws what the options ask for."""
    from pathlib import Path

    from distsgd.core.errors import ConfigurationError
    from distsgd.core.files import expanded
    from distsgd.plots.canvas import check_installed
    from distsgd.plots.curves import CurveOptions
    from distsgd.run.picture_material import read_run, stored_material
    from distsgd.run.pictures import Choices, draw_overlay, draw_run

    curves = CurveOptions(options.axis, options.loss_scale, options.score)
    choices = Choices(options.only, curves, options.split, options.examples, options.filters)
    refuse_unused(options)
    if not options.runs:
        raise ConfigurationError("expected the folder of a run, or several (see python -m distsgd.plot --help)")
    check_installed()
    runs = [read_run(Path(path)) for path in options.runs]
    if len(runs) > 1:
        return draw_overlay(runs, expanded(options.out or "plots"), choices)
    folder = expanded(options.out) if options.out is not None else runs[0].path / "plots"
    return draw_run(stored_material(runs[0], options.model, options.data_dir), folder, choices)
