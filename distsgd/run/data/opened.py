"""Data sets that a program has opened with `open_dataset`: what else is asked of their files, and how further ones are
read as the training examples were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.core.runtime import check_memory
from distsgd.data.columns import Columns, Missing
from distsgd.data.examples import Signature
from distsgd.data.named.datasets import reopened
from distsgd.data.sources.base import DataSource, read_array


def asked_of(source: DataSource, of: str = "fit", **names: Any) -> DataSource:
    """A training set with these of its columns, by name, as `y`, `weights` or `group`. Raises ConfigurationError where
    they are arrays, or the data set has no names."""
    given: dict[str, Any] = {}
    for option, name in names.items():
        if name is None:
            continue
        texts = (name,) if isinstance(name, str) else name
        several = option == "y" and isinstance(texts, list | tuple) and texts
        if not (isinstance(name, str) or several) or not all(isinstance(one, str) for one in texts):
            raise ConfigurationError(
                f"{of}: {option}: expected the name of a column of {source.name}, got {type(name).__name__}; put "
                "it into the data set, or give x and y as arrays"
            )
        given[option] = tuple(texts) if option == "y" else name
    if not given:
        return source
    found = reopened(source, **given)
    if found is None:
        raise ConfigurationError(f"{of}: {next(iter(given))}: {source.name} has no columns with names; leave it out")
    return found


def with_missing(source: DataSource, missing: Missing) -> DataSource:
    """A training set whose missing values are treated so. Raises ConfigurationError where it says otherwise itself."""
    own = None if source.opened is None else source.opened.options.missing
    if missing in ("refuse", own):
        return source
    if own is None or own != "refuse":
        why = "has no missing values" if own is None else f"was opened with missing={own!r}"
        raise ConfigurationError(f"fit: missing {missing}: {source.name} {why}; leave it out")
    return reopened(source, missing=missing) or source


def read_as(
    source: DataSource,
    columns: Columns | None,
    class_names: Sequence[str],
    where: str,
    missing: Missing = "refuse",
    weights: str | None = None,
) -> DataSource:
    """A further data set with the columns, classes and fill values of the training examples, as files have them that
    the command line names. `missing` and `weights` are what was asked of those.

    Raises ConfigurationError where it was opened with another `missing`, and DataError for other classes.
    """
    missing = missing if columns is None else columns.missing
    own = None if source.opened is None else source.opened.options
    if own is not None and own.missing not in ("refuse", missing):
        raise ConfigurationError(
            f"{where}: {source.name}: expected missing={missing!r}, as the training examples have it, got "
            f"{own.missing!r}; open both alike"
        )
    asked: dict[str, Any] = {}
    if columns is not None and columns != source.columns:
        from distsgd.data.sources.tables.table import TableArray

        asked["columns"] = columns
        if isinstance(source.arrays["x_train"], TableArray):
            asked["x"] = ()  # the columns say which
    if own is not None and own.missing != missing:
        asked["missing"] = missing
    if weights is not None and own is not None and own.weights is None:
        asked["weights"] = weights
    if class_names and own is not None and not own.classes and (asked or tuple(class_names) != source.class_names):
        asked["classes"] = tuple(class_names)
    found = reopened(source, **asked) if asked else source
    if found is None and "columns" in asked:
        raise ConfigurationError(
            f"{where}: {source.name} has no columns with names, and the training examples have; give such examples"
        )
    found = found or source
    if found.class_names and found.class_names != tuple(class_names):
        raise DataError(
            f"{where}: {found.name}: expected the classes {', '.join(class_names[:8]) or 'without names'}, got "
            f"{', '.join(found.class_names[:8])}; give examples of the same classes"
        )
    return found


def inputs_in(source: DataSource, signature: Signature, of: str) -> Array:
    """The inputs of a data set for a trained model, in memory. Raises ConfigurationError where it has several parts."""
    parts = [key.removeprefix("x_") for key in source.arrays if key.startswith("x_")]
    if len(parts) > 1:
        raise ConfigurationError(
            f"{of}: {source.name} has the parts {' and '.join(parts)}; give the inputs of one, such as "
            "distsgd.data.read_array(source.arrays['x_test'])"
        )
    columns = signature.columns
    if columns is not None and columns.missing == "drop":  # each example has a prediction, or is refused
        columns = replace(columns, missing="refuse")
    x = read_as(source, columns, signature.class_names, of).arrays["x_train"]
    check_memory(x.nbytes, f"{source.name} (the command predict reads files in blocks)")
    return read_array(x)
