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
from distsgd.data.sources.selection import apart, gathered, roles

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
    given, options = options, _as_trained(options, names)
    found = _in_order(roles(where, names, options), given)
    sources = open_all(found)
    _check_trained(where, found, sources, options.columns)
    arrays = gathered(where, found, sources)
    described = _described(where, arrays, options)
    fill: tuple[float, ...] = ()
    if options.missing != "refuse" or any(source.absent for source in arrays.values()):
        from distsgd.data.sources.filled import filled

        arrays, fill = filled(where, arrays, options)
        described = _described(where, arrays, options)
    columns = options.columns
    if columns is None and (fill or _are_chosen(found, options)):
        columns = _columns(found, sources, options, fill)
    described = replace(described, columns=columns)
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
    y = options.y or (_but_ours(columns.target) if are_there else ())
    return replace(options, x=x, y=y, missing=columns.missing)


def _check_trained(where: str, found: Roles, sources: Mapping[str, ArraySource], columns: Columns | None) -> None:
    """Raises DataError where one of several inputs has another number of features than in training."""
    if columns is None or found["x_train"] != columns.inputs or len(columns.inputs) == 1:
        return
    for name in columns.inputs:
        shape, wanted = sources[name].shape, columns.width_of(name)
        if prod(shape[1:]) != wanted:
            raise DataError(
                f"{where}: {name}: expected {wanted} numbers an example, as in training, got shape {shape}; give the "
                "same array"
            )


def _in_order(found: Roles, given: ReadOptions) -> Roles:
    """The arrays in the order in which a trained model takes them, where a pattern means the same ones: that of another
    file may differ."""
    if given.columns is None:
        return found
    trained = {"x_train": (given.x, given.columns.inputs), "y_train": (given.y, given.columns.target)}
    result = dict(found)
    for role, (words, names) in trained.items():
        there = found.get(role, ())
        if set(there) == set(names) and apart(words, there) != there:
            result[role] = names
    return result


def _are_chosen(found: Roles, options: ReadOptions) -> bool:
    """Whether another file may have others, or in another order, for what the options say."""
    asked = {"x_train": options.x, "y_train": options.y}
    return any(words and (len(found.get(role, ())) > 1 or found.get(role) != words) for role, words in asked.items())


def _but_ours(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, or none where it is one that is used without an option."""
    return () if len(names) == 1 and names[0] in (*ALIASES, *ALIASES.values()) else names


def _columns(
    found: Roles, sources: Mapping[str, ArraySource], options: ReadOptions, fill: tuple[float, ...]
) -> Columns:
    """What a trained model keeps of arrays: their names, and what stands for missing values."""
    inputs_, several = found["x_train"], (name for name in found["x_train"] if len(sources[name].shape) > 1)
    widths = {name: prod(sources[name].shape[1:]) for name in several}
    return Columns(inputs_, {}, widths, fill, options.missing, found.get("y_train", ()))
