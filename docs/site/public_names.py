"""A Sphinx directive that documents every public name of a module, in groups by where the names are defined.

    ```{public-names} distsgd.optim
    ```

A name that another public module lists as well has its documentation there, and a link here.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from typing import Any, ClassVar, get_origin

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import stringify_annotation

import distsgd

_MODULES = {f"distsgd.{name}": getattr(distsgd, name) for name in distsgd.__all__}
_MODULES = {name: module for name, module in _MODULES.items() if inspect.ismodule(module)}
FACES = tuple(name for name, module in _MODULES.items() if module.__name__ == name)
"""The public modules beside distsgd itself, each of which has a page."""
INNER = tuple(name for name in _MODULES if name not in FACES)
"""Modules that distsgd has under another name than their own; they stand on its page."""


class PublicNames(SphinxDirective):
    """One entry for each name of the module's `__all__`."""

    required_arguments: ClassVar[int] = 1

    def run(self) -> list[nodes.Node]:
        """The entries, as autodoc renders them."""
        module, node = self.arguments[0], nodes.Element()
        inner = [line for name in INNER if module == "distsgd" for line in _inner_module(name)]
        text = ["```{eval-rst}", *_own_names(module), *inner, *_names_of_others(module), "```"]
        self.state.nested_parse(StringList(text, module), 0, node)
        return node.children


def public_names(module: str) -> list[str]:
    """The names of `__all__` but the modules in it."""
    return [name for name in _module(module).__all__ if not inspect.ismodule(_value(module, name))]


def _module(name: str) -> Any:
    return _MODULES[name] if name in INNER else import_module(name)


def _value(module: str, name: str) -> Any:
    return getattr(_module(module), name)


def _home(module: str, name: str) -> str | None:
    """The other public module that documents one of distsgd's names, where there is one."""
    faces = FACES if module == "distsgd" else ()
    value = _value(module, name)
    return next((face for face in faces if name in public_names(face) and _value(face, name) is value), None)


def _public_base(cls: type) -> type | None:
    """The nearest base class that has an entry itself."""
    public = {id(_value(face, name)) for face in FACES for name in public_names(face)}
    return next((base for base in cls.__mro__[1:] if id(base) in public), None)


def _own_names(module: str) -> Iterator[str]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in public_names(module):
        if _home(module, name) is None:
            groups[_group(module, _value(module, name))].append(name)
    for group in sorted(groups, key=_ORDER.index) if module == "distsgd" else groups:
        if len(groups) > 1:
            yield from (f".. rubric:: {group}", "   :heading-level: 2", "")
        for name in groups[group]:
            yield from _entry(module, name)


_PARAGRAPH = "\n\n"
_ORDER = ["Functions", "Classes", "Errors", "Types and constants"]
"""The headings of distsgd's own page, which begins with fit."""


def _group(module: str, value: Any) -> str:
    """The heading that a name stands under: its kind in distsgd, elsewhere the package or module that defines it."""
    if module == "distsgd":
        kind = _kind(value)
        return _ORDER[0 if kind == "function" else 3 if kind != "class" else 2 if issubclass(value, Exception) else 1]
    where = str(getattr(value, "__module__", "")).split(".")
    return where[2].replace("_", " ").capitalize() if where[0] == "distsgd" and len(where) > 2 else "Types"


def _kind(value: Any) -> str:
    """Which of Sphinx's directives describes a value."""
    if get_origin(value) is not None:
        return "type"
    return "class" if inspect.isclass(value) else "function" if inspect.isroutine(value) else "data"


def _inner_module(module: str) -> Iterator[str]:
    yield from (f".. rubric:: {module}", "   :heading-level: 2", "")
    yield from (*map(_escaped, (inspect.getdoc(_module(module)) or "").splitlines()), "")
    for name in public_names(module):
        yield from _entry(module, name)


