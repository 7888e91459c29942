"""From named arrays of any file to one DataSource, checked as far as headers allow, labels as int64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from distsgd.core.errors import DataError
from distsgd.data.checks import check_dtype, check_targets, check_weights
from distsgd.data.sources.base import ARRAY_NAMES, SPLITS, ArraySource, DataSource
from distsgd.data.sources.converted import converted

ALIASES = {"x": "x_train", "y": "y_train", "weights": "weights_train"}
ACCEPTED = (*ALIASES, *ARRAY_NAMES)
"""Names that an array of a user's file may have."""


Kept = TypeVar("Kept")


def canonical(name: str, arrays: Mapping[str, Kept]) -> dict[str, Kept]:
    """The arrays with `x` called `x_train` and so on; DataError where both are there."""
    found: dict[str, Kept] = {}
    for key, source in arrays.items():
        key = ALIASES.get(key, key)
        if key in found:
            short = key.removesuffix("_train")
            raise DataError(f"{name}: expected {short} or {key}, got both; remove one")
        found[key] = source
    return found


_KINDS = {"x", "y", "w", "weight", "weights", "sampleweight", "sampleweights", "input", "inputs", "target", "targets"}
_SPLITS = {"", "train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"}
_LOOK_ALIKE = {kind + split for kind in _KINDS for split in _SPLITS}
_LOOK_ALIKE |= {split + kind for kind in _KINDS for split in _SPLITS} - {"w"}


def check_names(name: str, keys: list[str]) -> None:
    """DataError where no key is one of ours, or one only looks like it: x_val would be ignored without notice."""
    if not any(key in ACCEPTED for key in keys):
        raise DataError(
            f"{name}: expected the arrays x and y, got {', '.join(keys[:8]) or 'none'}; give them these names, or say "
            "with --x and --y which they are"
        )
    for key in (one for one in keys if one not in ACCEPTED and "/" not in one):
        letters = "".join(filter(str.isalpha, key.lower()))
        if letters in _LOOK_ALIKE or key.lower().startswith(("x_", "y_", "weights_")):
            raise DataError(f"{name}: expected the arrays {', '.join(ACCEPTED)}, got {key!r}; rename or remove it")


def assemble(name: str, arrays: Mapping[str, ArraySource]) -> DataSource:
    """The data set of these arrays; DataError where they don't fit each other."""
    arrays = canonical(name, arrays)
    checked: dict[str, ArraySource] = {}
    for split in SPLITS:
        keys = [f"{kind}_{split}" for kind in ("x", "y", "weights")]
        x, y, weights = (arrays.get(key) for key in keys)
        if x is None and y is None and weights is None and split != "train":
            continue
        if x is None or y is None:
            missing = keys[0] if x is None else keys[1]
            there = ", ".join(arrays) or "none"
            raise DataError(f"{name}: expected the arrays {keys[0]} and {keys[1]}, got {there}; add {missing}")
        checked[keys[0]] = inputs(f"{name}: {keys[0]}", x)
        checked[keys[1]] = _targets(f"{name}: {keys[1]}", y, x.shape[0])
        if weights is not None:
            checked[keys[2]] = _weights(f"{name}: {keys[2]}", weights, x.shape[0])
    _check_splits(name, checked)
    return DataSource(name, checked, scale=255.0 if checked["x_train"].dtype == np.uint8 else 1.0)


def _native(source: ArraySource) -> ArraySource:
    return converted(source, source.dtype.newbyteorder("="))


def inputs(where: str, x: ArraySource, least: int = 1) -> ArraySource:
    check_dtype(where, x.dtype)
    if len(x.shape) < 2:
        raise DataError(f"{where}: expected shape (examples, features, …), got {x.shape}; reshape it, say to (n, 1)")
    if 0 in x.shape[1:] or x.shape[0] < least:
        raise DataError(f"{where}: expected at least one example and one feature, got shape {x.shape}; add data")
    # Not uint8, whose values are taken for pixels up to 255.
    return converted(x, np.int8) if x.dtype.kind == "b" else _native(x)


def _targets(where: str, y: ArraySource, examples: int) -> ArraySource:
    return _native(y) if check_targets(where, y, examples) else converted(y, np.int64, (examples,))


def _weights(where: str, weights: ArraySource, examples: int) -> ArraySource:
    check_weights(where, weights, examples)
    dtype = weights.dtype.newbyteorder("=") if weights.dtype.kind == "f" else np.float64
    return converted(weights, dtype, (examples,))


def _check_splits(name: str, arrays: Mapping[str, ArraySource]) -> None:
    """All splits need examples of one shape, one range of pixels, and one kind of target."""
    x_train, y_train = arrays["x_train"], arrays["y_train"]
    for split in SPLITS[1:]:
        x, y = arrays.get(f"x_{split}"), arrays.get(f"y_{split}")
        if x is None or y is None:
            continue
        if x.shape[1:] != x_train.shape[1:]:
            raise DataError(
                f"{name}: expected examples of shape {x_train.shape[1:]} as in x_train, "
                f"x_{split} has {x.shape[1:]}; reshape one"
            )
        if (x.dtype == np.uint8) != (x_train.dtype == np.uint8):
            raise DataError(
                f"{name}: expected {x_train.dtype} inputs as in x_train, x_{split} has {x.dtype}; uint8 is divided by "
                "255 and others are not, so save both alike"
            )
        if (y.dtype == np.int64) != (y_train.dtype == np.int64) or y.shape[1:] != y_train.shape[1:]:
            raise DataError(
                f"{name}: expected targets like y_train's ({y_train.dtype}, {y_train.shape[1:]} an example), "
                f"y_{split} has {y.dtype}, {y.shape[1:]}; save both alike"
            )
