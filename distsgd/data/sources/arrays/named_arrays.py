"""The data set in a file of named arrays, whatever its format: which are used, and what is done with missing values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import TypeAlias

from distsgd.core.errors import DataError
from distsgd.core.files import FileStamp
from distsgd.data.columns import Columns
from distsgd.data.sources.assemble import ALIASES, assemble, inputs
from distsgd.data.sources.base import ArraySource, DataSource, ReadOptions
from distsgd.data.sources.selection import gathered, roles

Roles: TypeAlias = Mapping[str, tuple[str, ...]]
"""The names of a file's arrays by what they are: x_train, y_train and so on."""


def used_names(found: Roles) -> list[str]:
    """The names of all arrays that are used, sorted."""
    return sorted({name for group in found.values() for name in group})


def one_by_one(open_array: Callable[[str, bool], ArraySource]) -> Callable[[Roles], dict[str, ArraySource]]:
    """What opens all arrays of a data set by a function that opens one: from its name, and whether whole numbers stay
    so, as labels do."""

    def open_all(found: Roles) -> dict[str, ArraySource]:
        return {
            name: open_array(name, role[0] == "y" and len(names) == 1)
            for role, names in found.items()
            for name in names
        }

    return open_all


def data_source(
    where: str,
    names: Sequence[str],
    options: ReadOptions,
    open_all: Callable[[Roles], Mapping[str, ArraySource]],
    stamps: Callable[[Roles], tuple[FileStamp, ...]],
) -> DataSource:
    """The data set in a file of named arrays.

    Parameters
    ----------
    where : str
        The file.
    names : sequence of str
        All of its arrays.
    options : ReadOptions
        Which of them are used, and what is done with missing values.
    open_all : callable
        Makes the sources of the arrays that are used, examples first, by their names.
    stamps : callable
        The files of the arrays that are used, as they are.

    Raises
    ------
    DataError
        Where there are no such arrays, or they don't fit each other.
    """
    if options.listed:
        return _listed(where, names, open_all)
    options = _as_trained(options, names)
    found = roles(where, names, options)
    sources = open_all(found)
    arrays = gathered(where, found, sources)
    described = _described(where, arrays, options)
    if options.missing != "refuse" or any(source.absent for source in arrays.values()):
        from distsgd.data.sources.filled import filled

        arrays, fill = filled(where, arrays, options)
        columns = _columns(found, sources, options, fill) if fill and options.columns is None else options.columns
        described = replace(_described(where, arrays, options), columns=columns)
    unused = tuple(name for name in names if name not in used_names(found))
    return replace(described, unused=unused if options.targets else (), files=stamps(found))


def _listed(where: str, names: Sequence[str], open_all: Callable[[Roles], Mapping[str, ArraySource]]) -> DataSource:
    """All arrays of a file by their own names."""
    arrays, notes = dict[str, ArraySource](), []
    for name in names:
        try:
            arrays |= open_all({"x_train": (name,)})
        except DataError as problem:
            notes.append(str(problem))
    return DataSource(where, arrays, notes=tuple(notes))


def _described(where: str, arrays: Mapping[str, ArraySource], options: ReadOptions) -> DataSource:
    if options.targets:
        return assemble(where, arrays)
    return DataSource(where, {"x_train": inputs(where, arrays["x_train"], least=0)})


def _as_trained(options: ReadOptions, names: Sequence[str]) -> ReadOptions:
    """The options with what a trained model takes in place of what isn't given. Where no array has the name of an
    input, these are the features of a table, put together."""
    columns = options.columns
    if columns is None:
        return options
    are_there = not set(names).isdisjoint(columns.inputs)
    x = options.x or (_but_ours(columns.inputs) if are_there else ())
    y = options.y or (_but_ours(columns.target) if options.targets and are_there else ())
    return replace(options, x=x, y=y, missing=columns.missing)


def _but_ours(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, or none where it is one that is used without an option."""
    return () if len(names) == 1 and names[0] in (*ALIASES, *ALIASES.values()) else names


def _columns(
    found: Roles, sources: Mapping[str, ArraySource], options: ReadOptions, fill: tuple[float, ...]
) -> Columns:
    """What a trained model keeps of arrays whose missing values are replaced."""
    inputs_, several = found["x_train"], (name for name in found["x_train"] if len(sources[name].shape) > 1)
    widths = {name: prod(sources[name].shape[1:]) for name in several}
    return Columns(inputs_, {}, widths, fill, options.missing, found.get("y_train", ()))
