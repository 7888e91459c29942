"""Which of a file's arrays are inputs, targets and weights: one rule for all formats that hold arrays by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from math import prod

from distsgd.core.components import suggestion
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.core.files import FileStamp
from distsgd.data.columns import Columns
from distsgd.data.sources.assemble import ACCEPTED, ALIASES, assemble, canonical, check_names, inputs
from distsgd.data.sources.base import ARRAY_NAMES, ArraySource, DataSource, ReadOptions

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
    ConfigurationError
        Where a word means nothing that is there.
    """
    there, left_out = set(names), set(but)
    rest = [name for name in names if name not in left_out]
    found: dict[str, None] = {}
    for word in words:
        for one in [word] if word in there else [part.strip() for part in word.split(",")]:
            hits = [one] if one in there else rest if one == "all" else [n for n in rest if fnmatchcase(n, one)]
            if not hits:
                if any(mark in one for mark in "*?["):
                    raise ConfigurationError(f"{where}: --{option} '{one}': no {what} matches; it has {listed(names)}")
                hint = suggestion(one, names) or f"; it has {listed(names)}"
                raise ConfigurationError(f"{where}: no {what} is named '{one}'{hint}")
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
    chosen = chosen_names(where, names, options)
    parts = {
        key: [open_array(name, key[0] == "y" and len(group) == 1) for name in group] for key, group in chosen.items()
    }
    arrays = {key: _as_one(where, key, chosen[key], sources) for key, sources in parts.items()}
    if not options.targets:
        described = DataSource(where, {"x_train": inputs(f"{where}: x", arrays["x_train"], least=0)})
    else:
        described = assemble(where, arrays)
    columns = None
    missing = options.missing if options.columns is None else options.columns.missing
    if missing != "refuse" or any(source.absent for source in arrays.values()):
        from distsgd.data.sources.filled import filled

        arrays, fill = filled(where, arrays, options)
        described = replace(described, arrays=_again(where, arrays, options))
        if fill:
            names_x, widths = chosen["x_train"], {}
            for name, source in zip(names_x, parts["x_train"], strict=True):
                if len(source.shape) > 1:
                    widths[name] = prod(source.shape[1:])
            target = tuple(chosen.get("y_train", ()))
            columns = Columns(tuple(names_x), {}, widths, fill, missing, target)
    used = {name for group in chosen.values() for name in group}
    unused = tuple(name for name in names if name not in used)
    return replace(described, unused=unused, columns=columns, files=files)


def chosen_names(where: str, names: Sequence[str], options: ReadOptions) -> dict[str, list[str]]:
    """The names of a file's arrays by what they are: x_train, y_train and so on; several stand side by side.

    With x or y there is a training set alone. Raises DataError and ConfigurationError as `data_source` does.
    """
    if (columns := options.columns) is not None:
        x, y = (_unless_ours(one) for one in (columns.inputs, columns.target))
        options = replace(options, x=options.x or x, y=options.y or y)
    if not options.targets:
        return {"x_train": _inputs_alone(where, names, options)}
    weights = _weights(where, names, options)
    if options.x or options.y:
        return _named(where, names, options, weights)
    ours = [name for name in names if name in ACCEPTED and not (weights and name in _WEIGHTS)]
    check_names(where, [name for name in names if name not in weights and ("/" not in name or name in ACCEPTED)])
    chosen = canonical(where, {name: [name] for name in ours})
    for key, (name,) in chosen.items():
        _refuse_twice(where, {key[0]: [name], "weights": weights})
    return chosen | ({"weights_train": weights} if weights else {})


def _again(where: str, arrays: Mapping[str, ArraySource], options: ReadOptions) -> Mapping[str, ArraySource]:
    if not options.targets:
        return {"x_train": inputs(f"{where}: x", arrays["x_train"], least=0)}
    return assemble(where, arrays).arrays


def _inputs_alone(where: str, names: Sequence[str], options: ReadOptions) -> list[str]:
    if options.x:
        return matching(where, "x", options.x, names, (*options.y, options.weights or "", options.group or ""))
    for name in ("x", "x_test"):
        if name in names:
            return [name]
    raise DataError(f"{where}: expected an array x, got {listed(names)}; name it x, or give --x NAME")


def _unless_ours(names: tuple[str, ...]) -> tuple[str, ...]:
    """What to look for of a trained model's names: nothing where they are our own, which another file may spell x or
    x_train, or have of several splits."""
    return () if all(ALIASES.get(name, name) in ARRAY_NAMES for name in names) else names


_WEIGHTS = ("weights", "weights_train")


def _weights(where: str, names: Sequence[str], options: ReadOptions) -> list[str]:
    found = [] if options.weights is None else matching(where, "weights", [options.weights], names)
    if len(found) > 1:
        raise ConfigurationError(f"{where}: expected one array of weights, got {listed(found)}; give --weights NAME")
    return found


def _named(where: str, names: Sequence[str], options: ReadOptions, weights: list[str]) -> dict[str, list[str]]:
    """The arrays of the training set that the options name, those without an option by our names."""
    group = [] if options.group is None else matching(where, "group", [options.group], names)
    y = matching(where, "y", options.y, names, (*weights, *group)) if options.y else _ours(where, "y", names)
    x = matching(where, "x", options.x, names, (*y, *weights, *group)) if options.x else _ours(where, "x", names)
    _refuse_twice(where, {"x": x, "y": y, "weights": weights, "group": group})
    if not weights:
        weights = [name for name in _WEIGHTS if name in names and name not in (*x, *y)][:1]
    return {"x_train": x, "y_train": y} | ({"weights_train": weights} if weights else {})


def _refuse_twice(where: str, given: Mapping[str, Iterable[str]]) -> None:
    """Raises ConfigurationError where two options name one array."""
    owners: dict[str, str] = {}
    for option, names in given.items():
        for name in names:
            if owners.setdefault(name, option) != option:
                raise ConfigurationError(f"{where}: --{owners[name]} and --{option} both name '{name}'; leave one out")


def _ours(where: str, kind: str, names: Sequence[str]) -> list[str]:
    for name in (kind, ALIASES[kind]):
        if name in names:
            return [name]
    what = "the target" if kind == "y" else "the input"
    raise ConfigurationError(f"{where}: which array is {what}? it has {listed(names)}; give --{kind} NAME")


def _as_one(where: str, key: str, names: Sequence[str], sources: Sequence[ArraySource]) -> ArraySource:
    if len(sources) > 1:
        from distsgd.data.sources.side_by_side import side_by_side

        return side_by_side(where, dict(zip(names, sources, strict=True)))
    (source,) = sources
    if key == "x_train" and len(source.shape) == 1 and names[0] not in ACCEPTED:
        from distsgd.data.sources.converted import converted

        return converted(source, source.dtype, (source.shape[0], 1))  # one number an example is one feature
    return source
