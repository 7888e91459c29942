"""What ranks were given, in texts that can be compared: equal wherever the same thing is given.

A function is its code and what the code refers to, a dataclass its fields, an array its contents, and any other object
what pickle would keep of it. No text holds an address. Nothing here communicates.
"""

from __future__ import annotations

import copyreg
import enum
import functools
import types
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from distsgd.run import digests

_MOST = 20_000
"""Texts of one argument; what has more is not compared."""
_WITHOUT_EFFECT = {"__repr__", "__str__", "__eq__", "__hash__", "__lt__", "__le__", "__gt__", "__ge__", "__setattr__",
                   "__delattr__", "__replace__", "__annotate__", "__annotate_func__"}  # fmt: skip
"""Methods that a dataclass makes by itself, or that training doesn't call."""


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
        self._cannot(name, kind)

    def _cannot(self, name: str, kind: str) -> None:
        self.say(name, f"{kind} (not compared)")
        self.unknown.append(f"{name} ({kind})")

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
            self._look(name, value)
            self._open.pop()

    def _in_short(self, name: str, value: Any) -> str:
        """All that an item or a key of `name` is, in one text."""
        own = Identity()
        own.add(name, value)
        self.unknown += own.unknown
        return own.texts[name] if len(own.texts) == 1 else f"{own.texts[name]} {own.digest()}"

    def _parts(self, name: str, parts: Mapping[str, Any]) -> None:
        for key, part in parts.items():
            self._visit(f"{name} ({key})", part)

    def _look(self, name: str, value: Any) -> None:
        """What kind of object this is: from what Python has to what the user has made."""
        if isinstance(value, type):
            self.say(name, f"class {digests.title(value)}")
            self._body(name, value)
        elif isinstance(value, types.FunctionType):
            self._function(name, value)
        elif isinstance(value, types.MethodType):
            self.say(name, "bound method")
            self._parts(name, {"self": value.__self__, "function": value.__func__})
        elif isinstance(value, functools.partial):
            self.say(name, "partial")
            keywords = {key: value.keywords[key] for key in sorted(value.keywords)}
            self._parts(name, {"function": value.func, "arguments": value.args, **keywords})
        elif isinstance(value, enum.Enum):
            self.say(name, f"{type(value).__qualname__}.{value.name}")
            self._parts(name, {"value": value.value})
        elif isinstance(value, list | tuple):
            self._sequence(name, value)
        elif isinstance(value, Mapping):
            self._mapping(name, value)
        elif isinstance(value, AbstractSet):
            self._kind(name, value, f" {{{', '.join(sorted(self._in_short(name, item) for item in value))}}}")
        elif isinstance(value, np.ma.MaskedArray):
            self.say(name, "masked array")
            self._parts(name, {"data": value.data, "mask": np.ma.getmaskarray(value)})
        elif (array := digests.as_array(value)) is not None:
            self.say(name, digests.array_text(array))
            if array.dtype.hasobject:
                self._parts(name, {"items": array.tolist()})
        elif is_dataclass(value):
            self._dataclass(name, value)
        else:
            self._other(name, value)

    def _kind(self, name: str, value: Any, more: str = "") -> None:
        """The object's class, and what is in it where the program has made it."""
        self.say(name, digests.title(type(value)) + more)
        self._body(name, type(value))

    def _sequence(self, name: str, value: list[Any] | tuple[Any, ...]) -> None:
        texts = [digests.plain_text(item) for item in value]
        if type(value) in (list, tuple) and None not in texts:
            joined = ", ".join(map(str, texts)) + ("," if type(value) is tuple and len(value) == 1 else "")
            self.say(name, f"[{joined}]" if type(value) is list else f"({joined})")
            return
        self._kind(name, value, f" of {len(value)}")
        for index, item in enumerate(value):
            self._visit(f"{name}[{index}]", item)

    def _mapping(self, name: str, value: Mapping[Any, Any]) -> None:
        """In the order of the keys' texts: two dictionaries are equal in any order."""
        items = sorted(((self._in_short(name, key), item) for key, item in value.items()), key=lambda pair: pair[0])
        texts = [digests.plain_text(item) for _, item in items]
        if type(value) is dict and None not in texts:
            self.say(name, f"{{{', '.join(f'{key}: {text}' for (key, _), text in zip(items, texts, strict=True))}}}")
            return
        self._kind(name, value, f" of {', '.join(key for key, _ in items)}")
        for key, item in items:
            self._visit(f"{name}[{key}]", item)

    def _dataclass(self, name: str, value: Any) -> None:
        """The fields by which two of them are compared with ==: all but those with field(compare=False)."""
        self._kind(name, value)
        ours = type(value).__module__.startswith("distsgd.")  # whose numbers of type float may be given as 1
        for one in fields(value):
            if one.compare and hasattr(value, one.name):
                item = getattr(value, one.name)
                whole = ours and one.type == "float" and type(item) is int
                self._visit(f"{name}.{one.name}", float(item) if whole else item)

    def _function(self, name: str, function: types.FunctionType) -> None:
        module = str(function.__globals__.get("__name__"))
        if digests.is_library(module):
            self.say(name, f"function {module}.{function.__qualname__}")
        else:
            self.say(name, f"function {function.__name__}, code {digests.digest(digests.code_text(function.__code__))}")
            self._globals(name, function)
        for number, default in enumerate(function.__defaults__ or ()):
            self._visit(f"{name} (default {number})", default)
        self._parts(name, {f"default {key}": item for key, item in (function.__kwdefaults__ or {}).items()})
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                content = cell.cell_contents
            except ValueError:
                continue  # it has no value yet
            self._visit(f"{name} (variable {variable})", content)
        self._parts(name, {f"attribute {key}": vars(function)[key] for key in sorted(vars(function))})

    def _globals(self, name: str, function: types.FunctionType) -> None:
        """What the function refers to in its own module, and in other modules of the program."""
        for chain in digests.global_names(function.__code__):
            scope: dict[str, Any] = function.__globals__
            for depth, key in enumerate(chain):
                if key not in scope or key.startswith("__"):
                    break  # of builtins, or not there yet; __name__ and __file__ may differ
                value = scope[key]
                if (
                    isinstance(value, types.ModuleType)
                    and not digests.is_library(value.__name__)
                    and depth + 1 < len(chain)
                ):
                    scope = vars(value)
                    continue
                if (id(scope), key) not in self._described:
                    self._described.add((id(scope), key))
                    self._visit(f"{name} (global {'.'.join(chain[: depth + 1])})", value)
                break

    def _body(self, name: str, kind: type) -> None:
        """Methods and constants of classes that the program has made."""
        for base in kind.__mro__:
            if digests.is_library(base.__module__) or (id(base), "") in self._described:
                continue
            self._described.add((id(base), ""))
            if issubclass(base, enum.Enum):
                self._parts(name, {"members": {key: item.value for key, item in base.__members__.items()}})
                continue
            for key, member in sorted(vars(base).items()):
                if _matters(base, key, member):
                    self._visit(f"{name} ({base.__name__}.{key})", _unwrapped(member))

    def _other(self, name: str, value: Any) -> None:
        """What is found by name, what stands for a function, and else what pickle would keep."""
        named = digests.global_name(value)
        wrapped = getattr(value, "__wrapped__", None) if callable(value) else None
        if callable(wrapped) and not (named and digests.is_library(named)):  # such as functools.lru_cache makes
            self.say(name, digests.title(type(value)))
            self._parts(name, {"function": wrapped})
        elif named is not None:
            self.say(name, named)
        else:
            self._reduced(name, value, _reduce(value))

    def _reduced(self, name: str, value: Any, made: Any) -> None:
        if isinstance(made, str) and made.isidentifier():
            self.say(name, f"{digests.title(type(value))} {made}")
            return
        if not isinstance(made, tuple):  # such as a lock, a file, a generator
            self._cannot(name, digests.title(type(value)))
            return
        function, arguments, state, items, pairs = (*made, None, None, None)[:5]
        self._kind(name, value)
        if function is not copyreg.__newobj__:  # type: ignore[attr-defined]
            self._parts(name, {"made by": function})
        self._parts(name, {f"{n}": item for n, item in enumerate(arguments) if item is not type(value)})
        for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
            if isinstance(part, dict) and all(isinstance(key, str) for key in part):
                for key in sorted(part):
                    self._visit(f"{name}.{key}", part[key])
            elif part is not None:
                self._parts(name, {"state": part})
        inside = {"items": items, "pairs": pairs}
        self._parts(name, {key: list(part) for key, part in inside.items() if part is not None})


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


def _matters(kind: type, key: str, member: Any) -> bool:
    """Whether a member of a class may change what is computed."""
    if isinstance(member, types.MemberDescriptorType | types.GetSetDescriptorType) or key.startswith("_abc_"):
        return False
    if not (key.startswith("__") and key.endswith("__")):
        return True
    if not isinstance(member, types.FunctionType | staticmethod | classmethod | property):
        return False
    made = key == "__init__" and getattr(vars(kind).get("__dataclass_params__"), "init", False)
    return key not in _WITHOUT_EFFECT and not made


def _unwrapped(member: Any) -> Any:
    """The function inside a descriptor."""
    if isinstance(member, staticmethod | classmethod):
        return member.__func__
    if isinstance(member, property):
        return member.fget
    if isinstance(member, functools.cached_property):
        return member.func
    return member
