"""What a run's examples have to be, what is unusual about them, and whether they can be augmented."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from distsgd.core.errors import ConfigurationError, DataError
from distsgd.data.augmentation import ONE_PIXEL, check_images, parse_augmentation
from distsgd.data.checks import check_rows, check_stored, checked, is_checked_later
from distsgd.data.examples import Examples, Signature
from distsgd.data.features import unusual, unusual_targets
from distsgd.data.targets import TargetSummary
from distsgd.parallel import Communicator
from distsgd.run.config import TrainConfig
from distsgd.run.config_checks import number_of_classes


def check_sets(
    names: dict[str, str], sets: dict[str, Examples | None], num_classes: int | None, config: TrainConfig
) -> tuple[int | None, TargetSummary]:
    """The number of classes, and what there is to say of the training targets. Raises DataError where arrays can't be
    trained on or sets don't fit each other. On rank 0.

    names, sets   what to call each set in messages, and the set
    num_classes   what the data set says itself
    """
    train, dtype = sets["train"], np.dtype(config.dtype)
    assert train is not None
    named, values = number_of_classes(config.classes), config.loss == "squared-error"
    if None not in (named, num_classes) and named != num_classes:
        raise ConfigurationError(f"classes: {names['train']} has {num_classes} classes, got {named}; leave it out")

    def check(key: str, part: Examples, classes: int | None) -> tuple[int | None, TargetSummary]:
        if part.as_stored:
            return check_stored(
                names[key], part.x, part.y, part.weights, num_classes=classes, dtype=dtype, later=part.check is not None
            )
        return checked(
            names[key], part.x, part.y, part.weights,
            num_classes=classes, values=values and classes is None, dtype=dtype, later=part.check is not None,
        )  # fmt: skip

    classes, targets = check("train", train, named if values else named or num_classes)
    if values and train.y.dtype.kind != "f" and targets.binary:
        classes = 2
    for key, part in sets.items():
        if part is None or part is train:
            continue
        if part.x.shape[1:] != train.x.shape[1:] or part.y.shape[1:] != train.y.shape[1:]:
            raise DataError(
                f"{names[key]}: {key} examples have shape {part.x.shape[1:]} and targets {part.y.shape[1:]}, training "
                f"examples {train.x.shape[1:]} and {train.y.shape[1:]}; they must be alike"
            )
        if part.scale != train.scale:
            raise DataError(
                f"{names[key]}: these inputs are divided by {part.scale:g}, the training inputs by {train.scale:g}; "
                "give both as the same kind of numbers, or set --scale"
            )
        found, _ = check(key, part, classes)
        if (found is None) != (classes is None):
            raise DataError(f"{names[key]}: {key} and training targets must both be integer labels or both be floats")
    return classes, targets


def checked_later(
    communicator: Communicator, names: dict[str, str], sets: dict[str, Examples | None], dtype: np.dtype[Any]
) -> dict[str, Examples | None]:
    """The sets, of which those in large mapped files are checked as they are read. Collective; rank 0 decides."""
    later = communicator.on_root(
        lambda: {key for key, part in sets.items() if part is not None and is_checked_later(part.x)}
    )
    return {
        key: replace(part, check=check_rows(names[key], dtype)) if part is not None and key in later else part
        for key, part in sets.items()
    }


def augmentable(train: Examples, config: TrainConfig) -> Examples:
    """The training examples, expanded where the configuration says so. Raises ConfigurationError where they are no
    images, and it asks for what needs some."""
    shape, augmentation = train.x.shape[1:], parse_augmentation(config.augment)
    if augmentation is not None:
        augmentation.check(shape)
    if config.expand == "none":
        return train
    check_images(f"expand {config.expand}", shape, 1)
    return train.expanded(ONE_PIXEL)


def notes_on(train: Examples, signature: Signature, config: TrainConfig) -> Iterator[str | None]:
    """Sentences about training numbers that are unusual. On rank 0."""
    dtype = np.dtype(config.dtype)
    if train.as_stored:
        return
    yield unusual(train.x, train.scale, dtype, standardize=config.standardize, scaled=config.scale is not None)
    if signature.num_classes is None and not config.standardize_targets:
        yield unusual_targets(train.y, dtype)
