"""Examples that a program gives, as arrays or as a data source: what they are, and how a run loads them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError, first_line
from distsgd.data.checks import as_array, stored_array
from distsgd.data.examples import Examples
from distsgd.parallel import Communicator
from distsgd.run.compared.digests import array_text, changed_since, fingerprint
from distsgd.run.compared.identity import Identity
from distsgd.run.config import TrainConfig
from distsgd.run.data.loading import Data, data_beside_arrays, data_of, refuse_beside_validation, split_data

if TYPE_CHECKING:
    from distsgd.data.columns import Missing
    from distsgd.data.sources.base import DataSource
    from distsgd.run.data.frames import Described


@dataclass(frozen=True)
class Given:
    """What fit was given to train, validate and test on.

    Parameters
    ----------
    source
        The training set where it is an opened data set, with its other splits.
    sets
        Those that are arrays, by their names.
    others
        Opened data sets to validate and test on, by the names of the sets.
    groups
        What group each training example is of.
    known
        What is known of the columns and classes of frames.
    """

    source: DataSource | None
    sets: dict[str, Examples | None]
    others: Mapping[str, DataSource]
    groups: Array | None = None
    known: Described | None = None

    def loader(self) -> Callable[[Communicator, TrainConfig], Data]:
        """What loads them in a run."""
        if self.source is None:
            return from_arrays(self.sets, self.groups, self.known, self.others)
        return from_source(self.source, self.sets, self.groups, self.others)

    def identify(self, identity: Identity) -> None:
        """Adds what ranks must be given alike."""
        if self.source is not None:
            add_source(identity, "train", self.source)
        for name, part in self.sets.items():
            if name not in self.others:
                add_examples(identity, name, part)
        for name, one in self.others.items():
            add_source(identity, name, one)
        if self.groups is not None:
            identity.say("group", array_text(self.groups))
        if self.known is not None:
            identity.say("columns", f"{self.known.columns}, {self.known.class_names}")


_OF_FRAMES = {"pandas", "polars", "pyarrow", "xarray"}
"""Packages whose frames and series have names or text."""


def has_columns(*given: Any) -> bool:
    """Whether one of these arrays, or of these tuples of them, is an object of a package of frames."""
    several = [one for part in given for one in (part if isinstance(part, tuple | list) and len(part) < 4 else (part,))]
    return any(type(one).__module__.partition(".")[0] in _OF_FRAMES for one in several)


def training_set(x: Any, y: Any, weights: Any) -> tuple[Any, ...] | DataSource | None:
    """The training examples as one tuple: x and y, or x alone where it is (x, y) or (x, y, weights), or opened."""
    if (source := source_of(x)) is not None:
        from distsgd.run.data.opened import asked_of

        return asked_of(source, y=y, weights=weights)
    if y is None:
        if weights is None or x is None or not isinstance(x, tuple | list) or len(x) != 2:
            if weights is not None:
                raise ConfigurationError("fit: weights go with x and y, or with x as (x, y)")
            return x  # type: ignore[no-any-return]
        return (*x, weights)
    if isinstance(x, tuple) and isinstance(y, tuple) and any(np.ndim(one) for one in x if hasattr(one, "shape")):
        raise ConfigurationError(
            "fit: x is (x, y) already, and y is a tuple, too; validation examples are given as validation=(x, y)"
        )
    return (x, y) if weights is None else (x, y, weights)


def sets_given(arrays: Mapping[str, Any], group: Any, config: TrainConfig, as_stored: bool) -> Given:
    """What fit was given, as examples and data sets. `as_stored` says how the model takes inputs."""
    sources = {name: found for name, one in arrays.items() if (found := source_of(one)) is not None}
    source, by_name = sources.pop("train", None), group if isinstance(group, str) else None
    if source is not None and (by_name is not None or config.missing != "refuse"):
        from distsgd.run.data.opened import asked_of, with_missing

        source = with_missing(asked_of(source, group=by_name), config.missing)
    given = {name: one for name, one in arrays.items() if source_of(one) is None}
    given, known = _without_frames(given, config, source, by_name)
    sets = {name: examples_given(one, name, as_stored) for name, one in given.items()}
    if source is None and sets["train"] is None:
        raise ConfigurationError("fit: give x and y, or for x (x, y) or (x, y, weights), got None")
    groups = groups_given(None if by_name is not None else group)
    if known is not None and known.groups is not None:
        groups = known.groups
    elif by_name is not None and source is None:
        raise ConfigurationError(
            f"fit: group: {by_name!r} is the name of a column, and x is no frame; give one entry an example"
        )
    if source is None and config.missing != "refuse" and (known is None or known.columns is None):
        from distsgd.run.data.filling import filled_sets
        from distsgd.run.data.frames import Described

        sets, columns, groups = filled_sets(sets, config.missing, groups)
        known = replace(known or Described(), columns=columns)
    if sources:
        from distsgd.run.data.opened import read_as

        columns, classes = (known.columns, known.class_names) if known is not None else (None, ())
        if source is not None:
            columns, classes = source.columns, source.class_names
        missing, weights = _asked(source, known, config)
        sources = {
            name: read_as(one, columns, classes, f"fit: {name}", missing, weights) for name, one in sources.items()
        }
    return Given(source, sets, sources, groups, known if source is None else None)


def _asked(source: DataSource | None, known: Described | None, config: TrainConfig) -> tuple[Missing, str | None]:
    """What is done with missing values of the training examples, and the name of the column of their weights."""
    if source is not None and source.opened is not None:
        return source.opened.options.missing, source.opened.options.weights
    return config.missing, None if known is None else known.weights


def _without_frames(
    given: dict[str, Any], config: TrainConfig, source: DataSource | None, group: str | None
) -> tuple[dict[str, Any], Described | None]:
    """The sets with arrays in place of frames, and what those were; None where there are none."""
    fills = source is not None and source.columns is not None and source.columns.fill
    if not has_columns(*given.values()) and not (fills and any(one is not None for one in given.values())):
        return given, None
    from distsgd.run.data import frames

    if source is None:
        return frames.given_frames(given, config.missing, config.classes, group)
    known = frames.Described(source.columns, source.class_names)
    return {
        name: one if one is None else frames.as_arrays(one, f"fit: {name} ", known) for name, one in given.items()
    }, known


def examples_given(arrays: tuple[Any, ...] | None, name: str, as_stored: bool) -> Examples | None:
    """The examples of one set of fit's, None where it isn't given."""
    if arrays is None:
        return None
    if not isinstance(arrays, tuple | list) or len(arrays) not in (2, 3):
        what = "give x and y, or for x" if name == "train" else f"{name} must be"
        advice = ""
        if name == "train" and isinstance(arrays, str | os.PathLike):
            advice = "; distsgd.open_dataset opens a data set by its name or path"
        elif name == "train" and (hasattr(arrays, "__getitem__") or hasattr(arrays, "dataset")):  # such as PyTorch's
            advice = "; give whole arrays, such as those that it is made of"
        raise ConfigurationError(f"fit: {what} (x, y) or (x, y, weights), got {type(arrays).__name__}{advice}")
    return examples_of(arrays, f"{name} ", "fit", as_stored)


def examples_of(arrays: Sequence[Any], name: str, of: str, as_stored: bool = False) -> Examples:
    """Examples from (x, y) or (x, y, weights), which messages of the function `of` call `name`x and so on."""
    if None in (kinds := [None if one is None else type(one) for one in arrays]):
        missing = ("x", "y", "weights")[kinds.index(None)]
        raise ConfigurationError(f"{of}: {name}{missing}: expected an array, got None; give one, or leave it out")
    parts = zip(("x", "y", "weights"), arrays, strict=False)
    read = stored_array if as_stored else as_array
    x, y, *rest = (read(array, f"{name}{part}", of) for part, array in parts)
    if x.ndim == 0 or y.ndim == 0:
        single = "a single number" if x.dtype != object else f"a {type(arrays[0]).__name__}; make it a list"
        part = f"{name}x" if x.ndim == 0 else f"{name}y"
        raise ConfigurationError(f"{of}: {part} must be an array of examples, got {single}")
    weights = rest[0] if rest else None
    if weights is not None and weights.shape == (len(weights), 1):
        weights = weights.reshape(len(weights))
    if as_stored:
        return Examples(x, y, weights, as_stored=True)
    if y.dtype.kind in "biu":
        y = y.reshape(len(y)).astype(np.int64, copy=False) if y.size == len(y) else y
    return Examples(x, y, weights, 255.0 if x.dtype == np.uint8 else 1.0)


def source_of(given: Any) -> DataSource | None:
    """A data source, such as `open_dataset` returns, whose module is then loaded already."""
    module = sys.modules.get("distsgd.data.sources.base")
    return given if module is not None and isinstance(given, module.DataSource) else None


def groups_given(group: Any) -> Array | None:
    """What group each example is of: numbers or texts (n,)."""
    if group is None:
        return None
    try:
        found = np.asarray(group)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            f"fit: group can't become an array ({first_line(error)}); give one entry an example"
        ) from None
    if found.dtype.kind == "O" and all(isinstance(one, str) for one in found.flat):
        found = found.astype(str)
    if found.ndim != 1 or found.dtype.kind not in "biuUS":
        raise ConfigurationError(
            f"fit: group: expected whole numbers or texts of shape (n,), one an example, got {found.dtype} of shape "
            f"{found.shape}"
        )
    return found


def from_arrays(
    sets: dict[str, Examples | None],
    groups: Array | None,
    known: Described | None = None,
    others: Mapping[str, DataSource] | None = None,
) -> Callable[[Communicator, TrainConfig], Data]:
    """Examples in memory, as they are: the ranks compare them before. `known` are their columns and classes; `others`
    are data sets to validate or test on."""
    names, contents = {"": "the arrays"} | {name: name for name in sets}, fingerprint(sets)
    if known is None and not others:
        return lambda communicator, config: split_data(
            communicator, config, names, sets, contents=contents, groups=groups
        )

    def load(communicator: Communicator, config: TrainConfig) -> Data:
        classes = len(known.class_names) or None if known is not None else None
        if not others:
            data = split_data(communicator, config, names, sets, classes, contents, groups=groups)
        else:
            found = sets | _placed(communicator, config, others, sets["train"])
            called = names | {name: one.name for name, one in others.items()}
            data = data_beside_arrays(communicator, config, called, found, classes, groups)
            data = replace(data, changed=changed_since(sets, contents))
        if known is None:
            return data
        signature = replace(data.signature, columns=known.columns, class_names=known.class_names)
        return replace(data, signature=signature, notes=(*known.notes, *data.notes))

    return load


def from_source(
    source: DataSource,
    sets: dict[str, Examples | None],
    groups: Array | None,
    others: Mapping[str, DataSource] | None = None,
) -> Callable[[Communicator, TrainConfig], Data]:
    """Its splits, each array once per host; those that are given as arrays, or of other data sets, take their place."""

    def load(communicator: Communicator, config: TrainConfig) -> Data:
        from distsgd.run.data.placement import place, place_split

        given = {name: part for name, part in sets.items() if part is not None}
        names = {split: f"{source.name} ({split})" for split in ("train", "validation", "test")} | {"": source.name}
        found = _placed(communicator, config, others or {}, None) | given
        if "validation" in found:
            refuse_beside_validation(config)
        names |= {name: one.name for name, one in (others or {}).items()}
        parts = {
            split: found.get(split) or place_split(communicator, source, split, config) for split in names if split
        }
        own = source.arrays.get("group_train")
        belongs = place(communicator, own) if own is not None else groups
        return data_of(communicator, config, source, names, parts, belongs)

    return load


def _placed(
    communicator: Communicator, config: TrainConfig, others: Mapping[str, DataSource], train: Examples | None
) -> dict[str, Examples | None]:
    """The examples of data sets to validate or test on, once per host. Collective."""
    from distsgd.run.data.placement import place_as

    found = {name: place_as(communicator, one, name, config) for name, one in others.items()}
    if train is None or not train.as_stored:
        return found
    return {name: None if one is None else replace(one, as_stored=True, scale=1.0) for name, one in found.items()}


def add_source(identity: Identity, name: str, source: DataSource) -> None:
    """Adds what ranks must be given alike of one opened data set."""
    identity.say(name, f"{source.name}: {', '.join(f'{key} {one.shape}' for key, one in source.arrays.items())}")


def add_examples(identity: Identity, name: str, part: Examples | None) -> None:
    """Adds what ranks must be given alike of one set."""
    arrays = {} if part is None else {"x": part.x, "y": part.y, "weights": part.weights}
    given = {key: array for key, array in arrays.items() if array is not None}
    identity.say(name, f"({', '.join(given)})" if given else "None")
    for key, array in given.items():
        identity.say(f"{name} {key}", array_text(array))
