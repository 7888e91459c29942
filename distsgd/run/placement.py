"""Puts a data set into memory once per node, and turns it into training, validation and test examples."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from distsgd.core.device import Array, Device
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.core.runtime import check_memory, release_freed_memory
from distsgd.data.augmentation import ONE_PIXEL, check_images, parse_augmentation
from distsgd.data.examples import Examples, Signature, Standardization, range_of
from distsgd.data.sampling import split_off
from distsgd.data.sources.checks import check_arrays
from distsgd.parallel import Communicator
from distsgd.run.config import OPTIONS, TrainConfig, number_of_classes

if TYPE_CHECKING:
    from distsgd.data.sources.datasets import ArraySource, DataSource

_HASHED_INPUTS, _HASHED_BYTES = 4096, 1 << 30
_LARGE = 50.0
"""Inputs beyond this are reported."""
_MANY = 1000
"""From so many inputs on, as of images, the number of one says nothing."""


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

    `unused` are the names of the data set's arrays that it knows no use for, `notes` sentences about unusual inputs.
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


def load_data(communicator: Communicator, config: TrainConfig) -> Data:
    """The data set of the configuration, with its splits. Collective."""
    source = open_source(communicator, config.dataset, config.data_dir, config.seed)
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
    contents   the sets' fingerprint, where it is known
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
        split = split_of(train, classes, config)
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
    notes = communicator.on_root(lambda: unusual(trained.x, trained.scale, config))
    return Data(names[""], train, validation, test, signature, found, split, notes=notes)


def unusual(x: Array, scale: float, config: TrainConfig) -> tuple[str, ...]:
    """Sentences about training inputs that a network can hardly learn from as they are: by up to 4,096 rows."""
    if config.standardize or x.dtype == np.uint8:
        return ()
    rows = x[np.linspace(0, len(x) - 1, min(len(x), _HASHED_INPUTS)).astype(np.int64)]
    rows = rows.reshape(len(rows), -1).astype(np.float64) / scale
    low, high, spread = rows.min(axis=0), rows.max(axis=0), rows.std(axis=0)
    largest = np.maximum(np.abs(low), np.abs(high))
    steps = largest * np.finfo(config.dtype).eps  # what the dtype rounds to
    rounded = (spread > 0) & (steps > 0.01 * spread)
    large = (spread > 0) & (largest > _LARGE)
    if not (rounded | large).any():
        return ()
    worst = int(np.argmax(np.where(rounded if rounded.any() else large, largest, 0)))
    which = f"input {worst} lies" if len(low) < _MANY else "some inputs lie"
    text, remedy = "is not scaled", ""
    if rounded.any():
        text, remedy = f"{config.dtype} rounds it to steps of {steps[worst]:.1g}", "--dtype float64, or "
    note = f"warning: {which} between {low[worst]:g} and {high[worst]:g}, and {text}; {remedy}--standardize gives each "
    return (f"{note}input the mean 0 and the spread 1",)


def _measured(signature: Signature, train: Examples, config: TrainConfig) -> Signature:
    """With the range of the training inputs, and what standardizes them. On rank 0."""
    inputs = targets = None
    if config.standardize:
        if config.scale is not None:
            raise ConfigurationError("scale: would change nothing beside standardize; leave one of them out")
        inputs = Standardization.of(train.x, train.indices)
    if config.standardize_targets:
        if signature.num_classes is not None:
            raise ConfigurationError("standardize_targets: the targets are classes and not values; leave it out")
        targets = Standardization.of(train.y, train.indices)
    mean = () if signature.num_classes is not None else (targets or Standardization.of(train.y, train.indices)).mean
    return replace(signature, inputs=inputs, targets=targets, range=range_of(train.x), target_mean=mean)


def _check_hosts(communicator: Communicator, data: Data, sets: Mapping[str, Examples | None]) -> None:
    """Raises DataError where a host has read other files than rank 0's. Collective."""
    speaks = communicator.node().is_root and not communicator.is_root
    mine = communicator.everywhere(lambda: fingerprint(sets) if speaks else data.fingerprint)
    for host, found in zip(communicator.hosts, communicator.allgather_object(mine), strict=True):
        if found != data.fingerprint:
            raise DataError(
                f"{data.name}: {host} has other contents than {communicator.hosts[0]}; give all hosts the same files"
            )


def open_source(communicator: Communicator, name: str, data_dir: str | None, seed: int = 0) -> DataSource:
    """The data set of this name or path, described, on every rank. Collective; rank 0 looks."""

    def read() -> DataSource:
        from distsgd.data.sources.datasets import open_dataset

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
    if not any(map(_is_mapped, arrays)):
        yield
        return
    from distsgd.core import bus_errors

    with bus_errors.watched(arrays, communicator.rank, communicator.abort):
        yield


