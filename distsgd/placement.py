"""Puts a data set into memory once per node, and turns it into training, validation and test examples."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from distsgd.communication import Communicator
from distsgd.communication.shared_memory import shared_array
from distsgd.config import TrainConfig
from distsgd.datasets import ArraySource, DataSource, check_arrays, open_dataset
from distsgd.device import Array
from distsgd.errors import ConfigurationError, DataError
from distsgd.examples import Examples, Signature
from distsgd.sampling import split_off


@dataclass(frozen=True)
class Data:
    """The examples of a run."""

    name: str
    train: Examples
    validation: Examples | None
    test: Examples | None
    signature: Signature


def load_data(communicator: Communicator, config: TrainConfig) -> Data:
    """The data set of the configuration, with its splits. Collective."""
    source = _open(communicator, config.dataset, config)
    arrays = {name: place(communicator, array) for name, array in source.arrays.items()}
    sets: dict[str, Examples | None] = {"train": _examples(arrays, "train", source), "validation": None, "test": None}
    for split in ("validation", "test"):
        path = getattr(config, split)
        if path is not None:
            other = _open(communicator, path, config)
            placed = {name: place(communicator, array) for name, array in other.arrays.items()}
            sets[split] = _examples(placed, "train", other)
        elif f"x_{split}" in arrays:
            sets[split] = _examples(arrays, split, source)
    if config.validation_last is not None:
        sets["validation"] = None
    return split_data(communicator, config, source.name, sets, source.num_classes)


def split_data(
    communicator: Communicator,
    config: TrainConfig,
    name: str,
    sets: dict[str, Examples | None],
    num_classes: int | None = None,
) -> Data:
    """Checks examples and splits validation off where none is given. Collective; rank 0 checks."""
    if config.scale is not None:
        sets = {key: None if part is None else replace(part, scale=config.scale) for key, part in sets.items()}
    train = sets["train"]
    assert train is not None, "there is always a training set"
    classes = communicator.on_root(lambda: _check(name, sets, num_classes))
    validation = sets["validation"]
    if validation is None:
        train, validation = _split(train, config)
    signature = Signature(train.x.shape[1:], train.y.shape[1:], classes, train.scale)
    return Data(name, train, validation, sets["test"], signature)


def _open(communicator: Communicator, name: str, config: TrainConfig) -> DataSource:
    return communicator.on_root(lambda: open_dataset(name, data_dir=config.data_dir, seed=config.seed))


def place(communicator: Communicator, source: ArraySource) -> Array:
    """The array in memory that the ranks of a node share: the mapped file where it can be mapped, else a copy that
    one rank reads for all. Collective."""
    node = communicator.node()
    mapped = communicator.everywhere(source.mapped)
    if all(communicator.allgather_object(mapped is not None)):
        assert mapped is not None
        return np.asarray(mapped)
    array, is_shared = shared_array(node, source.shape, source.dtype)

    def read() -> None:
        if node.is_root or not is_shared:
            source.read_into(array)

    communicator.everywhere(read)
    array.flags.writeable = False
    return array


def _examples(arrays: dict[str, Array], split: str, source: DataSource) -> Examples:
    return Examples(arrays[f"x_{split}"], arrays[f"y_{split}"], arrays.get(f"weights_{split}"), source.scale)


def _check(name: str, sets: dict[str, Examples | None], num_classes: int | None) -> int | None:
    """The number of classes. Raises DataError where arrays can't be trained on or sets don't fit each other."""
    train = sets["train"]
    assert train is not None
    classes = check_arrays(f"{name} (train)", train.x, train.y, train.weights, num_classes=num_classes)
    for key, part in sets.items():
        if part is None or part is train:
            continue
        if part.x.shape[1:] != train.x.shape[1:] or part.y.shape[1:] != train.y.shape[1:]:
            raise DataError(
                f"{name}: {key} examples have shape {part.x.shape[1:]} and targets {part.y.shape[1:]}, training "
                f"examples {train.x.shape[1:]} and {train.y.shape[1:]}; they must be alike"
            )
        found = check_arrays(f"{name} ({key})", part.x, part.y, part.weights, num_classes=classes)
        if (found is None) != (classes is None):
            raise DataError(f"{name}: {key} and training targets must both be integer labels or both be floats")
    return classes


def _split(train: Examples, config: TrainConfig) -> tuple[Examples, Examples | None]:
    total = len(train)
    if config.validation_last is not None:
        if config.validation_last >= total:
            raise ConfigurationError(
                f"validation_last: expected fewer than the {total} training examples, got {config.validation_last}"
            )
        cut = total - config.validation_last
        return train.subset(np.arange(cut)), train.subset(np.arange(cut, total))
    count = round(total * config.validation_fraction)
    if count == 0:
        return train, None
    rest, chosen = split_off(total, count, config.seed)
    if len(rest) == 0:
        raise ConfigurationError(
            f"validation_fraction {config.validation_fraction} leaves none of {total} examples to train on"
        )
    return train.subset(rest), train.subset(chosen)
