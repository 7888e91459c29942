"""Frames that a program gives to fit, evaluate and predict: as arrays, with what a trained model keeps of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.data.columns import Columns
from distsgd.data.sources.base import ReadOptions
from distsgd.data.sources.tables.frames import apart, is_frame, labels_of, names_of, numbers_alone, table_of, texts_of

if TYPE_CHECKING:
    from distsgd.data.columns import Missing
    from distsgd.data.examples import Signature
    from distsgd.data.sources.base import DataSource


@dataclass(frozen=True)
class Described:
    """What is known of columns and classes; `notes` are sentences for the user. `weights` is the name of the column
    that they are in, and `groups` are those of the training examples, where they are a column."""

    columns: Columns | None = None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    weights: str | None = None
    groups: Array | None = None


def given_frames(
    sets: Mapping[str, Any], missing: Missing, classes: Sequence[str], group: str | None = None
) -> tuple[dict[str, Any], Described]:
    """The sets of fit with arrays in place of frames and of series of text, and what they were.

    The training set says which columns there are, and in which order; the others are read as it is.
    """
    names = tuple(classes) if len(classes) > 1 else ()
    train, known = _described(sets["train"], "fit: train ", missing, names, group)
    found = {"train": train}
    for key, one in sets.items():
        if key == "train":
            continue
        found[key] = one if one is None else as_arrays(one, f"fit: {key} ", known)
    return found, known


def _described(
    given: Any, where: str, missing: Missing, names: tuple[str, ...], group: str | None
) -> tuple[Any, Described]:
    """The arrays of a training set, and its columns and classes."""
    x, *rest = given if isinstance(given, tuple | list) else (given,)
    if not is_frame(x):
        y, found = _labels(rest[0] if rest else None, names, f"{where}y")
        return (given if y is None else (x, y, *rest[1:])), Described(class_names=found)
    targets = _names(rest[0] if rest else None)
    weights = rest[1] if len(rest) > 1 else None
    by_name = isinstance(weights, str) or group is not None
    if missing in ("refuse", "zero") and not by_name and (targets or rest):
        # Numbers alone need no package but pandas.
        parts = apart(x, targets) if targets else (x, rest[0])
        # A column of this name has the weights, as in any table whose target is a column.
        own = apart(parts[0], ("weights",)) if parts is not None and targets and weights is None else None
        parts = parts if own is None or parts is None else (own[0], parts[1])
        plain = None if parts is None else numbers_alone(parts[0])
        if parts is not None and plain is not None:
            fill = (0.0,) * plain.shape[1] if missing == "zero" else ()
            columns = Columns(tuple(parts[0].columns), missing=missing, fill=fill, target=targets)
            labels, found = _labels(parts[1], names, f"{where}y")
            y = parts[1] if labels is None else labels
            return (plain, y, *(rest[1:] if own is None else (own[1],))), Described(columns, found)
    y = _separate(rest, 0)
    labels, found = _labels(y, names, f"{where}y")
    source = _source(x, where, _options(x, rest, missing, names, group=group))
    arrays = _arrays(source, y if labels is None else labels, _separate(rest, 1))
    groups = None if group is None else _read(source, "group")
    named = weights if isinstance(weights, str) else None
    return arrays, Described(source.columns, found or source.class_names, source.notes, named, groups)


def as_arrays(given: Any, where: str, known: Described) -> Any:
    """The arrays of further examples, whose columns and classes are known."""
    x, *rest = given if isinstance(given, tuple | list) else (given,)
    y, _ = _labels(rest[0] if rest else None, known.class_names, f"{where}y", fixed=True)
    if not is_frame(x) or known.columns is None:
        if known.columns is not None and known.columns.fill and rest:
            from distsgd.data.checks import as_array
            from distsgd.run.data.filling import filled_in

            x = filled_in(as_array(x, "x", where.partition(":")[0]), known.columns)
            return (x, rest[0] if y is None else y, *rest[1:])
        return given if y is None else (x, y, *rest[1:])
    missing: Missing = "drop" if known.columns.missing == "drop" else "refuse"
    if known.weights is not None and not isinstance(given, tuple | list):
        rest = [None, known.weights]  # as the training examples have them
    options = _options(x, rest, missing, known.class_names, known.columns)
    separate = _separate(rest, 0) if y is None else y
    return _arrays(_source(x, where, options), separate, _separate(rest, 1))


def inputs_of(x: Any, signature: Signature, where: str) -> Any:
    """The inputs of a frame, as the model's columns have them; anything else as it is."""
    if signature.columns is None or not is_frame(x):
        return x
    options = ReadOptions(columns=signature.columns, targets=False)  # each example has a prediction, or is refused
    return _read(_source(x, where, options), "x")


