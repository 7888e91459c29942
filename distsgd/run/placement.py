"""Puts a data set into memory once per node, and turns it into training, validation and test examples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.core.runtime import check_memory, release_freed_memory
from distsgd.data.augmentation import ONE_PIXEL, check_images, parse_augmentation
from distsgd.data.checks import check_arrays, check_stored, is_mapped
from distsgd.data.examples import Examples, Signature
from distsgd.data.features import Ranges, Standardization, absent, range_of, unusual, unusual_targets
from distsgd.nn.task import true_classes
from distsgd.parallel import Communicator
from distsgd.run.compared.digests import changed_since, fingerprint
from distsgd.run.config import OPTIONS, TrainConfig
from distsgd.run.config_checks import number_of_classes

if TYPE_CHECKING:
    from distsgd.data.named.datasets import ArraySource, DataSource


@dataclass(frozen=True)
class Split:
    """Which rows of the training examples are trained on and which are for validation, and the choice in words."""

    training: Array
    validation: Array
    words: str

    def digest(self, train: Examples) -> str:
        """16 hexadecimal digits of the rows for validation and of the arrays that they are rows of."""
        rows = hashlib.sha256(self.validation.astype("<i8").tobytes())
        rows.update(fingerprint({"train": train}).encode())
        return rows.hexdigest()[:16]


@dataclass(frozen=True)
class Data:
    """The examples of a run; `split` says which of the training examples are for validation, where some are.

    `unused` are the names of the data set's arrays that it knows no use for, `notes` sentences about unusual inputs,
    and `changed` says what is wrong where arrays in memory that are the user's have changed since.
    """

    name: str
    train: Examples
    validation: Examples | None
    test: Examples | None
    signature: Signature
    fingerprint: str = ""
    split: Split | None = None
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    changed: Callable[[], DataError | None] = lambda: None


def load_data(communicator: Communicator, config: TrainConfig) -> Data:
    """The data set of the configuration, with its splits. Collective."""
    source = open_source(communicator, config.dataset, config.data_dir, config.seed, (config.validation, config.test))
    sets = {"train": place_split(communicator, source, "train")}
    names = {split: f"{source.name} ({split})" for split in ("train", "validation", "test")} | {"": source.name}
    for split in ("validation", "test"):
        path = getattr(config, split)
        if path is None:
            sets[split] = place_split(communicator, source, split)
            continue
        other = open_source(communicator, path, config.data_dir, config.seed)
        sets[split] = place_split(communicator, other, split if f"x_{split}" in other.arrays else "train")
        names[split] = other.name
    return data_of(communicator, config, source, names, sets)


def data_of(
    communicator: Communicator,
    config: TrainConfig,
    source: DataSource,
    names: dict[str, str],
    sets: dict[str, Examples | None],
) -> Data:
    """The sets of a data source, which are in memory, as `split_data` makes them. Collective."""
    if config.validation_last is not None:
        sets["validation"] = None
    data = replace(split_data(communicator, config, names, sets, source.num_classes), unused=source.unused)
    _check_hosts(communicator, data, sets)
    release_freed_memory()
    return data


def split_data(
    communicator: Communicator,
    config: TrainConfig,
    names: dict[str, str],
    sets: dict[str, Examples | None],
    num_classes: int | None = None,
    contents: str | None = None,
) -> Data:
    """Checks examples, splits validation off where none is given, and expands the training set. Collective; rank 0
    checks.

    names      what to call each set in errors, and under "" the whole
    contents   the fingerprint of sets that are the user's own arrays, which each rank has computed of its own
    """
    if config.scale is not None:
        sets = {key: None if part is None else replace(part, scale=config.scale) for key, part in sets.items()}
    train = sets["train"]
    assert train is not None, "there is always a training set"

    def check() -> tuple[int | None, str]:
        return _check(names, sets, num_classes, config), contents or fingerprint(sets)

    classes, found = communicator.on_root(check)
    validation, split = sets["validation"], None
    if validation is None:
        split = _checked_split(train, classes, config)
    elif config.validation_fraction not in (0.0, OPTIONS["validation_fraction"].default):
        raise ConfigurationError("validation_fraction: would change nothing beside validation data; leave it out")
    if split is not None:
        train, validation = train.subset(split.training), train.subset(split.validation)
    trained, shapes = train, Signature(train.x.shape[1:], train.y.shape[1:], classes, train.scale)
    signature = communicator.on_root(lambda: _measured(shapes, trained, config))

    def standardized(part: Examples) -> Examples:
        return replace(part, inputs=signature.inputs, targets=signature.targets)

    train = standardized(_augmentable(train, config))
    validation, test = (None if part is None else standardized(part) for part in (validation, sets["test"]))
    given = {key: part for key in ("validation", "test") if (part := sets[key]) is not None}
    named = bool(config.classes) or num_classes is not None

    def look() -> list[str]:
        found = [*_notes(trained, signature, config), None if named else absent(_rows_of(trained), classes)]
        doubts = {key: signature.doubt(part.x) for key, part in given.items()}
        found += [f"warning: {names[key]}: {doubt}" for key, doubt in doubts.items() if doubt]
        return [text for text in found if text]

    data = Data(names[""], train, validation, test, signature, found, split, notes=tuple(communicator.on_root(look)))
    return data if contents is None else replace(data, changed=changed_since(sets, contents))


def _notes(train: Examples, signature: Signature, config: TrainConfig) -> Iterator[str | None]:
    """Sentences about training numbers that are unusual. On rank 0."""
    dtype = np.dtype(config.dtype)
    if train.as_stored:
        return
    yield unusual(train.x, train.scale, dtype, standardize=config.standardize, scaled=config.scale is not None)
    if signature.num_classes is None and not config.standardize_targets:
        yield unusual_targets(train.y, dtype)


def _rows_of(train: Examples) -> Array:
    """The targets of the examples that are trained on."""
    return train.y if train.indices is None else train.y[train.indices]


def _measured(signature: Signature, train: Examples, config: TrainConfig) -> Signature:
    """With the range of the training inputs, and what standardizes them. On rank 0."""
    inputs = targets = None
    if config.standardize:
        if config.scale is not None:
            raise ConfigurationError("scale: would change nothing beside standardize; leave one of them out")
        inputs = Standardization.of(train.x, train.indices)
    if config.standardize_targets:
        check_values(signature.num_classes is None and "cross-entropy" not in config.loss)
        if config.output_activation != "linear":
            raise ConfigurationError(
                "standardize_targets: gives the targets the mean 0 and the spread 1, which the outputs of a "
                f"{config.output_activation} can't reach; leave one of them out"
            )
        targets = Standardization.of(train.y, train.indices)
    mean: tuple[float, ...] = ()
    if signature.num_classes is None and not (train.as_stored and (train.y.ndim > 2 or train.y.dtype.kind != "f")):
        mean = (targets or Standardization.of(train.y, train.indices)).mean
    if train.as_stored:  # what is unusual of tokens or of several inputs isn't known
        return replace(signature, inputs=inputs, targets=targets, target_mean=mean)
    return replace(
        signature,
        inputs=inputs,
        targets=targets,
        range=range_of(train.x),
        target_mean=mean,
        features=Ranges.of(train.x),
    )


def check_values(are_values: bool) -> None:
    """Raises ConfigurationError where targets that are to be standardized are no values."""
    if not are_values:
        raise ConfigurationError("standardize_targets: the targets are classes and not values; leave it out")


def _check_hosts(communicator: Communicator, data: Data, sets: Mapping[str, Examples | None]) -> None:
    """Raises DataError where a host has read other files than rank 0's. Collective."""
    speaks = communicator.node().is_root and not communicator.is_root
    mine = communicator.everywhere(lambda: fingerprint(sets) if speaks else data.fingerprint)
    for host, found in zip(communicator.hosts, communicator.allgather_object(mine), strict=True):
        if found != data.fingerprint:
            raise DataError(
                f"{data.name}: {host} has other contents than {communicator.hosts[0]}; give all hosts the same files"
            )