def on_device(communicator: Communicator, data: Data, device: Device, *, augmented: bool) -> Data:
    """The data set on the device, each array once, where all of it takes up to half of the free memory. Collective.

    On all ranks or on none, for they record the same graphs. Elsewhere minibatches are gathered on the host and sent;
    so are those of training images that are moved or mirrored, which the CPU does.
    """
    free = device.free_bytes()
    if free is None:
        return data
    sets = [part for part in (data.train, data.validation, data.test) if part is not None]
    arrays = {id(array): array for part in sets for array in (part.x, part.y, part.weights) if array is not None}
    place = (communicator.hosts[communicator.rank], device.bus)
    everyone = communicator.allgather_object((free, place))
    shares = Counter(where for _, where in everyone)
    if any(sum(array.nbytes for array in arrays.values()) > free // 2 // shares[where] for free, where in everyone):
        return data
    return communicator.everywhere(lambda: _copied(data, device, augmented))


def _copied(data: Data, device: Device, augmented: bool) -> Data:
    copies: dict[int, Array] = {}

    def put(array: Array) -> Array:
        if id(array) not in copies:
            copies[id(array)] = device.put(array)
        return copies[id(array)]

    def moved(part: Examples | None) -> Examples | None:
        if part is None or len(part.shifts) > 1:
            return part
        weights = None if part.weights is None else put(part.weights)
        return replace(part, x=put(part.x), y=put(part.y), weights=weights)

    train = data.train if augmented else moved(data.train)
    assert train is not None
    return replace(data, train=train, validation=moved(data.validation), test=moved(data.test))


def _check(
    names: dict[str, str], sets: dict[str, Examples | None], num_classes: int | None, config: TrainConfig
) -> int | None:
    """The number of classes. Raises DataError where arrays can't be trained on or sets don't fit each other."""
    train, dtype = sets["train"], np.dtype(config.dtype)
    assert train is not None
    said, values = number_of_classes(config.classes), config.loss == "squared-error"
    if None not in (said, num_classes) and said != num_classes:
        raise ConfigurationError(f"classes: {names['train']} has {num_classes} classes, got {said}; leave it out")

    def check(key: str, part: Examples, classes: int | None) -> int | None:
        as_values = values and classes is None
        return check_arrays(
            names[key], part.x, part.y, part.weights, num_classes=classes, values=as_values, dtype=dtype
        )

    classes = check("train", train, said if values else said or num_classes)
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


def _is_mapped(array: Array) -> bool:
    """Whether the array, or what it is a view of, is a file that is mapped into memory."""
    base: object = array
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    return isinstance(base, np.memmap)


def fingerprint(sets: Mapping[str, Examples | None]) -> str:
    """16 hexadecimal digits of shapes, dtypes, targets, weights and inputs of each set.

    Of inputs that are mapped or larger than 1 GiB, up to 4,096 evenly spread examples: reading all of them may take as
    long as an epoch.
    """
    digest = hashlib.sha256()
    for name, part in sets.items():
        if part is None:
            continue
        digest.update(f"{name} {part.x.shape} {part.x.dtype} {part.y.shape} {part.y.dtype} ".encode())
        inputs = part.x
        if _is_mapped(inputs) or inputs.nbytes > _HASHED_BYTES:
            inputs = inputs[np.linspace(0, len(inputs) - 1, min(len(inputs), _HASHED_INPUTS)).astype(np.int64)]
        for array in (inputs, part.y, part.weights):
            if array is not None:
                digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]


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
    """What the configuration splits off the training examples for validation, None for nothing."""
    total = len(train)
    if config.validation_last is not None:
        if config.validation_last >= total:
            raise ConfigurationError(
                f"validation_last: expected fewer than the {total} training examples, got {config.validation_last}"
            )
        cut = total - config.validation_last
        words = f"the last {config.validation_last:,} of {total:,} training examples"
        found = Split(np.arange(cut), np.arange(cut, total), words)
        _check_classes(train, classes, found)
        return found
    count = round(total * config.validation_fraction)
    if count == 0:
        return None
    labels = train.y if classes is not None and train.y.ndim == 1 and train.y.dtype.kind != "f" else None
    seed = config.seed if config.split_seed is None else config.split_seed
    rest, chosen = split_off(total, count, seed, labels)
    if len(rest) == 0:
        raise ConfigurationError(
            f"validation_fraction {config.validation_fraction} leaves none of {total} examples to train on"
        )
    option = "seed" if config.split_seed is None else "split-seed"
    shares = "" if labels is None else ", of each class its share"
    how = f"--validation-fraction {config.validation_fraction:g}, --{option} {seed}{shares}"
    return Split(rest, chosen, f"{len(chosen):,} of {total:,} training examples: {how}")


def _check_classes(train: Examples, classes: int | None, split: Split) -> None:
    """Raises ConfigurationError where a class has examples for validation, and none to train on."""
    if classes is None or train.y.dtype.kind == "f":
        return
    missing = np.setdiff1d(train.y[split.validation], train.y[split.training])
    if len(missing):
        raise ConfigurationError(
            f"validation_last: leaves no examples of class {', '.join(map(str, missing[:10]))} to train on; shuffle "
            "the examples, or use --validation-fraction, which takes a share of each class"
        )
