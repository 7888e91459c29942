"""Data sets to score: which part of one, and which of its examples a run has trained on or held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.core.files import expanded
from distsgd.data.checks import check_rows
from distsgd.data.examples import Examples
from distsgd.data.sources.arrays.npy import NpySource
from distsgd.data.sources.base import DataSource, read_array
from distsgd.parallel import Communicator
from distsgd.run.compared.digests import digest_of_rows
from distsgd.run.data.placement import place_or_read
from distsgd.run.data.splitting import Split, split_of
from distsgd.run.files.records import ROWS
from distsgd.run.trained.predicting import in_use, looked_at
from distsgd.run.trained.scoring import check, score
from distsgd.run.trained.stored_model import StoredModel
from distsgd.training.metrics.base import Metric


def score_source(
    communicator: Communicator,
    stored: StoredModel,
    source: DataSource,
    wanted: str | None,
    rows: Callable[[], Array | None],
    warn: Callable[[str], object],
    names: tuple[str, ...] = (),
    metrics: Sequence[Metric] = (),
) -> tuple[str, int, dict[str, Any]]:
    """(which examples of a data set were scored, how many, their scores). Collective; rank 0 warns.

    rows   reads the rows that the run has held out, where they are kept; called on rank 0
    """
    signature, config = stored.signature, stored.config
    communicator.on_root(lambda: _check_names(source, signature.class_names))
    split, part = communicator.on_root(lambda: choose_split(stored, source, wanted))
    placed = place_or_read(communicator, source, part, check_rows(source.name, np.dtype(config.dtype)))
    assert placed is not None, "choose_split names a part that is there"
    with in_use(placed.x):
        examples = signature.examples(placed.x, placed.y, placed.weights)
        if part == "train" and split != "all":
            kept = communicator.on_root(rows) if stored.metadata.split is not None else None
            split, examples = communicator.everywhere(lambda: of_the_run(stored, source.name, examples, split, kept))
        communicator.on_root(lambda: check(stored, source.name, examples))
        if communicator.is_root and (doubt := signature.doubt(looked_at(examples.x))):
            warn(doubt)
        assert split is not None, "of_the_run says which"
        return split, len(examples), score(communicator, stored, examples, names, metrics)


def _check_names(source: DataSource, trained: Sequence[str]) -> None:
    """Raises DataError where the data have other names of classes than the model."""
    if source.class_names and trained and tuple(source.class_names) != tuple(trained):
        raise DataError(
            f"{source.name}: the model was trained on the classes {', '.join(trained[:8])}, got "
            f"{', '.join(source.class_names[:8])}; give examples of the same classes"
        )


def choose_split(stored: StoredModel, source: DataSource, wanted: str | None) -> tuple[str | None, str]:
    """(which examples to score, the part of the data set that they are in). Raises ConfigurationError where it hasn't
    any of that name."""
    there = [name.removeprefix("x_") for name in source.arrays if name.startswith("x_")]
    splits_off = stored.metadata.split is not None
    if wanted is None:
        if "test" in there:
            return "test", "test"
        return ("validation", "validation") if "validation" in there and not splits_off else (None, "train")
    if wanted not in ("test", "validation", "train", "all"):
        raise ConfigurationError(f"split: expected test, validation, train or all, got {wanted!r}")
    if wanted == "test" and "test" not in there:
        raise ConfigurationError(f"split: {source.name} has {', '.join(there)}, got {wanted!r}")
    own = wanted in there and not (wanted == "validation" and splits_off)  # a run with --fold takes its own part
    return wanted, wanted if own else "train"


def of_the_run(
    stored: StoredModel, name: str, examples: Examples, wanted: str | None, rows: Array | None
) -> tuple[str, Examples]:
    """The examples of the training part that the run trained on, or held out, if the data set is the run's own; by
    default those held out, and all examples of another data set.

    rows   those that were held out, where they are known
    """
    digest = stored.metadata.split
    split = None if digest is None else _split(stored, examples, rows)
    if split is None or not split.is_of(examples, digest):
        if wanted is None or (wanted == "train" and digest is None):
            return "all", examples
        why = "split nothing off"
        if digest is not None:
            why = "was trained on other data, or with other --x, --y or --weights"
            if rows is None:
                why += ", or split whole groups off, which only its run folder says (validation_rows.npy)"
        raise ConfigurationError(f"split: this run {why}, so that {name} has no {wanted} part of it; use --split all")
    part = split.training if wanted == "train" else split.validation
    return wanted or "validation", examples.subset(part)


def _split(stored: StoredModel, examples: Examples, rows: Array | None) -> Split | None:
    """What the run has split off, if these are its examples: the rows that it has kept, else computed again."""
    by_blocks = stored.config.shuffle_buffer is not None
    if rows is None:
        with suppress(ConfigurationError):  # such as of blocks that are longer than other data
            return split_of(examples, stored.signature.num_classes, stored.config)
        return None
    if not len(rows) or int(rows[-1]) >= len(examples):
        return None
    rest = np.ones(len(examples), bool)
    rest[rows] = False
    return Split(np.flatnonzero(rest), rows, "", by_blocks)


def rows_of_run(path: str, stored: StoredModel) -> Array | None:
    """The rows that a run has held out, from its folder; None where there are none, or they aren't as they were."""
    folder = expanded(path)
    if not folder.is_dir():  # a checkpoint, which is in a folder of the run's
        folder = folder.parent.parent
    try:
        found = read_array(NpySource.open(folder / ROWS))
    except DataError:
        return None
    right = found.ndim == 1 and found.dtype.kind in "iu" and digest_of_rows(found) == stored.metadata.validation_rows
    return found.astype(np.int64) if right else None


def read_for(stored: StoredModel, source: DataSource, y: Any = None, weights: Any = None) -> DataSource:
    """A data set that a program has opened, read as the model's training examples were; y and weights are names."""
    from distsgd.run.data.opened import asked_of, read_as

    signature, config = stored.signature, stored.config
    found = asked_of(source, of="evaluate", y=y, weights=weights)
    return read_as(found, signature.columns, signature.class_names, "evaluate", config.missing, config.weights)