def open_source(
    communicator: Communicator, name: str, data_dir: str | None, seed: int = 0, others: Sequence[str | None] = ("",)
) -> DataSource:
    """The data set of this name or path, described, on every rank. Collective; rank 0 looks.

    `others` are data sets of the same command; where all are paths, data_dir is refused.
    """

    def read() -> DataSource:
        from distsgd.data.named.datasets import open_dataset
        from distsgd.data.sources.files import looks_like_path

        if data_dir is not None and all(one is None or looks_like_path(one) for one in (name, *others)):
            raise ConfigurationError(f"data_dir: is for named data sets, and {name} is a path; leave it out")
        try:
            return open_dataset(name, data_dir=data_dir, seed=seed)
        except OSError as error:
            raise DataError(f"could not read {name}: {error}") from None

    return communicator.on_root(read)


def place_split(communicator: Communicator, source: DataSource, split: str) -> Examples | None:
    """One split's examples, each array once per node; None where the data set hasn't that split. Collective."""
    if f"x_{split}" not in source.arrays:
        return None
    x, y, weights = (
        place(communicator, source.arrays[f"{kind}_{split}"]) if f"{kind}_{split}" in source.arrays else None
        for kind in ("x", "y", "weights")
    )
    assert x is not None
    assert y is not None, "a data set has targets for all of its inputs"
    return Examples(x, y, weights, source.scale)


