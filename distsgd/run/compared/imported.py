"""What the imports in a function lead to in the program's own files: their statements, read and not run.

The import runs later than the comparison, so its module's values aren't there yet.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from distsgd.run.compared import digests
from distsgd.run.compared.reads import MODULE, Reached, normal_text


def statements(path: Reached, package: str) -> Iterator[tuple[str, str]]:
    """The part, if any, that an import in a function of this package stands for, and its text."""
    module = _absolute(path.name.removeprefix(MODULE), package)
    name = path.steps[0][1] if path.steps and path.steps[0][0] == "." else None
    if (text := _text_of(module, name, set())) is not None:
        yield f" (import {module.rpartition('.')[2]}{'' if name is None else f'.{name}'})", f"source {text}"


def _text_of(module: str, name: str | None, done: set[tuple[str, str | None]]) -> str | None:
    """A digest of the top-level statements that make this name of a module, or with None all names; None where the
    module isn't the program's own. `done` are those that are taken in already."""
    file = _own_file(module)
    if file is None:
        return None
    if (module, name) in done:
        return ""
    done.add((module, name))
    try:
        tree = ast.parse(file.read_bytes())
        texts = [text for one in _needed(tree, name) for text in _texts(one, module, file, done)]
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    below = _text_of(f"{module}.{name}", None, done) if name is not None and file.name == "__init__.py" else None
    return digests.digest("\n".join([*texts, below or ""]))


def _own_file(module: str) -> Path | None:
    """The file of a module that isn't a library's, found without importing the packages that it is in."""
    if not module or module.startswith(".") or digests.is_library(module):
        return None
    paths: list[str] | None = None
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        spec = getattr(sys.modules.get(name), "__spec__", None) or PathFinder.find_spec(name, paths)
        if spec is None:
            return None
        paths = list(spec.submodule_search_locations or ())
    path = Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None
    return path if path is not None and path.suffix == ".py" and not digests.is_installed(path) else None


def _needed(tree: ast.Module, name: str | None) -> list[ast.stmt]:
    """The statements that make a name, those that make what these use, and those that use what was made, such as
    CONFIG.update(...)."""
    if name is None:
        return tree.body
    needed, found = {name}, set[int]()
    while True:
        before = len(found)
        for place, one in enumerate(tree.body):
            makes, uses = _names(one)
            plain = isinstance(one, ast.Expr | ast.AugAssign | ast.Delete) and uses & needed
            if place not in found and (makes & needed or plain or "*" in makes):
                found.add(place)
                needed |= uses
        if len(found) == before:
            return [tree.body[place] for place in sorted(found)]


def _names(statement: ast.stmt) -> tuple[set[str], set[str]]:
    """Names that a top-level statement makes, and all that it uses."""
    uses = {one.id for one in ast.walk(statement) if isinstance(one, ast.Name)}
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}, uses
    makes = {one.id for one in ast.walk(statement) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
    for one in ast.walk(statement):
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            makes.add(one.name)
        elif isinstance(one, ast.alias):
            makes.add(one.asname or one.name.partition(".")[0])
    return makes, uses


def _texts(statement: ast.stmt, module: str, file: Path, done: set[tuple[str, str | None]]) -> list[str]:
    """Of a statement, and of what it imports from the program's own files."""
    texts = [normal_text([statement])]
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for one in ast.walk(statement):
        if isinstance(one, ast.Import):
            texts += [_text_of(alias.name, None, done) or "" for alias in one.names]
        elif isinstance(one, ast.ImportFrom):
            source = _absolute(f"{'.' * one.level}{one.module or ''}", package)
            texts += [_text_of(source, None if alias.name == "*" else alias.name, done) or "" for alias in one.names]
    return texts


def _absolute(module: str, package: str) -> str:
    """The name of a module that an import names from inside a package."""
    dots = len(module) - len(module.lstrip("."))
    if not dots:
        return module
    base = package.split(".")[: len(package.split(".")) - dots + 1]
    return ".".join(filter(None, [*base, module[dots:]]))
