"""The examples of a run, from what is asked to sets that are in memory, checked, split and measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.core.runtime import release_freed_memory
from distsgd.data.checks import is_mapped, stays_in_files
from distsgd.data.examples import Examples, Signature
from distsgd.data.targets import TargetSummary, absent
from distsgd.parallel import Communicator
from distsgd.run.compared.digests import changed_since, fingerprint
from distsgd.run.config import OPTIONS, TrainConfig
from distsgd.run.data.checking import augmentable, check_sets, checked_later, notes_on
from distsgd.run.data.measuring import measured, sampled

if TYPE_CHECKING:
    from distsgd.data.sources.base import DataSource, ReadOptions
    from distsgd.run.data.splitting import Split
    from distsgd.run.data.streamed import Stream


@dataclass(frozen=True)
class Data:
    """The examples of a run; `split` says which of the training examples are for validation, where some are.

    `unused` are the names of the data set's arrays that it knows no use for, `notes` sentences about unusual inputs,
    and `changed` says what is wrong where arrays in memory that are the user's have changed since. `targets`, which is
    on rank 0 alone, has been found of all training targets, and counts labels of those that are trained on. `drawn_by`
    are the weights by which training examples are drawn, which then have none. `stream` reads
    the training examples while they are trained on, where they stay in their files.
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
    targets: TargetSummary | None = None
    drawn_by: Array | None = None
    stream: Stream | None = None


def load_data(communicator: Communicator, config: TrainConfig) -> Data:
    """The data set of the configuration, with its splits. Collective."""
    from distsgd.data.sources.registry import looks_like_path
    from distsgd.run.data.options import later, read_options
    from distsgd.run.data.placement import place, place_as, place_split

    options, others = read_options(config), (config.validation, config.test)
    source = open_source(communicator, config.dataset, config.data_dir, config.seed, others, options)
    sets = {"train": place_split(communicator, source, "train", config)}
    names = {split: f"{source.name} ({split})" for split in ("train", "validation", "test")} | {"": source.name}
    for split in ("validation", "test"):
        path = getattr(config, split)
        if path is None:
            sets[split] = place_split(communicator, source, split, config)
            continue
        classes = source.class_names or options.classes
        asked = later(options, source.columns, classes) if looks_like_path(path) else None
        other = open_source(communicator, path, config.data_dir, config.seed, options=asked)
        if other.class_names and other.class_names != source.class_names:
            raise DataError(
                f"{other.name}: expected the classes of {source.name} "
                f"({', '.join(source.class_names[:8]) or 'without names'}), got {', '.join(other.class_names[:8])}; "
                "give examples of the same classes"
            )
        sets[split] = place_as(communicator, other, split, config)
        names[split] = other.name
    groups = place(communicator, source.arrays["group_train"]) if "group_train" in source.arrays else None
    return data_of(communicator, config, source, names, sets, groups)


def data_of(
    communicator: Communicator,
    config: TrainConfig,
    source: DataSource,
    names: dict[str, str],
    sets: dict[str, Examples | None],
    groups: Array | None = None,
) -> Data:
    """The sets of a data source, which are in memory or stay in their files, as `split_data` makes them. Collective."""
    if source.class_names and config.loss == "squared-error":
        raise ConfigurationError(
            f"loss: {source.name} has classes by name ({', '.join(source.class_names[:4])}, …), and squared-error "
            "takes values; leave it out"
        )
    if config.validation_last is not None or config.fold is not None:
        sets["validation"] = None
    classes = source.num_classes or len(source.class_names) or None
    data = split_data(communicator, config, names, sets, classes, groups=groups)
    signature = replace(data.signature, columns=source.columns, class_names=source.class_names)
    data = replace(data, signature=signature, unused=source.unused, notes=(*source.notes, *data.notes))
    _check_hosts(communicator, data, sets, config)
    data = _streamed(data, config)
    release_freed_memory()
    return data


