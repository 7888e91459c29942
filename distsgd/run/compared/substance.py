"""What the user's objects are, in digests that are equal in other processes, and later in the same one.

An object is its class and its fields, and the code of all functions and methods that can be reached, with what these
read from outside, along the path by which they read it. What that code itself writes to doesn't count, nor does a text
that is an absolute path. An object of a library is its class.
"""

from __future__ import annotations

import argparse
import enum
import functools
import types
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import MISSING, dataclass, fields, is_dataclass
from itertools import chain
from pathlib import PurePath
from typing import Any, TypeAlias

import numpy as np

from distsgd.nn.function_objective import FunctionObjective
from distsgd.run.compared import digests
from distsgd.run.compared.identity import Identity, Parts, unwrapped
from distsgd.run.compared.reads import GLOBAL, MODULE, Reached, Step, Uses, uses_of

Digests: TypeAlias = dict[str, dict[str, str]]
"""By aspect ("structure", "source", …), digests by the part that they are of."""
_WRITTEN = "written by the code that reads it"
_INITIALIZERS = {"__init__", "__post_init__", "__new__", "__setstate__", "__init_subclass__", "__set_name__"}
_NOT_COMPARED = {"thread_safe", "loss_scale", "initial_values"}
"""Of objectives: what changes no result, what the configuration says, and what is compared apart."""
_AS_BETWEEN_RANKS: tuple[type, ...] = (
    types.FunctionType, types.MethodType, functools.partial, list, tuple, Mapping, AbstractSet
)  # fmt: skip
_WITH_NAMES = (argparse.Namespace, types.SimpleNamespace)


@dataclass(frozen=True)
class _Found:
    """What a path leads to: the object, and the object and key that it was found in."""

    value: Any
    holder: Any
    key: Any
    place: str


