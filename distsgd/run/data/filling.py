"""Missing values of arrays that a program has: replaced, or their examples dropped, as those of files are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.core.runtime import check_memory
from distsgd.data.columns import MOST_FEATURES, Columns, Missing
from distsgd.data.examples import Examples
from distsgd.data.sources.base import ArraySource, ReadOptions, read_array
from distsgd.data.sources.converted import ValuesSource
from distsgd.data.sources.filled import filled


def filled_sets(
    sets: Mapping[str, Examples | None], missing: Missing, groups: Array | None = None
) -> tuple[dict[str, Examples | None], Columns | None, Array | None]:
    """(the sets of `fit` with `missing` taken care of, what a trained model keeps of them, the groups of the training
    examples that are left).

    Raises ConfigurationError and DataError where that can't be.
    """
    arrays = {
        f"{kind}_{split}": array
        for split, part in sets.items() if part is not None
        for kind, array in (("x", part.x), ("y", part.y), ("weights", part.weights)) if array is not None
    }  # fmt: skip
    train = sets["train"]
    assert train is not None, "there is always a training set"
    if train.as_stored:
        raise ConfigurationError("missing: this model takes inputs as they are stored; fill them in, and leave it out")
    features = prod(train.x.shape[1:])
    if missing != "drop" and features > MOST_FEATURES:
        raise ConfigurationError(
            f"missing {missing}: is for at most {MOST_FEATURES:,} features, x has {features:,}; fill them in"
        )
    if groups is not None:
        if len(groups) != len(train.x):
            raise DataError(
                f"group: expected {len(train.x)} entries, one an example, got {len(groups)}; make both equally long"
            )
        arrays["group_train"] = np.arange(len(groups))
    found, fill = _filled("fit", arrays, ReadOptions(missing=missing))
    result: dict[str, Examples | None] = {}
    for split, part in sets.items():
        result[split] = None if part is None else _with(part, found, split)
    columns = Columns(("x",), {}, {"x": features}, fill, missing, ("y",)) if fill else None
    return result, columns, None if groups is None else groups[found["group_train"]]


def filled_in(x: Array, columns: Columns | None) -> Array:
    """Inputs with what the model keeps in place of missing values."""
    if columns is None or not columns.fill or x.dtype.kind != "f" or prod(x.shape[1:]) != len(columns.fill):
        return x
    return _filled("x", {"x_train": x}, ReadOptions(columns=columns))[0]["x_train"]


def without_missing(examples: Examples) -> Examples:
    """Examples to score by a model that was trained with missing='drop': those that lack a value are dropped."""
    given = {"x": examples.x, "y": examples.y, "weights": examples.weights}
    arrays = {f"{kind}_train": array for kind, array in given.items() if array is not None}
    found, _ = _filled("evaluate", arrays, ReadOptions(missing="drop"))
    return _with(examples, found, "train")


def _with(part: Examples, found: Mapping[str, Array], split: str) -> Examples:
    return replace(part, x=found[f"x_{split}"], y=found[f"y_{split}"], weights=found.get(f"weights_{split}"))


def _filled(
    where: str, arrays: Mapping[str, Array], options: ReadOptions
) -> tuple[dict[str, Array], tuple[float, ...]]:
    """The arrays, and what stands for a missing value; those that miss none are the same objects."""
    for key, array in arrays.items():
        split = key.partition("_")[2]
        x = arrays[f"x_{split}"]
        if array.ndim == 0 or len(array) != len(x):
            raise DataError(
                f"{where}: {split} {key.partition('_')[0]} has shape {array.shape}, x {x.shape}; give one entry an "
                "example"
            )
    sources: dict[str, ArraySource] = {key: ValuesSource.of(array) for key, array in arrays.items()}
    found, fill = filled(where, sources, options)
    result = {}
    for key, source in found.items():
        if source is sources[key] or (source.shape == arrays[key].shape and not np.isnan(arrays[key]).any()):
            result[key] = arrays[key]
            continue
        check_memory(source.nbytes, f"{key} with its missing values filled in")
        result[key] = read_array(source)
    return result, fill