def place(communicator: Communicator, source: ArraySource) -> Array:
    """The array in memory that the ranks of a node share: the mapped file where it can be mapped, else a copy that
    one rank reads for all. Collective."""
    node = communicator.node()
    mapped = communicator.everywhere(source.mapped)
    if all(communicator.allgather_object(mapped is not None)):
        assert mapped is not None
        from distsgd.core.bus_errors import watch

        watch([mapped], communicator.rank, communicator.abort)
        return np.asarray(mapped)
    from distsgd.parallel.shared_memory import shared_array

    communicator.everywhere(lambda: check_memory(source.nbytes, f"a data array of shape {source.shape}"))
    array, is_shared = shared_array(node, source.shape, source.dtype)

    def read() -> None:
        if node.is_root or not is_shared:
            source.read_into(array)

    communicator.everywhere(read)
    array.flags.writeable = False
    return array


@contextmanager
def watched(communicator: Communicator, data: Data) -> Iterator[None]:
    """Have a mapped file that gets shorter end all ranks with a sentence, and not with a signal alone."""
    sets = [part for part in (data.train, data.validation, data.test) if part is not None]
    arrays = [array for part in sets for array in (part.x, part.y, part.weights) if array is not None]
    if not any(map(is_mapped, arrays)):
        yield
        return
    from distsgd.core import bus_errors

    with bus_errors.watched(arrays, communicator.rank, communicator.abort):
        yield


def _check(
    names: dict[str, str], sets: dict[str, Examples | None], num_classes: int | None, config: TrainConfig
) -> int | None:
    """The number of classes. Raises DataError where arrays can't be trained on or sets don't fit each other."""
    train, dtype = sets["train"], np.dtype(config.dtype)
    assert train is not None
    named, values = number_of_classes(config.classes), config.loss == "squared-error"
    if None not in (named, num_classes) and named != num_classes:
        raise ConfigurationError(f"classes: {names['train']} has {num_classes} classes, got {named}; leave it out")

    def check(key: str, part: Examples, classes: int | None) -> int | None:
        if part.as_stored:
            return check_stored(names[key], part.x, part.y, part.weights, num_classes=classes, dtype=dtype)
        as_values = values and classes is None
        return check_arrays(
            names[key], part.x, part.y, part.weights, num_classes=classes, values=as_values, dtype=dtype
        )

    classes = check("train", train, named if values else named or num_classes)
    if values and train.y.dtype.kind != "f" and 0 <= train.y.min() <= train.y.max() <= 1:
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
        found = check(key, part, classes)
        if (found is None) != (classes is None):
            raise DataError(f"{names[key]}: {key} and training targets must both be integer labels or both be floats")
    return classes