class Substance(Identity):
    """An Identity that is equal in other processes and later in the same one: see this module."""

    def __init__(self, written: set[tuple[Any, ...]] | None = None) -> None:
        super().__init__()
        self.written: set[tuple[Any, ...]] = set()
        """("key", id of an object, a key in it), ("object", id), ("attribute", name): what the code writes to."""
        self._excluded = written
        """The same from a first pass; None in that pass."""
        self._expanded: set[tuple[int, ...]] = set()
        self._read_once: set[tuple[int, Any]] = set()

    def _in_short(self, name: str, value: Any) -> str:
        own = Substance(self._excluded or set())
        own.add(name, value)
        return own.digest()

    def _titled(self, kind: type) -> str:
        """Of the program's classes the name alone: a file may have another one; of a library's the library's, too."""
        library = digests.is_library(kind.__module__) and kind.__module__ != "builtins"
        return f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}" if library else kind.__qualname__

    def _visit(self, name: str, value: Any) -> None:
        if isinstance(value, str | PurePath) and PurePath(value).is_absolute():
            self.say(name, "an absolute path")
        elif ("object", id(value)) in (self._excluded or ()) and digests.plain_text(value) is None:
            self.say(name, _WRITTEN)
        else:
            super()._visit(name, value)

    def _look(self, name: str, value: Any) -> tuple[str, Parts]:
        if isinstance(value, type):
            return f"class {self._titled(value)}", self._body(value)
        if isinstance(value, types.ModuleType):
            return "module", ()
        if isinstance(value, enum.Enum):
            return f"{type(value).__qualname__}.{value.name}", ((" (value)", value.value),)
        if isinstance(value, np.ndarray) and self._excluded is None:
            return "array", ()  # its contents are read in the second pass
        if isinstance(value, FunctionObjective):
            functions = {"function": value.function, "outputs": value.outputs, "input_shape": value.input_shape}
            return "FunctionObjective", [(f".{key}", part) for key, part in functions.items()]
        if isinstance(value, _AS_BETWEEN_RANKS) or digests.as_array(value) is not None:
            return super()._look(name, value)
        if is_dataclass(value):
            return self._titled(type(value)), chain(self._body(type(value)), self._fields(value))
        return self._object(name, value)

    def _function(self, function: types.FunctionType) -> tuple[str, Parts]:
        if digests.is_library(str(function.__module__)) and digests.is_library(
            str(function.__globals__.get("__name__"))
        ):
            return f"function {str(function.__module__).partition('.')[0]}.{function.__qualname__}", ()
        return uses_of(function.__code__).text, chain(self._read_by(function, {}), _defaults(function))

    def _read_by(self, function: types.FunctionType, bound: Mapping[str, _Found]) -> Parts:
        """What a function reads outside of itself, each once; what it writes to is noted. `bound` are arguments."""
        key = (id(function), *(id(argument.value) for argument in bound.values()))
        if key in self._expanded:
            return
        self._expanded.add(key)
        self._kept += [function, *bound.values()]
        uses = uses_of(function.__code__)
        self._note_writes(function, uses, bound)
        for callee, place, path in uses.calls:
            found = _follow(function, path, bound)
            if found is None or not found.place:
                continue
            inner, given = _called(function, callee, bound)
            if inner is not None and (name := _parameter(inner, place, given)) is not None:
                yield from self._read_by(inner, {name: found})
            else:
                yield from self._read(found)
        for path in uses.reads:
            if path.name.startswith(MODULE):
                from distsgd.run.compared.imported import statements  # rare

                yield from statements(path, str(function.__globals__.get("__package__") or ""))
                continue
            found = _follow(function, path, bound)
            if found is None:
                continue
            if found.place:
                yield from self._read(found)
            if path.steps and path.steps[-1][0] == "*":
                each = (_one_step(found, (".", key)) for key in sorted(_attributes_of(found.value)))
                yield from (part for one in each if one is not None for part in self._read(one))

    def _read(self, found: _Found) -> Parts:
        """A path's end, where it isn't described yet."""
        if (id(found.holder), found.key) in self._read_once:
            return
        self._read_once.add((id(found.holder), found.key))
        excluded = self._excluded or ()
        written = ("key", id(found.holder), found.key) in excluded or ("inside", id(found.holder)) in excluded
        yield found.place, _WRITTEN if written else found.value

    def _note_writes(self, function: types.FunctionType, uses: Uses, bound: Mapping[str, _Found]) -> None:
        bound = {**_defaults_by_name(function), **bound}
        for path in uses.binds:
            found = _follow(function, path, bound, to_holder=True)
            if found is not None:
                self.written.add(("key", id(found.holder), found.key))
                if type(found.holder) is dict and path.steps:  # all of it isn't compared either
                    self.written.add(("object", id(found.holder)))
                self._kept.append(found.holder)
        changes = [path for path, method in uses.methods if _changes_its_object(function, path, method, bound)]
        changes += [path for callee, path in uses.firsts if _called(function, callee, bound)[0] is None]
        for path in uses.changes + changes:
            found = _follow(function, path, bound)
            if found is not None and not uses.complete:
                if not _may_change(found.value):
                    continue
                self.written.add(("inside", id(found.value)))
            if found is not None:
                self.written |= {("object", id(found.value)), ("key", id(found.holder), found.key)}
                self._kept += [found.value, found.holder]
        if uses.parameters and function.__name__ not in _INITIALIZERS:
            paths = [
                path for path in uses.binds + uses.changes + changes if path.name == uses.parameters[0] and path.steps
            ]
            self.written |= {("attribute", path.steps[0][1]) for path in paths if path.steps[0][0] == "."}

    def _members(self, kind: type[enum.Enum]) -> Parts:
        return ()

    def _counts(self, kind: type, key: str, member: Any) -> bool:
        return super()._counts(kind, key, member) and key not in _NOT_COMPARED and not self._is_written(kind, key)

    def _is_written(self, holder: Any, key: Any) -> bool:
        excluded = self._excluded or ()
        return ("key", id(holder), key) in excluded or ("attribute", key) in excluded

    def _fields(self, value: Any) -> Parts:
        """Fields that count in ==, of a library's class those that differ from their defaults: a later version may
        have more of them."""
        library = digests.is_library(type(value).__module__)
        for one in fields(value):
            if not one.compare or not hasattr(value, one.name) or one.name in _NOT_COMPARED:
                continue
            item = getattr(value, one.name)
            default = one.default if one.default_factory is MISSING else one.default_factory()
            if library and (item is default or (type(item) in (int, float, str, bool, tuple) and item == default)):
                continue
            if library and one.type == "float" and type(item) is int:
                item = float(item)
            if not self._is_written(value, one.name):
                yield f".{one.name}", item

    def _object(self, name: str, value: Any) -> tuple[str, Parts]:
        """What stands for a function, an instance of the program's own class, and a library's object."""
        kind = type(value)
        if callable(value) and digests.is_library(kind.__module__):  # such as functools.cache and jax.jit make
            inner = getattr(value, "__wrapped__", None) or getattr(value, "py_func", None)
            if isinstance(inner, types.FunctionType) and not digests.is_library(inner.__module__):
                return self._titled(kind), ((" (function)", inner),)
        if (named := digests.global_name(value)) is not None:
            return f"{named.partition('.')[0]}.{named.rpartition('.')[2]}", ()
        if not digests.is_library(kind.__module__):
            return self._titled(kind), chain(self._body(kind), self._attributes(value))
        equal, hashed = vars(object)["__eq__"], vars(object)["__hash__"]
        if getattr(kind, "__eq__", equal) is not equal and getattr(kind, "__hash__", None) not in (None, hashed):
            return super()._look(name, value)  # a single value, such as a date
        return f"{self._titled(kind)} (an object of a library)", ()

    def _attributes(self, value: Any) -> Parts:
        """The attributes that methods read; where their source isn't there all that can't be changed in place."""
        methods = [unwrapped(member) for base in type(value).__mro__ for member in vars(base).values()
                   if not digests.is_library(base.__module__)]  # fmt: skip
        own = [one for one in methods if isinstance(one, types.FunctionType) and one.__name__ not in _INITIALIZERS]
        own = [one for one in own if one.__code__.co_argcount]
        me = _Found(value, None, "", "")
        read = [part for one in own for part in self._read_by(one, {one.__code__.co_varnames[0]: me})]
        if all(uses_of(one.__code__).complete for one in own):
            yield from (part for part in read if not self._hides(part))
            return
        for key, item in sorted(_attributes_of(value).items()):
            if not self._is_written(value, key) and not _may_change(item):
                yield f".{key}", item

    def _hides(self, part: tuple[str, Any]) -> bool:
        first = part[0].removeprefix(".").partition(".")[0].partition("[")[0]
        return part[0].startswith(".") and ("attribute", first) in (self._excluded or ())


