"""Columns or arrays of the data that are written beside predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError
from distsgd.data.sources.base import ArraySource, DataSource, ReadOptions
from distsgd.data.sources.converted import open_rows
from distsgd.data.sources.registry import open_path
from distsgd.data.sources.selection import named

_NAME = "name"
"""What stands for the paths of images."""


@dataclass(frozen=True)
class Kept:
    """What is kept of a data set.

    Parameters
    ----------
    kinds
        By name "text", "integer" or "float" of a table's columns, and "array" of arrays.
    source
        The table, where it is one.
    arrays
        The arrays, else.
    paths
        Those of images, in their folder.
    """

    kinds: Mapping[str, str]
    source: DataSource | None
    arrays: Mapping[str, ArraySource]
    paths: Sequence[str] = ()

    def rows(self, start: int, stop: int) -> dict[str, Sequence[Any] | Array]:
        """The values of these examples."""
        if not self.kinds:
            return {}
        if self.paths:
            return {_NAME: self.paths[start:stop]}
        if self.source is not None:
            from distsgd.data.sources.tables.table import kept_columns

            return dict(kept_columns(self.source, [*self.kinds], start, stop))
        found: dict[str, Array] = {}
        for name, one in self.arrays.items():
            found[name] = np.empty((stop - start, *one.shape[1:]), one.dtype)
            with open_rows({"": one}) as rows:
                rows.read([(start, stop)], {"": found[name]})
        return dict(found)


def kept_of(path: str, source: DataSource, options: ReadOptions, words: Sequence[str]) -> Kept:
    """What these words, names or patterns, keep of the data set of a file. Raises ConfigurationError for others."""
    if not words:
        return Kept({}, None, {})
    from distsgd.data.sources.tables.table import table_of

    x = source.arrays["x_train"]
    if (table := table_of(x)) is not None:
        fields = {one.name: one for one in table.fields}
        names = named(source.name, "keep", words, [*fields], "column")
        kinds = {name: _kind(fields[name]) for name in names}
        return Kept(kinds, source, {})
    from distsgd.data.sources.arrays.images import ImagesSource

    if isinstance(x, ImagesSource):
        if tuple(words) != (_NAME,):
            raise ConfigurationError(f"{source.name}: --keep {_NAME} keeps the paths of images, got {', '.join(words)}")
        return Kept({_NAME: "text"}, None, {}, x.names)
    listed = open_path(path, replace(options, columns=None, missing="refuse", x=(), y=(), weights=None, listed=True))
    names = named(source.name, "keep", words, [*listed.arrays], "array")
    for name in names:
        one = listed.arrays[name]
        if one.shape[:1] != x.shape[:1] or len(one.shape) > 2:
            raise ConfigurationError(
                f"{source.name}: expected one or several numbers an example, for {x.shape[0]:,} examples, to keep; "
                f"{name} has shape {one.shape}; leave it out of --keep"
            )
    return Kept(dict.fromkeys(names, "array"), None, {name: listed.arrays[name] for name in names})


def _kind(field: Any) -> str:
    if field.kind == "number" and field.dtype.kind == "f":
        return "float"
    return "integer" if field.is_integer and field.dtype.kind in "iu" and field.dtype != np.uint64 else "text"
