"""What the options of a run, and a trained model, ask of data files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from distsgd.data.sources.base import ReadOptions
from distsgd.data.sources.registry import looks_like_path
from distsgd.run.config import TrainConfig

if TYPE_CHECKING:
    from distsgd.data.columns import Columns
    from distsgd.data.examples import Signature


def read_options(config: TrainConfig) -> ReadOptions:
    """What the configuration asks of the files that it names."""
    names = config.classes if len(config.classes) > 1 else ()  # a single word is their number
    streamed = config.shuffle_buffer is not None and config.stream
    return ReadOptions(
        config.x,
        config.y,
        config.weights,
        config.group,
        axis=config.axis,
        missing=config.missing,
        classes=names,
        streamed=streamed,
    )


def later(options: ReadOptions, columns: Columns | None, classes: tuple[str, ...]) -> ReadOptions:
    """What is asked of a validation or a test set: the columns or arrays of the training set, by their names, where
    these are known. A pattern might mean others, or in another order."""
    x, y = (options.x, options.y) if columns is None else ((), ())
    return replace(options, x=x, y=y, columns=columns, classes=classes, group=None)


def asked_by(config: TrainConfig, signature: Signature, name: str, given: ReadOptions) -> ReadOptions:
    """What a trained model asks of the data set of this name: what its own data were asked, and instead of that what is
    given. An axis "" is none that is given."""
    if not looks_like_path(name):
        return replace(given, axis=given.axis or "0")
    columns, of_run = signature.columns, read_options(config)
    missing = of_run.missing if columns is None else columns.missing
    if missing == "drop" and not given.targets:  # each example has a prediction, or is refused
        missing, columns = "refuse", None if columns is None else replace(columns, missing="refuse")
    given = replace(given, columns=columns, missing=missing)
    if name.lower().endswith(".npy") and not Path(name).expanduser().is_dir():
        return replace(given, axis=given.axis or "0")  # a single array, which has no name
    return replace(
        given,
        x=given.x or (of_run.x if columns is None else ()),
        y=given.y or (of_run.y if columns is None else ()),
        weights=of_run.weights if given.weights is None and given.targets else given.weights,
        axis=given.axis or of_run.axis,
        classes=signature.class_names or of_run.classes,
    )