def _defaults(function: types.FunctionType) -> Parts:
    for number, item in enumerate(function.__defaults__ or ()):
        yield f" (default {number})", item
    for key, item in (function.__kwdefaults__ or {}).items():
        yield f" (default {key})", item


def _defaults_by_name(function: types.FunctionType) -> dict[str, _Found]:
    """A parameter's default that the function changes is a place to keep something in."""
    code, values = function.__code__, function.__defaults__ or ()
    names = code.co_varnames[code.co_argcount - len(values) : code.co_argcount]
    defaults = {**dict(zip(names, values, strict=True)), **(function.__kwdefaults__ or {})}
    return {name: _Found(value, defaults, name, "") for name, value in defaults.items() if _may_change(value)}


def _may_change(value: Any) -> bool:
    """Whether an object may be changed in place, as far as can be seen."""
    functions = (types.FunctionType, types.MethodType, functools.partial)
    fixed = (tuple, frozenset, type, types.ModuleType, *functions, enum.Enum)
    if digests.plain_text(value) is not None or isinstance(value, fixed):
        return False
    own = not digests.is_library(type(value).__module__)
    return digests.global_name(value) is None and not (own or is_dataclass(value))


def _called(
    function: types.FunctionType, callee: Reached, bound: Mapping[str, _Found]
) -> tuple[types.FunctionType | None, int]:
    """The program's own function that a call runs, and how many arguments it has already; None for another's."""
    found = _follow(function, callee, bound, to_holder=True)
    value, given = (None if found is None else found.value), 0
    if found is None and callee.steps:  # a method
        holder = _follow(function, Reached(callee.name, callee.steps[:-1]), bound, to_holder=True)
        member = None if holder is None else _member(holder.value, callee.steps[-1][1])
        value, given = unwrapped(member), int(not isinstance(member, staticmethod))
    own = isinstance(value, types.FunctionType) and not digests.is_library(str(value.__module__))
    return (value, given) if own else (None, 0)


def _member(value: Any, name: Any) -> Any:
    """What an object's class, or its first base that has it, has of this name."""
    return next((vars(base)[name] for base in type(value).__mro__ if name in vars(base)), None)