def data_beside_arrays(
    communicator: Communicator,
    config: TrainConfig,
    names: dict[str, str],
    sets: dict[str, Examples | None],
    classes: int | None,
    groups: Array | None,
) -> Data:
    """Training examples that are a program's arrays, and others of data sets, which may stay in files. Collective."""
    data = split_data(communicator, config, names, sets, classes, groups=groups)
    _check_hosts(communicator, data, sets, config)
    release_freed_memory()
    return data


def _streamed(data: Data, config: TrainConfig) -> Data:
    """With what reads the training examples while they are trained on, where they aren't in memory."""
    if not stays_in_files(data.train.x):
        if config.readers != 1:
            raise ConfigurationError(f"readers: would change nothing, for {data.name} is in memory; leave it out")
        return data
    from distsgd.run.data.streamed import note_on_reading, stream_of

    stream = stream_of(data.name, data.train)
    note = None if stream is None else note_on_reading(stream, data.train, config)
    return replace(data, stream=stream, notes=data.notes if note is None else (*data.notes, note))


def split_data(
    communicator: Communicator,
    config: TrainConfig,
    names: dict[str, str],
    sets: dict[str, Examples | None],
    num_classes: int | None = None,
    contents: str | None = None,
    groups: Array | None = None,
) -> Data:
    """Checks examples, splits validation off where none is given, and expands the training set. Collective; rank 0
    checks.

    names      what to call each set in errors, and under "" the whole
    contents   the fingerprint of sets that are the user's own arrays, which each rank has computed of its own
    groups     what group each training example is of: no group is split
    """
    if config.scale is not None:
        sets = {key: None if part is None else replace(part, scale=config.scale) for key, part in sets.items()}
    sets = checked_later(communicator, names, sets, np.dtype(config.dtype))
    train = sets["train"]
    assert train is not None, "there is always a training set"

    targets: TargetSummary | None = None

    def check() -> tuple[int | None, str]:
        nonlocal targets
        classes, targets = check_sets(names, sets, num_classes, config)
        return classes, contents or fingerprint(sets, sampled=config.shuffle_buffer is not None)

    classes, found = communicator.on_root(check)
    validation, split = sets["validation"], _split_off(train, sets["validation"], classes, config, groups)
    if split is not None:
        targets = split.left_of(targets, train.y)
        train, validation = train.subset(split.training), train.subset(split.validation)
    trained, shapes = train, Signature(train.x.shape[1:], train.y.shape[1:], classes, train.scale)
    progressed = communicator.heartbeat.progressed
    signature, measuring = communicator.on_root(lambda: measured(shapes, trained, config, progressed))

    def standardized(part: Examples) -> Examples:
        return replace(part, inputs=signature.inputs, targets=signature.targets)

    weights, train = None, standardized(augmentable(train, config))
    if config.sampling == "weighted":
        from distsgd.run.data.ordering import drawn_by_weights

        train, weights = drawn_by_weights(train)
    validation, test = (None if part is None else standardized(part) for part in (validation, sets["test"]))
    named = bool(config.classes) or num_classes is not None

    def look() -> list[str]:
        assert targets is not None, "rank 0 has checked them"
        doubts = None if named else absent(targets, classes)
        return [*measuring, *_doubts(names, {**sets, "train": trained}, signature, config, doubts)]

    notes = tuple(communicator.on_root(look))
    data = Data(
        names[""], train, validation, test, signature, found, split, notes=notes, targets=targets, drawn_by=weights
    )
    return data if contents is None else replace(data, changed=changed_since(sets, contents))


def refuse_beside_validation(config: TrainConfig) -> None:
    """Raises ConfigurationError for what says which examples are split off: validation data are given."""
    for name in ("validation_last", "fold"):
        if getattr(config, name) is not None:
            raise ConfigurationError(f"{name}: would change nothing beside validation data; leave it out")


