"""A Sphinx directive that documents every public name of a module, in groups by where the names are defined.

    ```{public-names} distsgd.optim
    ```

A name that another public module lists as well has its documentation there and a link here.
"""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from importlib import import_module
from typing import Any, ClassVar

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FACES = ("distsgd.nn", "distsgd.optim", "distsgd.data", "distsgd.metrics", "distsgd.testing")
"""The public modules beside distsgd itself."""


class PublicNames(SphinxDirective):
    """One entry for each name of the module's `__all__`."""

    required_arguments: ClassVar[int] = 1

    def run(self) -> list[nodes.Node]:
        """The entries, as autodoc renders them."""
        node = nodes.Element()
        lines = list(_lines(self.arguments[0]))
        text = "```{eval-rst}\n" + "\n".join(lines) + "\n```"
        self.state.nested_parse(StringList(text.splitlines(), self.arguments[0]), 0, node)
        return node.children


def _lines(module: str) -> list[str]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in public_names(module):
        groups[_group(module, name)].append(name)
    lines: list[str] = []
    for group, names in groups.items():
        if len(groups) > 1:
            lines += [f".. rubric:: {group}", "   :heading-level: 2", ""]
        for name in names:
            lines += _entry(module, name)
    return lines


def public_names(module: str) -> list[str]:
    """The names of `__all__` but the modules in it."""
    face = import_module(module)
    return [name for name in face.__all__ if not inspect.ismodule(getattr(face, name))]


def _group(module: str, name: str) -> str:
    """The heading that a name stands under: of the package or module that defines it."""
    if home := _home(module, name):
        return f"Also in {home}"
    value = getattr(import_module(module), name)
    where = getattr(value, "__module__", "").split(".")
    if len(where) < 3 or where[0] != "distsgd":
        return "Types and constants" if not callable(value) or where[0] != "distsgd" else "Names"
    return where[2].replace("_", " ").capitalize()


def _home(module: str, name: str) -> str | None:
    """The other public module that documents a name, where there is one."""
    value = getattr(import_module(module), name)
    for face in FACES if module == "distsgd" else ():
        if getattr(import_module(face), name, None) is value and name in import_module(face).__all__:
            return face
    return None


def _entry(module: str, name: str) -> list[str]:
    value = getattr(import_module(module), name)
    if home := _home(module, name):
        kind = "class" if inspect.isclass(value) else "function" if inspect.isroutine(value) else "data"
        return [f".. py:{kind}:: {module}.{name}", "   :no-typesetting:", "", f":py:obj:`~{home}.{name}`", ""]
    if inspect.isclass(value):
        members = ["   :members:", "   :inherited-members: object, Exception, Protocol", "   :show-inheritance:"]
        return [f".. autoclass:: {module}.{name}", *members, ""]
    if inspect.isroutine(value):
        return [f".. autofunction:: {module}.{name}", ""]
    return [f".. autodata:: {module}.{name}", "   :no-value:", ""]


def keep_public_bases(app: Sphinx, name: str, cls: type, options: Any, bases: list[Any]) -> None:
    """Shows the base classes that have an entry here themselves."""
    public = {id(getattr(import_module(face), other)) for face in FACES for other in public_names(face)}
    bases[:] = [base for base in bases if id(base) in public] or [object]


def escape_formulas(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Formulas such as |z| and names such as *shape are plain text in docstrings, and markup to Sphinx."""
    in_example = False
    for number, line in enumerate(lines):
        in_example = line.lstrip().startswith((">>>", "...")) or (in_example and bool(line.strip()))
        if not in_example:
            parts = line.split("`")
            parts[::2] = [re.sub(r"([|*])", r"\\\1", text) for text in parts[::2]]
            lines[number] = "`".join(parts)


def load_names(app: Sphinx, config: Any) -> None:
    """Loads every name: autodoc looks into modules that import their names when they are first used."""
    for module in ("distsgd", *FACES):
        public_names(module)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("public-names", PublicNames)
    app.connect("config-inited", load_names)
    app.connect("autodoc-process-bases", keep_public_bases)
    app.connect("autodoc-process-docstring", escape_formulas, priority=400)  # before numpydoc makes markup of it
    return {"parallel_read_safe": True, "parallel_write_safe": True}