def _changes_its_object(function: types.FunctionType, path: Reached, method: str, bound: Mapping[str, _Found]) -> bool:
    """Whether a method of a changing name is a library's; what the program's own ones change, their bodies show."""
    found = _follow(function, path, bound)
    if found is None or isinstance(found.value, types.ModuleType | type) or _one_step(found, (".", method)):
        return False
    if _follow(function, path, bound, to_holder=True) is None:  # of something in it, such as in a defaultdict
        return True
    if digests.is_library(type(found.value).__module__):
        return callable(_member(found.value, method))
    return callable(member := _member(found.value, method)) and not isinstance(unwrapped(member), types.FunctionType)


def _parameter(function: types.FunctionType, place: int | str, given: int) -> str | None:
    """The parameter that takes an argument, None for *args; `given` come before the call's own."""
    code = function.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    if isinstance(place, str):
        return place if place in names else None
    return names[place + given] if place + given < code.co_argcount else None


def _follow(
    function: types.FunctionType, path: Reached, bound: Mapping[str, _Found], to_holder: bool = False
) -> _Found | None:
    """What a path leads to, as far as its steps are those of modules, dictionaries and the program's own objects.

    None where its name isn't from outside of the function; with `to_holder`, unless all steps can be followed.
    """
    start = _start(function, path.name, bound)
    if start is None:
        return None
    found = start
    for step in path.steps:
        inner = _one_step(found, step)
        if inner is None:
            return None if to_holder else found
        found = inner
    return found


def _start(function: types.FunctionType, name: str, bound: Mapping[str, _Found]) -> _Found | None:
    if name in bound:
        return bound[name]
    if name.startswith(GLOBAL):
        name, scope = name.removeprefix(GLOBAL), function.__globals__
        return _Found(scope[name], scope, name, f" (global {name})") if name in scope else None
    code, cells = function.__code__, function.__closure__ or ()
    if name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
        return None
    for variable, cell in zip(code.co_freevars, cells, strict=True):
        if variable == name:
            try:
                return _Found(cell.cell_contents, cell, "", f" (variable {name})")
            except ValueError:  # it has no value yet
                return None
    if name.startswith("__") or name not in function.__globals__:
        return None
    return _Found(function.__globals__[name], function.__globals__, name, f" (global {name})")


def _one_step(found: _Found, step: Step) -> _Found | None:
    """One step further; None where it isn't to be followed."""
    value, (kind, key) = found.value, step
    if kind == "[":
        inside: Mapping[Any, Any] = {key: "none yet", **value} if type(value) is dict else {}
    elif isinstance(value, types.ModuleType):
        inside = {} if digests.is_library(value.__name__) else vars(value)
    elif isinstance(value, type):
        inside = (
            {} if digests.is_library(value.__module__) else {key: unwrapped(one) for key, one in vars(value).items()}
        )
    elif isinstance(value, _WITH_NAMES) or not digests.is_library(type(value).__module__):
        inside = _attributes_of(value)
    else:
        inside = {}
    if key not in inside:
        return None
    shown = f"[{key!r}]" if kind == "[" else f".{key}"
    place = f"{found.place[:-1]}{shown})" if found.place.endswith(")") else f"{found.place}{shown}"
    return _Found(inside[key], value, key, place)


def _attributes_of(value: Any) -> dict[str, Any]:
    """Without running properties, and without a dataclass's fields that don't count in ==."""
    found = dict(getattr(value, "__dict__", {}))
    for base in type(value).__mro__:
        for key, member in vars(base).items():
            if isinstance(member, types.MemberDescriptorType) and hasattr(value, key):
                found[key] = getattr(value, key)
            elif isinstance(member, functools.cached_property):
                found.pop(key, None)
    aside = {one.name for one in fields(value) if not one.compare} if is_dataclass(type(value)) else set()
    return {key: item for key, item in found.items() if key not in aside}


def described(given: Mapping[str, Any]) -> Digests:
    """Of objects by aspect. What "model" is of is parted into structure and source."""
    first = Substance()
    for name, value in given.items():
        first.add(name, value)
    second = Substance(first.written)
    for name, value in given.items():
        second.add(name, value)
    found: Digests = {}
    for name, text in second.texts.items():
        aspect, part = next((one, name[len(one) :]) for one in given if name.startswith(one))
        if aspect in ("model", "builder"):
            aspect = "source" if " (" in part or text.startswith(("source ", "code ")) else "structure"
        found.setdefault(aspect, {})[part.strip() or "itself"] = text
    return {aspect: digests.bounded(parts) for aspect, parts in found.items()}