def _split_off(
    train: Examples, validation: Examples | None, classes: int | None, config: TrainConfig, groups: Array | None
) -> Split | None:
    """Which training examples are for validation; None for none. Raises ConfigurationError for options that would
    change nothing."""
    if validation is not None:
        refuse_beside_validation(config)
    elif config.validation_fraction or config.validation_last is not None or config.fold is not None:
        from distsgd.run.data.splitting import checked_split

        return checked_split(train, classes, config, groups)
    if groups is not None:
        raise ConfigurationError(
            "group: says which examples are split off together, and none are; give validation_fraction or fold too, or "
            "leave it out"
        )
    if validation is not None and config.validation_fraction not in (0.0, OPTIONS["validation_fraction"].default):
        raise ConfigurationError("validation_fraction: would change nothing beside validation data; leave it out")
    return None


def _doubts(
    names: dict[str, str],
    sets: dict[str, Examples | None],
    signature: Signature,
    config: TrainConfig,
    of_targets: str | None,
) -> Iterator[str]:
    """Sentences about examples that are unusual: those that are trained on, then others beside them. On rank 0."""
    for key in ("train", "validation", "test"):
        part = sets[key]
        if part is None:
            continue
        looked_at = sampled(part, config)
        if key == "train":
            yield from (text for text in (*notes_on(looked_at, signature, config), of_targets) if text)
        elif doubt := signature.doubt(looked_at.x):
            yield f"warning: {names[key]}: {doubt}"


def _check_hosts(
    communicator: Communicator, data: Data, sets: Mapping[str, Examples | None], config: TrainConfig
) -> None:
    """Raises DataError where a host has read other files than rank 0's. Collective."""
    speaks = communicator.node().is_root and not communicator.is_root
    by_samples = config.shuffle_buffer is not None
    mine = communicator.everywhere(lambda: fingerprint(sets, sampled=by_samples) if speaks else data.fingerprint)
    for host, found in zip(communicator.hosts, communicator.allgather_object(mine), strict=True):
        if found != data.fingerprint:
            raise DataError(
                f"{data.name}: {host} has other contents than {communicator.hosts[0]}; give all hosts the same files"
            )


def open_source(
    communicator: Communicator,
    name: str,
    data_dir: str | None,
    seed: int = 0,
    others: Sequence[str | None] = ("",),
    options: ReadOptions | None = None,
) -> DataSource:
    """The data set of this name or path, described, on every rank. Collective; rank 0 looks.

    `others` are data sets of the same command; where all are paths, data_dir is refused.
    """

    def read() -> DataSource:
        from distsgd.data.named.datasets import open_with
        from distsgd.data.sources.base import OpenOptions, ReadOptions
        from distsgd.data.sources.registry import looks_like_path

        if data_dir is not None and all(one is None or looks_like_path(one) for one in (name, *others)):
            raise ConfigurationError(f"data_dir: is for named data sets, and {name} is a path; leave it out")
        try:
            return open_with(name, OpenOptions(data_dir, seed), options or ReadOptions())
        except OSError as error:
            raise DataError(f"could not read {name}: {error}") from None

    return communicator.on_root(read)


@contextmanager
def in_use(communicator: Communicator, data: Data) -> Iterator[None]:
    """While the block runs, the training examples are read where they stay in their files, and a mapped file that gets
    shorter ends all ranks with a sentence, and not with a signal alone."""
    sets = [part for part in (data.train, data.validation, data.test) if part is not None]
    arrays = [array for part in sets for array in (part.x, part.y, part.weights) if array is not None]
    mapped = [array for array in arrays if not stays_in_files(array) and is_mapped(array)]
    with ExitStack() as stack:
        if data.stream is not None:
            stack.enter_context(data.stream.reading())
        if mapped:
            from distsgd.core import bus_errors

            stack.enter_context(bus_errors.watched(mapped, communicator.rank, communicator.abort))
        stored = [array for array in arrays if stays_in_files(array)]
        for array in stored:
            array.close()  # type: ignore[attr-defined]  # with the blocks that the start has looked at
            stack.callback(array.close)  # type: ignore[attr-defined]
        if stored:
            release_freed_memory()
        yield
