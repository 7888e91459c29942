"""Examples that a program gives, as arrays or as a data source: what they are, and how a run loads them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError, first_line
from distsgd.data.checks import as_array, stored_array
from distsgd.data.examples import Examples
from distsgd.parallel import Communicator
from distsgd.run.compared.digests import array_text, fingerprint
from distsgd.run.compared.identity import Identity
from distsgd.run.config import TrainConfig
from distsgd.run.data.loading import Data, data_of, refuse_beside_validation, split_data

if TYPE_CHECKING:
    from distsgd.data.sources.base import DataSource
    from distsgd.run.data.frames import Described

_OF_FRAMES = {"pandas", "polars", "pyarrow", "xarray"}
"""Packages whose frames and series have names or text."""


def has_columns(*given: Any) -> bool:
    """Whether one of these arrays, or of these tuples of them, is an object of a package of frames."""
    several = [one for part in given for one in (part if isinstance(part, tuple | list) and len(part) < 4 else (part,))]
    return any(type(one).__module__.partition(".")[0] in _OF_FRAMES for one in several)


def training_set(x: Any, y: Any, weights: Any) -> tuple[Any, ...] | None:
    """The training examples as one tuple: x and y, or x alone where it is (x, y) or (x, y, weights)."""
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
    sets: dict[str, Examples | None], groups: Array | None, known: Described | None = None
) -> Callable[[Communicator, TrainConfig], Data]:
    """Examples in memory, as they are: the ranks compare them before. `known` are their columns and classes."""
    names, contents = {"": "the arrays"} | {name: name for name in sets}, fingerprint(sets)
    if known is None:
        return lambda communicator, config: split_data(
            communicator, config, names, sets, contents=contents, groups=groups
        )

    def load(communicator: Communicator, config: TrainConfig) -> Data:
        data = split_data(communicator, config, names, sets, len(known.class_names) or None, contents, groups=groups)
        signature = replace(data.signature, columns=known.columns, class_names=known.class_names)
        return replace(data, signature=signature, notes=(*known.notes, *data.notes))

    return load


def from_source(
    source: DataSource, sets: dict[str, Examples | None], groups: Array | None
) -> Callable[[Communicator, TrainConfig], Data]:
    """Its splits, each array once per host; those that are given as arrays take their place."""

    def load(communicator: Communicator, config: TrainConfig) -> Data:
        from distsgd.run.data.placement import place_split

        given = {name: part for name, part in sets.items() if part is not None}
        if "validation" in given:
            refuse_beside_validation(config)
        names = {split: f"{source.name} ({split})" for split in ("train", "validation", "test")} | {"": source.name}
        found = {
            split: given.get(split) or place_split(communicator, source, split, config) for split in names if split
        }
        return data_of(communicator, config, source, names, found, groups)

    return load


def add_examples(identity: Identity, name: str, part: Examples | None) -> None:
    """Adds what ranks must be given alike of one set."""
    arrays = {} if part is None else {"x": part.x, "y": part.y, "weights": part.weights}
    given = {key: array for key, array in arrays.items() if array is not None}
    identity.say(name, f"({', '.join(given)})" if given else "None")
    for key, array in given.items():
        identity.say(f"{name} {key}", array_text(array))
