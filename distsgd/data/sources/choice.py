"""Which columns of a table, or arrays of a file, are inputs, targets, weights and groups: by names and patterns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from distsgd.core.components import suggestion
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.data.sources.base import ReadOptions

ALL = "all"
"""The word for all columns that are nothing else."""
_SHOWN = 10
"""Names that a sentence lists."""


@dataclass(frozen=True)
class Choice:
    """The names of the columns that are read."""

    x: tuple[str, ...]
    y: tuple[str, ...]
    weights: str | None = None
    group: str | None = None


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more if names else "none"


def choose(where: str, names: Sequence[str], options: ReadOptions, hidden: Iterable[str] = ()) -> Choice:
    """Which of a table's columns are what. Raises ConfigurationError where that can't be known.

    Without `options.x` all are inputs that are nothing else, but for the `hidden` ones. Without `options.x` and
    `options.y` there is a column y, and one of the name weights is the weights.
    """
    weights, group = (one and _one(where, option, one, names) for option, one in _single(options))
    if options.columns is not None:
        x = _trained(where, options.columns.inputs, names)
        y = _targets(where, names, options, options.columns.target) if options.targets else ()
        return Choice(x, y, weights, group)
    if weights is None and not options.x and not options.y and "weights" in names:
        weights = "weights"
    y = _targets(where, names, options, ("y",)) if options.targets else ()
    others = {weights, group, *y, *options.keep}
    if not options.targets:
        others |= {"y", *matching(where, "y", options.y, names, strict=False)}
    rest = [name for name in names if name not in others]
    x = tuple(name for name in rest if name not in set(hidden))
    if options.x and not (options.x == (ALL,) and ALL not in names):
        x = matching(where, "x", options.x, names)
        twice = [name for name in x if name in {weights, group, *y}]
        if twice:
            raise ConfigurationError(
                f"{where}: column {twice[0]} is an input and something else, too; leave it out of one of them"
            )
    if not x:
        raise DataError(f"{where}: expected a column of inputs beside {listed([*y])}, there is none; add one")
    return Choice(x, y, weights, group)


def matching(
    where: str, option: str, words: Sequence[str], names: Sequence[str], *, strict: bool = True
) -> tuple[str, ...]:
    """The names that words stand for, in the order of the words: whole names, patterns, or several with commas between.

    Raises ConfigurationError, if `strict`, for a word that no name matches.
    """
    found: dict[str, None] = {}
    known = set(names)
    for word in words:
        for part in [word] if word in known else word.split(","):
            one = part if part in known else part.strip()
            if one in known:
                found[one] = None
                continue
            pattern = any(letter in one for letter in "*?[")
            hits = [name for name in names if fnmatchcase(name, one)] if pattern else []
            if not hits and strict:
                if pattern:
                    raise ConfigurationError(f"{where}: --{option} {one!r}: no column matches; it has {listed(names)}")
                raise _no_column(where, one, names)
            found |= dict.fromkeys(hits)
    return tuple(found)


def _single(options: ReadOptions) -> Iterable[tuple[str, str | None]]:
    return (("weights", options.weights), ("group", options.group))


def _one(where: str, option: str, word: str, names: Sequence[str]) -> str:
    found = matching(where, option, (word,), names)
    if len(found) != 1:
        raise ConfigurationError(f"{where}: --{option} names one column, {word!r} stands for {listed(found)}; give one")
    return found[0]


def _targets(where: str, names: Sequence[str], options: ReadOptions, usual: tuple[str, ...]) -> tuple[str, ...]:
    if options.y:
        return matching(where, "y", options.y, names)
    missing = [name for name in usual if name not in names]
    if missing or not usual:
        raise ConfigurationError(f"{where}: which column is the target? it has {listed(names)}; give --y NAME")
    return usual


def _trained(where: str, inputs: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    known = set(names)
    missing = [name for name in inputs if name not in known]
    if missing:
        raise DataError(
            f"{where}: expected the columns that the model was trained on, there is no {listed(missing)}"
            f"{suggestion(missing[0], names)}; it has {listed(names)}; name them as they were"
        )
    return tuple(inputs)


def _no_column(where: str, name: str, names: Sequence[str]) -> ConfigurationError:
    hint = suggestion(name, names)
    return ConfigurationError(f"{where}: no column is named {name!r}{hint or f'; it has {listed(names)}'}")