def _augmentable(train: Examples, config: TrainConfig) -> Examples:
    """The training examples, expanded where the configuration says so. Raises ConfigurationError where they are no
    images, and it asks for what needs some."""
    shape, augmentation = train.x.shape[1:], parse_augmentation(config.augment)
    if augmentation is not None:
        augmentation.check(shape)
    if config.expand == "none":
        return train
    check_images(f"expand {config.expand}", shape, 1)
    return train.expanded(ONE_PIXEL)


def split_of(train: Examples, classes: int | None, config: TrainConfig) -> Split | None:
    """What the configuration splits off the training examples for validation, None for nothing, or for all of them."""
    from distsgd.data.splits import split_off

    total = len(train)
    if config.validation_last is not None:
        cut = total - config.validation_last
        words = f"the last {config.validation_last:,} of {total:,} training examples"
        return Split(np.arange(cut), np.arange(cut, total), words) if cut > 0 else None
    count = round(total * config.validation_fraction)
    labels = _labels(train.y, classes, config.loss)
    seed = config.seed if config.split_seed is None else config.split_seed
    rest, chosen = split_off(total, count, seed, labels)
    if not len(chosen) or not len(rest):
        return None
    option = "seed" if config.split_seed is None else "split-seed"
    shares = "" if labels is None else ", of each class its share"
    how = f"--validation-fraction {config.validation_fraction:g}, --{option} {seed}{shares}"
    return Split(rest, chosen, f"{len(chosen):,} of {total:,} training examples: {how}")


def _labels(y: Array, classes: int | None, loss: str) -> Array | None:
    """The class of each target, where targets are classes: labels, or probabilities that a cross-entropy is to take."""
    if y.dtype.kind != "f":
        return y if classes is not None and y.ndim == 1 else None
    if loss == "softmax-cross-entropy" and y.ndim == 2 and y.shape[1] > 1:
        return true_classes(y.T)
    if loss == "binary-cross-entropy" and y.size == len(y):
        return true_classes(y.reshape(1, -1))
    return None


def _checked_split(train: Examples, classes: int | None, config: TrainConfig) -> Split | None:
    """`split_of`. Raises ConfigurationError where nothing, or nothing of a class, is left to train on."""
    total, split, last = len(train), split_of(train, classes, config), config.validation_last
    if split is None and last is not None:
        raise ConfigurationError(
            f"validation_last: expected fewer than the {total} training examples, got {config.validation_last}"
        )
    if split is None and config.validation_fraction not in (0.0, OPTIONS["validation_fraction"].default):
        what = "leaves none to train on" if round(total * config.validation_fraction) else "is none"
        raise ConfigurationError(
            f"validation_fraction {config.validation_fraction:g}: {what} of {total} examples; give another part, or 0 "
            "for no validation"
        )
    labels = _labels(train.y, classes, config.loss)
    if split is None or labels is None:
        return split
    missing = np.setdiff1d(labels[split.validation], labels[split.training])
    if len(missing):
        option, remedy = (
            "validation_last",
            "shuffle them, or use --validation-fraction, which takes a share of each class",
        )
        if last is None:
            option, remedy = "validation_fraction", "split off fewer of them, or none (0), or give validation data"
        raise ConfigurationError(
            f"{option}: leaves no examples of class {', '.join(map(str, missing[:10]))} to train on; {remedy}"
        )
    return split
