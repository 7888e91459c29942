"""python -m distsgd.predict RUN … INPUT -o OUT.npz: what a trained model says of new examples."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distsgd.cli.commands import run_command
from distsgd.core.device_options import device_option, precision_option
from distsgd.core.options import REQUIRED, option
from distsgd.core.output import say

if TYPE_CHECKING:
    from distsgd.data.sources.base import DataSource
    from distsgd.parallel import Communicator
    from distsgd.run.trained.kept import Kept
    from distsgd.run.trained.predicting import Part
    from distsgd.run.trained.prediction_files import PredictionFile
    from distsgd.run.trained.stored_model import StoredModel


@dataclass(frozen=True)
class Options:
    """Predict with a trained model, of a file of any size.

    OUT.npz holds `predictions` (n, outputs) and, for classes, `labels` (n,). OUT.csv and OUT.parquet have a line for
    each example: the kept columns, `label` by its name, and `prediction`, or one of each class or output. With several
    runs, predictions are the mean of theirs, and `spread` is the standard deviation.
    """

    run: tuple[str, ...] = option(REQUIRED, "A run's folder, or a checkpoint; or several.", positional=True, path=True)
    # fmt: off
    input: str = option(REQUIRED, "A file or folder, as --dataset of training takes it; it needs no targets.",
        positional=True, path=True)
    out: str = option(REQUIRED, "The .npz, .csv or .parquet file to write. A link there is replaced.",
        short="-o", path=True)
    keep: tuple[str, ...] = option((), "Columns or arrays of the input that are written beside the predictions.")
    # fmt: on
    x: tuple[str, ...] = option((), "The inputs, as the option --x of training names them. Default: as in training.")
    axis: str | None = option(None, "The axis of examples, as --axis of training. Default: as in training.")
    model: str | None = option(None, "file.py:function, where the run's model is your own code.", code=True, path=True)
    device: str = device_option("cpu")
    precision: str = precision_option()


def main() -> int:
    """The command; returns the exit status."""
    return run_command(predict)


def predict(communicator: Communicator, arguments: Sequence[str]) -> int:
    """Predicts each rank's part of the examples, round by round; rank 0 writes. Collective."""
    from contextlib import ExitStack

    from distsgd.cli.command_line import parse_arguments
    from distsgd.run.data.placement import place_or_read
    from distsgd.run.kernels import choose_for
    from distsgd.run.trained.ensemble import check_alike
    from distsgd.run.trained.predicting import Predictor, in_use
    from distsgd.run.trained.prediction_files import check_kept, predictions_file
    from distsgd.run.trained.stored_model import on_devices

    options = communicator.on_root(lambda: parse_arguments(Options, arguments, "python -m distsgd.predict"))
    choose_for(communicator, options.run[0])
    if communicator.is_root:
        note_kernels(options.run)
    models = load(communicator, options.run, options.model)
    check_alike(options.run, [(one.task, one.signature) for one in models])
    models = on_devices(communicator, models, options.device, options.precision)
    source, kept = communicator.on_root(lambda: opened(options, models[0]))
    communicator.on_root(lambda: check_kept(options.out, kept.kinds))
    examples = place_or_read(communicator, source, "train")
    assert examples is not None, "the inputs are called x_train"
    predictor, task = Predictor(models, examples.x, options.input), models[0].task
    with in_use(examples.x), ExitStack() as writing:
        files: list[PredictionFile] = []

        def begin() -> None:
            made = predictions_file(options.out, task, len(examples), kept.kinds)
            files.append(writing.enter_context(made))

        def append(start: int, part: Part) -> None:
            predictions, spread = part
            files[0].append(predictions, spread, kept.rows(start, start + len(predictions)))

        communicator.on_root(begin)
        predictor.run(communicator, append)
        doubts = communicator.on_root(lambda: [*predictor.doubts()])
        communicator.on_root(writing.close)
    if communicator.is_root:
        for doubt in doubts:
            say(f"warning: {doubt}", sys.stderr)
        say(f"{len(examples):,} predictions in {files[0].path}")
    return 0


def opened(options: Options, model: StoredModel) -> tuple[DataSource, Kept]:
    """The data set whose inputs are to be predicted, and what of it is kept."""
    from distsgd.data.sources.base import ReadOptions
    from distsgd.data.sources.registry import open_path
    from distsgd.run.data.options import asked_by
    from distsgd.run.trained.kept import kept_of

    given = ReadOptions(
        x=options.x, axis=options.axis or "", targets=False, streamed=not options.input.lower().endswith(".gz")
    )
    asked = asked_by(model.config, model.signature, options.input, given)
    source = open_path(options.input, asked)
    return source, kept_of(options.input, source, asked, options.keep)


def load(communicator: Communicator, runs: Sequence[str], code: str | None) -> list[StoredModel]:
    """The models of these runs; the code is of those that are the user's own. Collective."""
    from distsgd.run.trained.stored_model import read_stored, with_code

    stored = [read_stored(communicator, run) for run in runs]
    some = any(one.is_users for one in stored)
    return [with_code(communicator, one, code if one.is_users or not some else None) for one in stored]


def note_kernels(runs: Sequence[str]) -> None:
    """Prints a warning where runs were computed with other kernels than the first."""
    from pathlib import Path

    from distsgd.run.kernels import recorded_in

    found = {run: name for run in runs if (name := recorded_in(Path(run))) is not None}
    for run, name in found.items():
        if name != found.get(runs[0], name):
            say(
                f"warning: {run} was computed with the kernels {name}, and {runs[0]} with {found[runs[0]]}; its "
                "predictions may differ in their last bits",
                sys.stderr,
            )