def targets_for(x: Any, y: Any, weights: Any, signature: Signature, where: str) -> tuple[Any, ...]:
    """(x, y) or (x, y, weights) as arrays, for a trained model."""
    known = Described(signature.columns, signature.class_names)
    if signature.columns is None and y is None and not is_frame(x):
        raise ConfigurationError(f"{where}y: expected targets, got None; give them")
    given = (x,) if y is None and weights is None else (x, y) if weights is None else (x, y, weights)
    found = as_arrays(given, where, known)
    return tuple(found)


def _options(
    frame: Any,
    rest: Sequence[Any],
    missing: Missing,
    names: tuple[str, ...],
    columns: Columns | None = None,
    group: str | None = None,
) -> ReadOptions:
    """What is asked of a frame: names of targets and weights, where they are its columns. Beside targets that are given
    all of its columns are inputs."""
    y, weights = (rest[k] if len(rest) > k else None for k in (0, 1))
    targets, others = _names(y), {one for one in (weights, group) if isinstance(one, str)}
    return ReadOptions(
        x=() if y is None or targets or columns else tuple(name for name in names_of(frame) if name not in others),
        y=targets,
        weights=weights if isinstance(weights, str) else None,
        group=group,
        missing=missing,
        classes=names,
        columns=columns,
        targets=y is None or bool(targets),
    )


def _names(y: Any) -> tuple[str, ...]:
    """The names of columns that this is; none of arrays."""
    if isinstance(y, str):
        return (y,)
    return tuple(y) if isinstance(y, list | tuple) and all(isinstance(one, str) for one in y) else ()


def _separate(rest: Sequence[Any], k: int) -> Any:
    """Targets or weights that are no names of columns."""
    one = rest[k] if len(rest) > k else None
    return None if _names(one) else one


def _labels(y: Any, names: tuple[str, ...], where: str, *, fixed: bool = False) -> tuple[Array | None, tuple[str, ...]]:
    """Labels of a series of text, and the names of its classes; None of anything else."""
    texts = None if y is None or isinstance(y, str) else texts_of(y)
    if texts is None:
        return None, ()
    if fixed and not names:
        raise DataError(f"{where}: holds text, and the training targets are none; give numbers")
    return labels_of(texts, names, where)


def _source(frame: Any, where: str, options: ReadOptions) -> DataSource:
    from distsgd.data.sources.registry import where_missing
    from distsgd.data.sources.tables.table import table_source

    name = f"{where}x"
    try:
        return table_source(table_of(frame, name), options)
    except ModuleNotFoundError as error:
        if error.name != "pyarrow":
            raise
        raise where_missing(f"{name}: a frame with other columns than numbers", "pyarrow", "tables") from None


def _arrays(source: DataSource, y: Any, weights: Any) -> tuple[Any, ...]:
    """The arrays of a frame, with targets and weights that were given beside it."""
    dropped = source.arrays["x_train"].shape[0]
    if y is None:
        y = _read(source, "y")
    elif len(y) != dropped and source.columns is not None and source.columns.missing == "drop":
        raise ConfigurationError("missing drop: leaves out rows of the frame; put the targets into it as a column")
    if weights is None and "weights_train" in source.arrays:
        weights = _read(source, "weights")
    x = _read(source, "x")
    return (x, y) if weights is None else (x, y, weights)


def _read(source: DataSource, kind: str) -> Array:
    from distsgd.data.sources.base import read_array

    return np.asarray(read_array(source.arrays[f"{kind}_train"]))
