"""What ranks were given, in texts that can be compared: equal wherever the same thing is given.

A function is its code and what the code refers to, a dataclass its fields, an array its contents, and any other object
what pickle would keep of it. No text holds an address. Nothing here communicates.
"""

from __future__ import annotations

import copyreg
import enum
import functools
import types
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any, TypeAlias

import numpy as np

from distsgd.run.compared import digests

Parts: TypeAlias = Iterable[tuple[str, Any]]
"""Parts of an object, each after its place: (".rate", 0.1), ("[0]", …), (" (self)", …)."""
_MOST = 20_000
"""Texts of one argument; what has more is not compared."""
_WITHOUT_EFFECT = {"__repr__", "__str__", "__eq__", "__hash__", "__lt__", "__le__", "__gt__", "__ge__", "__setattr__",
                   "__delattr__", "__replace__", "__annotate__", "__annotate_func__"}  # fmt: skip
"""Methods that a dataclass makes, or that training doesn't call."""


class _TooMuch(Exception):
    """There are more texts than anybody would read."""


class Identity:
    """Texts by what they are of: {"model": "function loss, code 1a2b…", "model (global rate)": "0.1"}.

    unknown   what has no identity and can't be compared, with its kind
    """

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.unknown: list[str] = []
        self._described: set[tuple[int, str]] = set()
        """Globals and classes, each of which is described once."""
        self._open: list[int] = []
        """The objects around the one that is looked at."""
        self._kept: list[Any] = []
        """All that were looked at, or another object could get the number of one."""
        self._last = _MOST

    def add(self, name: str, value: Any) -> None:
        """Describes `value` under `name`."""
        before = len(self.texts)
        self._last = before + _MOST
        try:
            self._visit(name, value)
        except (_TooMuch, RecursionError):
            self._give_up(name, f"{digests.title(type(value))}, too large", before)
        except Exception as error:  # of the user's own code, such as a property
            self._give_up(name, f"{digests.title(type(value))}, raised {type(error).__name__}", before)

    def say(self, name: str, text: str) -> None:
        """Sets a text."""
        self.texts[name] = digests.short(text)

    def digest(self) -> str:
        """Of all texts."""
        return digests.digest("\0".join(f"{name}\0{text}" for name, text in self.texts.items()))

    def _give_up(self, name: str, kind: str, before: int) -> None:
        """Takes back the texts that were added, and says why."""
        for key in list(self.texts)[before:]:
            del self.texts[key]
        self._open.clear()
        self.say(name, self._unknown(name, kind))

    def _unknown(self, name: str, kind: str) -> str:
        """The text of what can't be compared."""
        self.unknown.append(f"{name} ({kind})")
        return f"{kind} (not compared)"

    def _visit(self, name: str, value: Any) -> None:
        if len(self.texts) >= self._last:
            raise _TooMuch
        text = digests.plain_text(value)
        if text is not None:
            self.say(name, text)
        elif id(value) in self._open:
            self.say(name, f"what it is in, {len(self._open) - self._open.index(id(value))} up")
        else:
            self._open.append(id(value))
            self._kept.append(value)
            text, parts = self._look(name, value)
            self.say(name, text)
            for place, part in parts:
                self._visit(name + place, part)
            self._open.pop()

    def _in_short(self, name: str, value: Any) -> str:
        """All that an item or a key of `name` is, in one text."""
        own = Identity()
        own.add(name, value)
        self.unknown += own.unknown
        return own.texts[name] if len(own.texts) == 1 else f"{own.texts[name]} {own.digest()}"

    def _titled(self, kind: type) -> str:
        """The name of a class."""
        return digests.title(kind)

    def _look(self, name: str, value: Any) -> tuple[str, Parts]:
        """(an object's own text, its parts): from what Python has to what the user has made."""
        title = digests.title(type(value))
        if isinstance(value, type):
            return f"class {digests.title(value)}", self._body(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return "bound method", _named({"self": value.__self__, "function": value.__func__})
        if isinstance(value, functools.partial):
            keywords = {key: value.keywords[key] for key in sorted(value.keywords)}
            return "partial", _named({"function": value.func, "arguments": value.args, **keywords})
        if isinstance(value, enum.Enum):
            return f"{type(value).__qualname__}.{value.name}", _named({"value": value.value})
        if isinstance(value, list | tuple):
            return self._sequence(value)
        if isinstance(value, Mapping):
            return self._mapping(name, value)
        if isinstance(value, AbstractSet):
            items = sorted(self._in_short(name, item) for item in value)
            return f"{title} {{{', '.join(items)}}}", self._body(type(value))
        if isinstance(value, np.ma.MaskedArray):
            return "masked array", _named({"data": value.data, "mask": np.ma.getmaskarray(value)})
        if (array := digests.as_array(value)) is not None:
            return digests.array_text(array), _named({"items": array.tolist()} if array.dtype.hasobject else {})
        if is_dataclass(value):
            return title, chain(self._body(type(value)), _fields(value))
        return self._other(name, value)

    def _sequence(self, value: list[Any] | tuple[Any, ...]) -> tuple[str, Parts]:
        texts = [digests.plain_text(item) for item in value]
        if type(value) in (list, tuple) and None not in texts:
            joined = ", ".join(map(str, texts)) + ("," if type(value) is tuple and len(value) == 1 else "")
            return f"[{joined}]" if type(value) is list else f"({joined})", ()
        items = ((f"[{index}]", item) for index, item in enumerate(value))
        return f"{self._titled(type(value))} of {len(value)}", chain(self._body(type(value)), items)

    def _mapping(self, name: str, value: Mapping[Any, Any]) -> tuple[str, Parts]:
        """In the order of the keys' texts: two dictionaries are equal in any order."""
        items = sorted(((self._in_short(name, key), item) for key, item in value.items()), key=lambda pair: pair[0])
        texts = [digests.plain_text(item) for _, item in items]
        if type(value) is dict and None not in texts:
            return f"{{{', '.join(f'{key}: {text}' for (key, _), text in zip(items, texts, strict=True))}}}", ()
        title = f"{self._titled(type(value))} of {', '.join(key for key, _ in items)}"
        return title, chain(self._body(type(value)), ((f"[{key}]", item) for key, item in items))

    def _function(self, function: types.FunctionType) -> tuple[str, Parts]:
        module = str(function.__globals__.get("__name__"))
        if digests.is_library(module):
            return f"function {module}.{function.__qualname__}", _inside(function)
        code = digests.digest(digests.code_text(function.__code__))
        return f"function {function.__name__}, code {code}", chain(self._globals(function), _inside(function))

    def _globals(self, function: types.FunctionType) -> Parts:
        """What the function refers to in its own module, and in other modules of the program."""
        for names in digests.global_names(function.__code__):
            scope: dict[str, Any] = function.__globals__
            for depth, key in enumerate(names, 1):
                if key not in scope or key.startswith("__"):
                    break  # of builtins, or not there yet; __name__ and __file__ may differ
                value = scope[key]
                is_module = isinstance(value, types.ModuleType) and not digests.is_library(value.__name__)
                if is_module and depth < len(names):
                    scope = vars(value)
                    continue
                if (id(scope), key) not in self._described:
                    self._described.add((id(scope), key))
                    yield f" (global {'.'.join(names[:depth])})", value
                break

    def _body(self, kind: type) -> Parts:
        """Methods and constants of classes that the program has made."""
        for base in kind.__mro__:
            if digests.is_library(base.__module__) or (id(base), "") in self._described:
                continue
            self._described.add((id(base), ""))
            if issubclass(base, enum.Enum):
                yield from self._members(base)
                continue
            for key, member in sorted(vars(base).items()):
                if self._counts(base, key, member):
                    yield f" ({base.__name__}.{key})", unwrapped(member)

    def _members(self, kind: type[enum.Enum]) -> Parts:
        """Of an enumeration that the program has made."""
        yield " (members)", {key: item.value for key, item in kind.__members__.items()}

    def _counts(self, kind: type, key: str, member: Any) -> bool:
        """Whether a member of the program's class is described."""
        return matters(kind, key, member)

    def _other(self, name: str, value: Any) -> tuple[str, Parts]:
        """What is found by name, what stands for a function, and else what pickle would keep."""
        title, named = digests.title(type(value)), digests.global_name(value)
        wrapped = getattr(value, "__wrapped__", None) if callable(value) else None
        if callable(wrapped) and not (named and digests.is_library(named)):  # such as functools.lru_cache makes
            return title, _named({"function": wrapped})
        if named is not None:
            return named, ()
        made = _reduce(value)
        if isinstance(made, str) and made.isidentifier():
            return f"{title} {made}", ()
        if isinstance(made, tuple):
            return title, chain(self._body(type(value)), _kept_by_pickle(value, *made))
        return self._unknown(name, title), ()  # such as a lock, a file, a generator


def _named(parts: Mapping[str, Any]) -> Parts:
    return [(f" ({key})", part) for key, part in parts.items()]


def _fields(value: Any) -> Parts:
    """The fields by which two dataclasses are compared with ==: all but those with field(compare=False)."""
    ours = type(value).__module__.startswith("distsgd.")  # whose numbers of type float may be given as 1
    for one in fields(value):
        if one.compare and hasattr(value, one.name):
            item = getattr(value, one.name)
            whole = ours and one.type == "float" and type(item) is int
            yield f".{one.name}", float(item) if whole else item


def _inside(function: types.FunctionType) -> Parts:
    """What a function has besides its code and what that refers to."""
    yield from _named({f"default {number}": item for number, item in enumerate(function.__defaults__ or ())})
    yield from _named({f"default {key}": item for key, item in (function.__kwdefaults__ or {}).items()})
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # it has no value yet
            yield f" (variable {variable})", cell.cell_contents
    yield from _named({f"attribute {key}": vars(function)[key] for key in sorted(vars(function))})


def _kept_by_pickle(
    value: Any, function: Any, arguments: Any, state: Any = None, items: Any = None, pairs: Any = None, *_: Any
) -> Parts:
    """What an object's `__reduce_ex__` has returned."""
    if function is not copyreg.__newobj__:  # type: ignore[attr-defined]
        yield " (made by)", function
    yield from _named({f"{number}": item for number, item in enumerate(arguments) if item is not type(value)})
    for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
        if isinstance(part, dict) and all(isinstance(key, str) for key in part):
            yield from ((f".{key}", part[key]) for key in sorted(part))
        elif part is not None:
            yield " (state)", part
    inside = {"items": items, "pairs": pairs}
    yield from _named({key: list(part) for key, part in inside.items() if part is not None})


def text_of(value: Any) -> str:
    """All that an object is, in one short text."""
    return Identity()._in_short("", value)


def _reduce(value: Any) -> Any:
    """What pickle asks an object for; None where it has no answer."""
    try:
        reduce = copyreg.dispatch_table.get(type(value))
        return value.__reduce_ex__(4) if reduce is None else reduce(value)
    except Exception:
        return None


def matters(kind: type, key: str, member: Any) -> bool:
    """Whether a member of a class may change what is computed."""
    if isinstance(member, types.MemberDescriptorType | types.GetSetDescriptorType) or key.startswith("_abc_"):
        return False
    if not (key.startswith("__") and key.endswith("__")):
        return True
    if not isinstance(member, types.FunctionType | staticmethod | classmethod | property):
        return False
    made = key == "__init__" and getattr(vars(kind).get("__dataclass_params__"), "init", False)
    return key not in _WITHOUT_EFFECT and not made


def unwrapped(member: Any) -> Any:
    """The function inside a descriptor."""
    if isinstance(member, staticmethod | classmethod):
        return member.__func__
    if isinstance(member, property):
        return member.fget
    if isinstance(member, functools.cached_property):
        return member.func
    return member