def _entry(module: str, name: str) -> list[str]:
    value, path = _value(module, name), f"{module}.{name}"
    kind = _kind(value)
    if kind == "class":
        base = _public_base(value)
        copied = [key for key, member in vars(value).items() if inspect.isfunction(member) and _is_of(member, base)]
        lines = [f".. autoclass:: {path}", "   :members:", f"   :exclude-members: {', '.join(copied)}"]
        more = "   :show-inheritance:" if base else "   :inherited-members: object, Exception, Protocol, Generic, ABC"
        return [*lines, more, ""]
    if kind == "function":
        return [f".. autofunction:: {path}", ""]
    shown = f"   :value: {value!r}" if kind == "data" else f"   :canonical: {stringify_annotation(value, 'smart')}"
    return [f".. py:{kind}:: {path}", shown, "", *(f"   {line}" for line in _comment(name, value)), ""]


def _comment(name: str, value: Any) -> list[str]:
    """The docstring below the definition of a type alias or a constant, wherever that is."""
    for module in [name for name in sys.modules if name.startswith("distsgd.")]:
        if getattr(sys.modules[module], name, None) is value:
            lines = ModuleAnalyzer.for_module(module).find_attr_docs().get(("", name))
            if lines:
                return [_escaped(line) for line in lines]
    return []


def _is_of(function: Any, base: type | None) -> bool:
    return base is not None and function.__qualname__.startswith(f"{base.__qualname__}.")


def _names_of_others(module: str) -> Iterator[str]:
    """Tables of the names whose entries are elsewhere."""
    for face in FACES:
        names = [name for name in public_names(module) if _home(module, name) == face]
        if not names:
            continue
        yield from (f".. rubric:: From {face}", "   :heading-level: 2", "")
        for name in names:
            yield from (f".. py:{_kind(_value(module, name))}:: {module}.{name}", "   :no-typesetting:", "")
        yield from (".. list-table::", "   :widths: 30 70", "")
        for name in names:
            value = _value(module, name)
            text = "\n".join(_comment(name, value)) if _kind(value) == "type" else _escaped(inspect.getdoc(value) or "")
            yield from (f"   * - :py:obj:`~{face}.{name}`", f"     - {' '.join(text.partition(_PARAGRAPH)[0].split())}")
        yield ""


def _escaped(line: str) -> str:
    """Formulas such as |z| and names such as *shape are plain text in docstrings, and markup to Sphinx."""
    parts = line.split("`")
    parts[::2] = [re.sub(r"([|*])", r"\\\1", text) for text in parts[::2]]
    return "`".join(parts)


def _escape_formulas(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    in_example = False
    for number, line in enumerate(lines):
        in_example = line.lstrip().startswith((">>>", "...")) or (in_example and bool(line.strip()))
        if not in_example:
            lines[number] = _escaped(line)


def _name_aliases(
    app: Sphinx, what: str, name: str, value: Any, options: Any, arguments: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Signatures with the names of type aliases and modules, in place of what Python prints for them."""
    shown = r"TypeAliasForwardRef\('([\w.]+)'\)|<module '([\w.]+)'[^>]*>"
    plain = [text and re.sub(shown, lambda found: found[1] or found[2], text) for text in (arguments, returned)]
    return plain[0], plain[1]


def _keep_public_base(app: Sphinx, name: str, cls: type, options: Any, bases: list[Any]) -> None:
    bases[:] = [_public_base(cls) or object]


def _load_names(app: Sphinx, config: Any) -> None:
    """Loads every name: autodoc looks into modules that import their names when they are first used."""
    for module in ("distsgd", *FACES):
        public_names(module)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("public-names", PublicNames)
    app.connect("config-inited", _load_names)
    app.connect("autodoc-process-bases", _keep_public_base)
    app.connect("autodoc-process-signature", _name_aliases)
    app.connect("autodoc-process-docstring", _escape_formulas, priority=400)  # before numpydoc makes markup of it
    return {"parallel_read_safe": True, "parallel_write_safe": True}
