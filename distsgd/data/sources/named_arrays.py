"""Which of a file's arrays are inputs, targets and weights: one rule for all formats that hold arrays by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from math import prod

from distsgd.core.components import suggestion
from distsgd.core.errors import DataError
from distsgd.core.files import FileStamp
from distsgd.data.columns import Columns
from distsgd.data.sources.assemble import ACCEPTED, ALIASES, assemble, canonical, check_names, inputs
from distsgd.data.sources.base import ArraySource, DataSource, ReadOptions

_SHOWN = 8


def listed(names: Iterable[str]) -> str:
    """The first of these names, for a message."""
    found = list(names)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return (", ".join(found[:_SHOWN]) or "none") + more


def matching(
    where: str, option: str, words: Sequence[str], names: Sequence[str], but: Iterable[str] = (), what: str = "array"
) -> list[str]:
    """The names that the words of an option mean.

    Parameters
    ----------
    where, option : str
        The file and the option, for messages.
    words : sequence of str
        Names, patterns such as `pixel*`, `all`, or several of these with commas between.
    names : sequence of str
        What there is.
    but : iterable of str
        The names that `all` and patterns leave out.
    what : str, default "array"
        What the names are of.

    Raises
    ------
    DataError
        Where a word means nothing that is there.
    """
    rest = [name for name in names if name not in set(but)]
    found: dict[str, None] = {}
    for word in words:
        for one in [word] if word in names else [part.strip() for part in word.split(",")]:
            hits = [one] if one in names else rest if one == "all" else [n for n in rest if fnmatchcase(n, one)]
            if not hits:
                if any(mark in one for mark in "*?["):
                    raise DataError(f"{where}: --{option} '{one}': no {what} matches; it has {listed(names)}")
                hint = suggestion(one, names) or f"; it has {listed(names)}"
                raise DataError(f"{where}: no {what} is named '{one}'{hint}")
            found |= dict.fromkeys(hits)
    return list(found)


Opener = Callable[[str, bool], ArraySource]
"""From a name, and whether whole numbers stay so, as labels do, to the source of this array, examples first."""


def data_source(
    where: str, names: Sequence[str], options: ReadOptions, open_array: Opener, files: tuple[FileStamp, ...]
) -> DataSource:
    """The data set in a file of named arrays.

    Parameters
    ----------
    where : str
        The file.
    names : sequence of str
        All of its arrays.
    options : ReadOptions
        With x, y and weights the arrays that these options name. Without them, and for each of them that isn't given
        beside the others, those that have our names.
    open_array : callable
        Makes the source of an array.
    files : tuple of FileStamp
        The files as they are.

    Raises
    ------
    DataError
        Where there are no such arrays, or they don't fit each other.
    """
    if options.columns is not None:
        options = replace(options, x=options.columns.inputs, y=options.columns.target if options.targets else ())
    if not options.targets:
        chosen = {"x_train": _inputs_alone(where, names, options)}
    elif options.x or options.y or options.weights:
        chosen = _named(where, names, options)
    else:
        check_names(where, [name for name in names if "/" not in name or name in ACCEPTED])
        chosen = canonical(where, {name: [name] for name in names if name in ACCEPTED})
    parts = {
        key: [open_array(name, key[0] == "y" and len(group) == 1) for name in group] for key, group in chosen.items()
    }
    arrays = {key: _as_one(where, key, chosen[key], sources) for key, sources in parts.items()}
    if not options.targets:
        described = DataSource(where, {"x_train": inputs(f"{where}: x", arrays["x_train"], least=0)})
    else:
        described = assemble(where, arrays)
    columns = None
    if options.missing != "refuse" or any(source.absent for source in arrays.values()):
        from distsgd.data.sources.filled import filled

        arrays, fill = filled(where, arrays, options)
        described = replace(described, arrays=_again(where, arrays, options))
        if fill:
            names_x, widths = chosen["x_train"], {}
            for name, source in zip(names_x, parts["x_train"], strict=True):
                if len(source.shape) > 1:
                    widths[name] = prod(source.shape[1:])
            target = tuple(chosen.get("y_train", ()))
            columns = Columns(tuple(names_x), {}, widths, fill, options.missing, target)
    used = {name for group in chosen.values() for name in group}
    unused = tuple(name for name in names if name not in used)
    return replace(described, unused=unused, columns=columns, files=files)


def _again(where: str, arrays: Mapping[str, ArraySource], options: ReadOptions) -> Mapping[str, ArraySource]:
    if not options.targets:
        return {"x_train": inputs(f"{where}: x", arrays["x_train"], least=0)}
    return assemble(where, arrays).arrays


def _inputs_alone(where: str, names: Sequence[str], options: ReadOptions) -> list[str]:
    if options.x:
        return matching(where, "x", options.x, names, (*options.y, options.weights or ""))
    for name in ("x", "x_test"):
        if name in names:
            return [name]
    raise DataError(f"{where}: expected an array x, got {listed(names)}; name it x, or give --x NAME")


def _named(where: str, names: Sequence[str], options: ReadOptions) -> dict[str, list[str]]:
    """The arrays of the training set that the options name, those without an option by our names."""
    weights = [] if options.weights is None else matching(where, "weights", [options.weights], names)
    if len(weights) > 1:
        raise DataError(f"{where}: expected one array of weights, got {listed(weights)}; give --weights NAME")
    y = matching(where, "y", options.y, names, weights) if options.y else _ours(where, "y", names)
    x = matching(where, "x", options.x, names, (*y, *weights)) if options.x else _ours(where, "x", names)
    for name in x:
        if name in (*y, *weights):
            raise DataError(f"{where}: {name} can't be input and target at once; leave it out of --x")
    if not weights:
        weights = [name for name in ("weights", "weights_train") if name in names and name not in (*x, *y)][:1]
    return {"x_train": x, "y_train": y} | ({"weights_train": weights} if weights else {})


def _ours(where: str, kind: str, names: Sequence[str]) -> list[str]:
    for name in (kind, ALIASES[kind]):
        if name in names:
            return [name]
    what = "the target" if kind == "y" else "the input"
    raise DataError(f"{where}: which array is {what}? it has {listed(names)}; give --{kind} NAME")


def _as_one(where: str, key: str, names: Sequence[str], sources: Sequence[ArraySource]) -> ArraySource:
    if len(sources) > 1:
        from distsgd.data.sources.side_by_side import side_by_side

        return side_by_side(where, dict(zip(names, sources, strict=True)))
    (source,) = sources
    if key == "x_train" and len(source.shape) == 1 and names[0] not in ACCEPTED:
        from distsgd.data.sources.converted import converted

        return converted(source, source.dtype, (source.shape[0], 1))  # one number an example is one feature
    return source
