"""Which columns of a table are inputs, targets, weights and groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from distsgd.core.components import suggestion
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.data.sources.base import ReadOptions
from distsgd.data.sources.selection import apart, listed, named, one_name, refuse_twice


@dataclass(frozen=True)
class Choice:
    """The names of the columns that are read."""

    x: tuple[str, ...]
    y: tuple[str, ...]
    weights: str | None = None
    group: str | None = None


def choose(where: str, names: Sequence[str], options: ReadOptions, hidden: Iterable[str] = ()) -> Choice:
    """Which of a table's columns are what. Raises ConfigurationError where that can't be known.

    Without `options.x` all are inputs that are nothing else, but for the `hidden` ones. Without `options.y` the target
    is the column y, and without `options.weights` a column of the name weights has the weights.
    Those of a trained model say which are inputs.
    """
    weights, group = (_one(where, option, names, getattr(options, option)) for option in ("weights", "group"))
    inputs = apart(options.x, names) if options.columns is None else options.columns.inputs
    by_name = options.weights is None and (options.targets or options.columns is None)
    if by_name and "weights" in names and "weights" not in (*inputs, *options.y):
        weights = "weights"
    if options.columns is not None:
        if options.x:
            raise ConfigurationError(
                f"{where}: x: the model takes the columns that it was trained on, by their names; leave it out"
            )
        x = _trained(where, options.columns.inputs, names)
        weights = weights if options.targets else None
        y = _targets(where, names, options, options.columns.target) if options.targets else ()
        return Choice(x, y, weights, group)
    y = _targets(where, names, options, ("y",)) if options.targets else ()
    others = {one for one in (weights, group, *y, *options.keep) if one is not None}
    if not options.targets:
        others |= ({"y", *apart(options.y, names)} - {*apart(options.x, names)}) & {*names}
    excluded = {*others, *hidden}
    x = named(where, "x", options.x, names, "column", excluded)
    refuse_twice(where, {"x": x, "y": y, "weights": one_name(weights), "group": one_name(group)})
    x = x or tuple(name for name in names if name not in excluded)
    if not x:
        raise DataError(f"{where}: expected a column of inputs beside {listed([*y])}, there is none; add one")
    return Choice(x, y, weights, group)


def _one(where: str, option: str, names: Sequence[str], word: str | None) -> str | None:
    if not word:
        return None
    found = named(where, option, (word,), names, "column")
    if len(found) != 1:
        raise ConfigurationError(f"{where}: --{option} names one column, {word!r} stands for {listed(found)}; give one")
    return found[0]


def _targets(where: str, names: Sequence[str], options: ReadOptions, usual: tuple[str, ...]) -> tuple[str, ...]:
    if options.y:
        found = named(where, "y", options.y, names, "column")
        of_pattern = set(found) == set(usual) and apart(options.y, names) != found
        return usual if of_pattern else found
    if options.columns is not None and usual and not {*usual} <= {*names}:
        raise ConfigurationError(
            f"{where}: the model was trained on the target {listed(usual)}, and there is no such column; it has "
            f"{listed(names)}; give --y NAME"
        )
    if not usual or not {*usual} <= {*names}:
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
