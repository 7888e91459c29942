"""What the options of a run, and a trained model, ask of data files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from distsgd.data.sources.base import ReadOptions
from distsgd.data.sources.registry import looks_like_path
from distsgd.run.config import TrainConfig

if TYPE_CHECKING:
    from distsgd.data.examples import Signature


def read_options(config: TrainConfig) -> ReadOptions:
    """What the configuration asks of the files that it names."""
    return ReadOptions(x=config.x, y=config.y, weights=config.weights)


def asked_by(config: TrainConfig, signature: Signature, name: str, given: ReadOptions) -> ReadOptions:
    """What a trained model asks of the data set of this name: what its own data were asked, and instead of that what is
    given."""
    if not looks_like_path(name) or (name.endswith(".npy") and not Path(name).expanduser().is_dir()):
        return given  # which has no names, or is a single array
    of_run, columns = read_options(config), signature.columns
    return replace(
        given,
        x=given.x or (of_run.x if columns is None else ()),
        y=given.y or (of_run.y if columns is None else ()),
        weights=given.weights or of_run.weights,
        columns=columns,
    )
