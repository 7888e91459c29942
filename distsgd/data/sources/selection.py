"""Which arrays or columns of a file are inputs, targets and weights: as options name them, or as the file does.

A file of arrays, of whatever format, has a name for each: `roles` says what each is for, and `gathered` makes of those
that are used the arrays of a data set.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from distsgd.core.components import suggestion
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.data.sources.assemble import ACCEPTED, ALIASES, canonical, check_names
from distsgd.data.sources.base import SPLITS, ArraySource, ReadOptions
from distsgd.data.sources.beside import beside
from distsgd.data.sources.converted import converted

ALL = "all"
"""In place of names: all that nothing else names."""
NONE = ""
"""In place of the name of weights: none, though there is an array of that name."""
_SHOWN = 8
"""Names that a message has."""


def named(
    where: str, option: str, words: Sequence[str], names: Sequence[str], what: str, others: Collection[str] = ()
) -> tuple[str, ...]:
    """The names that the words of an option mean, in the order of the words, each once.

    A word is a name, `all`, or a pattern such as `pixel*`; or several of them with commas between. Raises
    ConfigurationError for a word that means none.

    Parameters
    ----------
    where : str
        The file, for messages.
    option : str
        The option's name.
    words : sequence of str
        What it was given.
    names : sequence of str
        All names of the file, in its order.
    what : str
        What has these names: "array" or "column".
    others : collection of str
        What other options name: `all` and patterns leave them out.

    Examples
    --------
    >>> named("f.csv", "x", ["age", "p*"], ["p2", "p1", "age", "price"], "column", others={"price"})
    ('age', 'p2', 'p1')
    """
    there, found = set(names), dict[str, None]()
    for one in apart(words, there):
        if one in there:
            matching: Iterable[str] = (one,)
        elif one == ALL or any(sign in one for sign in "*?["):
            matching = [name for name in names if name not in others and (one == ALL or fnmatchcase(name, one))]
        else:
            near = suggestion(one, names) or f"; it has {listed(names)}"
            raise ConfigurationError(f"{where}: no {what} is named {one!r} (--{option}){near}")
        if not matching:
            raise ConfigurationError(f"{where}: --{option} {one!r}: no {what} matches; it has {listed(names)}")
        found |= dict.fromkeys(matching)
    return tuple(found)


def apart(words: Iterable[str], names: Collection[str]) -> tuple[str, ...]:
    """The words of an option one by one, where several have commas between; a name may hold a comma."""
    return tuple(one for word in words for one in ((word,) if word in names else map(str.strip, word.split(","))))


def listed(names: Sequence[str]) -> str:
    """The first names, in quotes where one has spaces or commas, and how many more there are."""
    more = len(names) - _SHOWN
    shown = [repr(name) if not name or any(sign in name for sign in " ,'\t") else name for name in names[:_SHOWN]]
    return (", ".join(shown) or "none") + (f" and {more:,} more" if more > 0 else "")


def refuse_twice(where: str, given: Mapping[str, Iterable[str]]) -> None:
    """Raises ConfigurationError where two options name one array or column."""
    owners: dict[str, str] = {}
    for option, names in given.items():
        for name in names:
            if owners.setdefault(name, option) != option:
                raise ConfigurationError(
                    f"{where}: --{owners[name]} and --{option} both name {name!r}; give one of them"
                )


def roles(where: str, names: Sequence[str], options: ReadOptions) -> dict[str, tuple[str, ...]]:
    """The names of a file's arrays by what they are: x_train, y_train, weights_train, x_validation, … Several are side
    by side.

    Without options a file has x and y, or x_train and so on. With `x` or `y` there is a training set alone; the one
    that isn't given is the array of its own name. Without targets there is `x_train` alone.

    Raises ConfigurationError for names that aren't there, and DataError where the file doesn't say what is what.
    """
    if not options.targets:
        return {"x_train": _inputs(where, names, options)}
    weights = named(where, "weights", one_name(options.weights), names, "array")
    if options.x or options.y:
        group = named(where, "group", one_name(options.group), names, "array")
        y = named(where, "y", options.y, names, "array", {*weights, *group}) or _own(where, "y", names)
        if not weights and options.weights != NONE:
            weights = tuple(name for name in _by_own_name("weights", names) if name not in apart(options.x, names))
        x = named(where, "x", options.x, names, "array", {*y, *weights, *group}) or _own(where, "x", names)
        refuse_twice(where, {"x": x, "y": y, "weights": weights, "group": group})
        return {"x_train": x, "y_train": y} | ({"weights_train": weights} if weights else {})
    check_names(where, [name for name in names if name not in weights])
    without = {"weights_train"} if weights else {f"weights_{split}" for split in SPLITS if options.weights == NONE}
    left = [name for name in names if name in ACCEPTED and ALIASES.get(name, name) not in without]
    found = {role: (name,) for role, name in canonical(where, dict(zip(left, left, strict=True))).items()}
    refuse_twice(where, {role.partition("_")[0]: one for role, one in found.items()} | {"weights": weights})
    return found | ({"weights_train": weights} if weights else {})


def one_name(name: str | None) -> tuple[str, ...]:
    """The name of an option that takes a single one, as `named` takes and returns names."""
    return (name,) if name else ()


def _by_own_name(kind: str, names: Sequence[str]) -> tuple[str, ...]:
    return next(((name,) for name in (kind, f"{kind}_train") if name in names), ())


def _own(where: str, kind: str, names: Sequence[str]) -> tuple[str, ...]:
    """The array that has the name x or y. Raises ConfigurationError where there is none."""
    if found := _by_own_name(kind, names):
        return found
    what = "the inputs" if kind == "x" else "the targets"
    raise ConfigurationError(f"{where}: which arrays are {what}? it has {listed(names)}; give --{kind} NAME")


def _inputs(where: str, names: Sequence[str], options: ReadOptions) -> tuple[str, ...]:
    """The inputs alone, as a file to predict has them: the targets need not be there."""
    if options.x:
        others = {one for words in (options.y, one_name(options.weights)) for one in _there(names, words)}
        others |= {one for kind in ("y", "weights") for one in _by_own_name(kind, names)}
        return named(where, "x", options.x, names, "array", others)
    found = next(((name,) for name in ("x", "x_test") if name in names), ())
    if not found:
        raise DataError(f"{where}: expected an array x, got {listed(names)}; name it x, or give --x NAME")
    return found


def _there(names: Sequence[str], words: Sequence[str]) -> list[str]:
    """The names that are there of those that these words mean."""
    return [name for name in names if any(name == one or fnmatchcase(name, one) for one in apart(words, names))]


def gathered(
    where: str, found: Mapping[str, tuple[str, ...]], sources: Mapping[str, ArraySource]
) -> dict[str, ArraySource]:
    """The arrays of a data set, by what they are, of a file's arrays by their names.

    Parameters
    ----------
    where : str
        The file, for messages.
    found : mapping of str to tuple of str
        As `roles` returns it.
    sources : mapping of str to ArraySource
        The arrays that it names.

    Raises
    ------
    DataError
        Where arrays can't stand side by side.
    """
    arrays = {}
    for role, names in found.items():
        several = {name: sources[name] for name in names}
        arrays[role] = beside(where, several) if len(several) > 1 else sources[names[0]]
        if role == "x_train" and len(several) == 1 and len(arrays[role].shape) == 1 and names[0] not in ACCEPTED:
            arrays[role] = converted(arrays[role], arrays[role].dtype, (*arrays[role].shape, 1))
    return arrays
