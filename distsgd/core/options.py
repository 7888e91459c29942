"""Options: fields of a frozen dataclass, each declared once with `option`, and how their values are read and checked.

The command line, configuration files, `fit`'s keywords, `--help` and the documentation are all made from this.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from distsgd.core.components import check_name
from distsgd.core.errors import ConfigurationError
from distsgd.core.ranges import bounds, is_in

REQUIRED = MISSING
_SHOWN = 10
"""Values of a list that a message has."""
_CHARACTERS = 20_000
"""Characters of a text: 1,000 layers take less. To compile a pattern takes the square of its length."""
_BITS = 1024
"""Bits of a whole number: what is computed with it can still be written in a message."""
_METAVARS = {int: "N", float: "X", str: "TEXT"}
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


@dataclass(frozen=True)
class Option:
    """What one option is. Its name, type and default are those of the dataclass's field.

    help         what it does, and its default where the field's own doesn't show it
    group        the heading of this option and of those after it
    choices      the texts that it may be
    interval     where its numbers lie, as in mathematics
    check        called with the value and the name, raises ConfigurationError
    short        another name, such as --lr
    positional   whether the command line gives it without its name, before the others
    operational  whether it has no effect on what a run computes
    written      whether config.toml holds it
    code         whether it may name a user's own code
    path         whether it may be the path of a file or a folder, for a shell that completes it
    empty        whether it may be the empty text, which has a meaning then
    internal     values that a program sets, and no user gives
    most         of a list: how many values it may have, for each may be a layer or a metric
    """

    help: str
    group: str = ""
    choices: tuple[str, ...] = ()
    interval: str = ""
    check: Callable[[Any, str], object] | None = None
    short: str = ""
    positional: bool = False
    operational: bool = False
    written: bool = True
    code: bool = False
    path: bool = False
    empty: bool = False
    internal: tuple[str, ...] = ()
    most: int = 1000
    name: str = ""
    kind: Any = str
    default: Any = None

    @property
    def flag(self) -> str:
        """The name on the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def is_list(self) -> bool:
        """Whether it takes several values."""
        return get_origin(self.kind) is tuple

    @property
    def metavar(self) -> str:
        """What stands for a value in `--help`."""
        kinds = get_args(self.kind)[:1] if self.is_list else _alternatives(self.kind)
        return "|".join(word for one in kinds for word in (get_args(one) or [_METAVARS.get(one, "")]) if word)

    @property
    def text(self) -> str:
        """The help, with choices and the default where the help doesn't give them."""
        complete = all(choice in self.help for choice in self.choices)
        text = self.help if complete else f"{self.help} One of {', '.join(self.choices)}."
        values = self.default if self.is_list and self.default is not REQUIRED else (self.default,)
        if values in ((), (None,), (REQUIRED,)) or self.default is False or "Default" in self.help:
            return text
        shown = "on" if self.default is True else " ".join(map(str, values))
        return f"{text} Default: {shown}."

    def check_value(self, value: Any) -> None:
        """Raise ConfigurationError for a value that this option can't have; None is what wasn't given."""
        if value is None:
            return
        if isinstance(value, tuple) and len(value) > self.most:
            raise ConfigurationError(f"{self.name}: expected at most {self.most} values, got {len(value)}; give fewer")
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, str):
                if item or not self.empty:
                    _check_text(self.name, item)
            elif self.interval and not is_in(self.interval, item):
                what = kind_name(self.kind).replace("a number", "a finite number")
                raise ConfigurationError(f"{self.name}: expected {what}, {bounds(self.interval)}, got {shown(item)}")
            if self.choices and item not in self.internal:
                check_name(self.name, item, self.choices)
        if self.check is not None:
            self.check(value, self.name)


def option(default: Any, help: str, **settings: Any) -> Any:
    """A dataclass's field that is an option, with the settings of `Option`; REQUIRED in place of a default."""
    return field(default=default, metadata={"option": Option(help, **settings)})


@cache
def options_of(kind: Any) -> dict[str, Option]:
    """The options of a dataclass by name, each with its name, type, default and group."""
    kinds, found, group = get_type_hints(kind), {}, "Options"
    for one in fields(kind):
        declared: Option = one.metadata["option"]
        group = declared.group or group
        found[one.name] = replace(declared, group=group, name=one.name, kind=kinds[one.name], default=one.default)
    return found


def check_options(owner: Any) -> None:
    """Raise ConfigurationError for the first option of this object whose value can't be."""
    for name, declared in options_of(owner.__class__).items():
        declared.check_value(getattr(owner, name))


def read(value: Any, kind: Any, where: str, *, text: bool = False) -> Any:
    """`value` as the type `kind`: lists become tuples, whole numbers floats; anything else is refused.

    text   whether it is a word of the command line, where `None` is for what isn't set
    """
    if get_origin(kind) is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(read(item, get_args(kind)[0], where, text=text) for item in items)
    for alternative in _alternatives(kind):
        try:
            return _read(value, alternative, text)
        except (ValueError, OverflowError):
            continue
    raise ConfigurationError(f"{where}: expected {kind_name(kind)}, got {shown(value)}")


def shown(value: Any) -> str:
    """A value as a message has it: of a long list the first, of a number that Python doesn't write out its kind."""
    if isinstance(value, list | tuple) and len(value) > _SHOWN:
        return f"[{', '.join(map(shown, value[:_SHOWN]))}, …] of {len(value)} values"
    try:
        return repr(value)
    except (ValueError, RecursionError):
        return f"a very long {type(value).__name__}"


def _alternatives(kind: Any) -> list[Any]:
    """The types of a union, None first, or the type alone."""
    found = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return sorted(found, key=lambda one: one is not type(None))


def _read(value: Any, kind: Any, text: bool) -> Any:
    """`value` as one type that has no others inside. Raises ValueError."""
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    if kind is type(None) and (value is None or (text and value == "None")):
        return None
    if type(value) is int and value.bit_length() > _BITS:
        raise ValueError
    if kind in (int, float) and (text or (kind is float and type(value) is int)):
        return kind(value)
    if isinstance(kind, type) and isinstance(value, kind) and isinstance(value, bool) == (kind is bool):
        return value
    raise ValueError


def kind_name(kind: Any) -> str:
    """A type in words, as in an error."""
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list of {kind_name(get_args(kind)[0])}"
    if kind in _WORDS:
        return _WORDS[kind]
    return " or ".join(kind_name(one) for one in _alternatives(kind) if one is not type(None))


def _check_text(name: str, text: str) -> None:
    """Raises ConfigurationError for what can't be a file's name, or can't be stored in config.toml."""
    if len(text) > _CHARACTERS:
        raise ConfigurationError(f"{name}: expected at most {_CHARACTERS} characters, got {len(text)}; give fewer")
    if not text:
        raise ConfigurationError(f"{name}: expected a word or a name, got nothing; leave the option out")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ConfigurationError(f"{name}: expected text in UTF-8, got {text!r}; rename that file or folder") from None
    if "\0" in text:
        raise ConfigurationError(f"{name}: expected text without a zero byte, got {text!r}; leave it out")
