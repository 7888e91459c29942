"""What a function does, as a text, and what it reads and writes outside of itself: from its source, which isn't run.

Formatting, comments, docstrings, annotations and places in a file are no part of the text. A function whose source
isn't there, or is another than what runs, is its bytecode, which the same Python alone makes again.
"""

from __future__ import annotations

import ast
import linecache
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias

from distsgd.run.compared import digests

Step: TypeAlias = tuple[str, Any]
"""(".", an attribute's name), ("[", a constant key), or last of all ("*", None): an attribute of any name."""
MODULE, GLOBAL = "import ", "global "
"""Begin the name of a path that starts at a module, and at a global of any name, which a local one doesn't hide."""
_SKIPPED = {"ctx", "annotation", "returns", "type_comment", "kind", "type_params"}
_CHANGE_ALL = {
    "append", "add", "extend", "insert", "remove", "pop", "popitem", "clear", "sort", "reverse", "update", "setdefault",
    "discard", "appendleft", "extendleft", "popleft", "rotate", "fill", "put", "itemset", "resize", "partition",
    "intersection_update", "difference_update", "symmetric_difference_update", "write", "send", "move_to_end",
    "__setitem__", "__delitem__", "__iadd__", "__next__",
}  # fmt: skip
"""Methods that change what they are called on; besides, those whose name ends in an underscore, as torch has them."""
_CHANGE_FIRST = {"copyto", "put", "place", "putmask", "at", "shuffle", "next", "setattr", "fill_diagonal", "heappush"}
"""Functions that change their first argument."""


@dataclass(frozen=True)
class Reached:
    """A name, and the constant attributes and keys that are followed from it: config["rate"]."""

    name: str
    steps: tuple[Step, ...] = ()

    def __add__(self, steps: tuple[Step, ...]) -> Reached:
        return Reached(self.name, self.steps + steps)


@dataclass
class Uses:
    """Of a function and the functions in it.

    text     of what it does
    reads    paths that are read
    binds    paths whose last step, or name, gets another value
    changes  paths of objects that are changed in place
    methods  (an object's path, a method's name): it changes the object if a library has it
    firsts   (a function's path, its first argument's path): it changes the argument if it is a library's
    calls    (the function's path, the argument's place or name, the argument's path)
    parameters  names, in order
    complete    whether the source was there
    """

    text: str
    reads: list[Reached] = field(default_factory=list)
    binds: list[Reached] = field(default_factory=list)
    changes: list[Reached] = field(default_factory=list)
    methods: list[tuple[Reached, str]] = field(default_factory=list)
    firsts: list[tuple[Reached, Reached]] = field(default_factory=list)
    calls: list[tuple[Reached, int | str, Reached]] = field(default_factory=list)
    parameters: tuple[str, ...] = ()
    complete: bool = True


def uses_of(code: types.CodeType) -> Uses:
    """What a function of this code uses."""
    parameters = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    node = _node_of(code)
    if node is None:
        return _uses_of_bytecode(code, parameters)
    try:
        found = Uses(f"source {digests.digest(normal_text(node, whole=True))}", parameters=parameters)
        _Finder(found, _locals_of(code) - set(parameters)).visit_body(node)
    except RecursionError:
        return _uses_of_bytecode(code, parameters)
    return found


def _uses_of_bytecode(code: types.CodeType, parameters: tuple[str, ...]) -> Uses:
    from distsgd.run.compared.bytecode import uses_in  # rare

    text = f"{_THIS_PYTHON}{digests.digest(digests.code_text(code))}"
    paths = ([Reached(name, steps) for name, steps in kind] for kind in uses_in(code, _is_change))
    reads, binds, changes = paths
    return Uses(text, reads, binds, changes, parameters=parameters, complete=False)


def _is_change(method: str) -> bool:
    return method in _CHANGE_ALL or (method.endswith("_") and not method.endswith("__"))


_THIS_PYTHON = f"code of {sys.implementation.cache_tag} {sys.flags.optimize} "


def comparable(text: str) -> bool:
    """Whether this Python can make this text again: not that of another version's bytecode."""
    return not text.startswith("code of ") or text.startswith(_THIS_PYTHON)


def _locals_of(code: types.CodeType) -> set[str]:
    """Names of the function's own, and of the functions in it."""
    inner = [_locals_of(item) for item in code.co_consts if isinstance(item, types.CodeType)]
    return {*code.co_varnames, *code.co_cellvars}.union(*inner)


def _node_of(code: types.CodeType) -> ast.AST | None:
    """The function's syntax tree, None where the file isn't there or holds another function now."""
    linecache.checkcache(code.co_filename)
    text = "".join(linecache.getlines(code.co_filename))
    functions = _functions_in(text, code.co_filename) if text else {}
    for node, compiled in functions.get((code.co_name, code.co_firstlineno), ()):
        if compiled == code:
            return node
    return None


@lru_cache(64)
def _functions_in(text: str, name: str) -> dict[tuple[str, int], list[tuple[ast.AST, types.CodeType]]]:
    """The functions of a file by name and first line, each with its code: several lambdas may share a line."""
    try:
        tree = ast.parse(text, name)
        whole = compile(text, name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    nodes: dict[tuple[str, int], list[ast.AST]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            nodes.setdefault((node.name, first), []).append(node)
        elif isinstance(node, ast.Lambda):
            nodes.setdefault(("<lambda>", node.lineno), []).append(node)
    found: dict[tuple[str, int], list[tuple[ast.AST, types.CodeType]]] = {}
    for code in digests.codes_in(whole):
        key = (code.co_name, code.co_firstlineno)
        for node in nodes.get(key, ()):
            if not isinstance(node, ast.Lambda) or _column(code) == node.body.col_offset or len(nodes[key]) == 1:
                found.setdefault(key, []).append((node, code))
    return found


def _column(code: types.CodeType) -> int | None:
    """The leftmost column of a lambda's code, where its body begins."""
    return min((column for _, _, column, _ in code.co_positions() if column), default=None)


def normal_text(node: Any, whole: bool = False) -> str:
    """The text of a syntax tree, of a function without its name; equal wherever the same is meant."""
    if isinstance(node, list):
        return f"[{' '.join(normal_text(item) for item in node if not _is_idle(item))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    parts = []
    for name in node._fields:
        value = getattr(node, name, None)
        if name not in _SKIPPED and value is not None and value != [] and not (whole and name == "name"):
            parts.append(f"{name}={normal_text(value)}")
    return f"{type(node).__name__}({' '.join(parts)})"


def _is_idle(node: Any) -> bool:
    """Whether a statement does nothing, such as a docstring."""
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _call(node: ast.AST | None) -> tuple[str, list[ast.expr]]:
    """The last name of the function that is called, and the arguments."""
    if not isinstance(node, ast.Call):
        return "", []
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", ""), node.args


def _namespace_of(node: ast.expr) -> ast.expr | None:
    """The object whose attributes vars(object) and object.__dict__ are."""
    if isinstance(node, ast.Attribute) and node.attr == "__dict__":
        return node.value
    name, arguments = _call(node)
    return arguments[0] if name == "vars" and arguments else None


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, Reached]]:
    """The names that an import binds, and what they stand for."""
    for one in node.names:
        if isinstance(node, ast.ImportFrom):
            module = f"{'.' * node.level}{node.module or ''}"
            yield one.asname or one.name, Reached(f"{MODULE}{module}", ((".", one.name),))
        else:
            name = one.name if one.asname else one.name.partition(".")[0]
            yield one.asname or name, Reached(f"{MODULE}{name}")


class _Finder(ast.NodeVisitor):
    """Fills in the Uses of one function."""

    def __init__(self, found: Uses, own: set[str]) -> None:
        self.found, self.own = found, own
        self.aliases: dict[str, list[Reached]] = {}

    def visit_body(self, node: ast.AST) -> None:
        """Looks through a function; first for other names of what it reads, and for names that it shares."""
        for one in ast.walk(node):
            if isinstance(one, ast.Global | ast.Nonlocal):
                self.own -= set(one.names)
        for _ in range(2):  # an alias may be made of one that comes later
            self.aliases = {name: list(dict.fromkeys(paths)) for name, paths in self._aliases(node).items()}
        for child in ast.iter_child_nodes(node):
            self.visit(child)

    def _aliases(self, node: ast.AST) -> dict[str, list[Reached]]:
        found: dict[str, list[Reached]] = {}
        for one in ast.walk(node):
            if isinstance(one, ast.Import | ast.ImportFrom):
                for name, path in _imported(one):
                    found.setdefault(name, []).append(path)
            targets: list[ast.expr] = []
            value: ast.expr | None = None
            if isinstance(one, ast.Assign):
                targets, value = one.targets, one.value
            elif isinstance(one, ast.AnnAssign | ast.NamedExpr):
                targets, value = [one.target], one.value
            elif isinstance(one, ast.For | ast.comprehension):
                targets, value = [one.target], one.iter
            names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            for name in {*names} & self.own:
                found.setdefault(name, []).extend(self._paths(value))
        return found

    def _paths(self, node: ast.expr | None) -> list[Reached]:
        """What an expression stands for: several paths where a name has several meanings, none for a new object."""
        steps: list[Step | None] = []
        start: Reached | None = None
        while not isinstance(node, ast.Name):
            name, arguments = _call(node)
            if isinstance(node, ast.Subscript) and (inner := _namespace_of(node.value)) is not None:
                steps.append((".", node.slice.value) if isinstance(node.slice, ast.Constant) else ("*", None))
                node = inner
            elif name == "getattr" and len(arguments) > 1:
                key = arguments[1]
                steps.append((".", key.value) if isinstance(key, ast.Constant) else ("*", None))
                node = arguments[0]
            elif name in ("__import__", "import_module") and arguments and isinstance(arguments[0], ast.Constant):
                start = Reached(f"{MODULE}{arguments[0].value!s}")
                break
            elif name == "globals" and steps and (last := steps.pop()) is not None:
                start = Reached(f"{GLOBAL}{last[1]}")
                break
            elif isinstance(node, ast.Attribute):
                steps.append((".", node.attr))
                node = node.value
            elif isinstance(node, ast.Subscript):
                steps.append(("[", node.slice.value) if isinstance(node.slice, ast.Constant) else None)
                node = node.value
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
                first = arguments[0] if arguments else None
                steps.append(("[", first.value) if isinstance(first, ast.Constant) else None)
                node = node.func.value
            else:
                return []
        known: list[Step] = []
        for step in reversed(steps):
            if step is None:  # a key that isn't constant: all of what is before
                break
            known.append(step)
            if step[0] == "*":
                break
        if start is not None or not isinstance(node, ast.Name):
            return [] if start is None else [start + tuple(known)]
        bases = self.aliases.get(node.id, []) if node.id in self.own else [Reached(node.id)]
        return [base + tuple(known) for base in bases]

    def _store(self, target: ast.expr) -> None:
        """A target of an assignment."""
        if isinstance(target, ast.Tuple | ast.List):
            for item in target.elts:
                self._store(item)
        elif isinstance(target, ast.Starred):
            self._store(target.value)
        elif isinstance(target, ast.Name):
            if target.id not in self.own:
                self.found.binds.append(Reached(target.id))
        elif isinstance(target, ast.Subscript) and not isinstance(target.slice, ast.Constant):
            self.found.changes += self._paths(target.value)
            self.visit(target.slice)
        else:
            paths = self._paths(target)
            self.found.binds += [path for path in paths if path.steps]
            if not paths:
                self.generic_visit(target)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._store(target)
        plain = all(isinstance(target, ast.Name) and target.id in self.own for target in node.targets)
        if not (plain and self._paths(node.value)):  # else an alias, whose uses count
            self.visit(node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._store(node.target)
        self.found.changes += self._paths(node.target)
        self.visit(node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._store(node.target)
            self.visit(node.value)

    def visit_Delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            self._store(target)

    def visit_For(self, node: ast.For) -> None:
        self._store(node.target)
        for child in (node.iter, *node.body, *node.orelse):
            self.visit(child)

    def visit_Call(self, node: ast.Call) -> None:
        if found := self._paths(node):  # config.get("rate")
            self.found.reads += found
            for value in node.args[1:]:
                self.visit(value)
            return
        name, arguments = _call(node)
        functions = self._paths(node.func)
        if name == "setattr" and len(arguments) > 1 and isinstance(key := arguments[1], ast.Constant):
            named: tuple[Step, ...] = ((".", key.value),)
            self.found.binds += [path + named for path in self._paths(arguments[0])]
        elif name in _CHANGE_FIRST and arguments:
            called = functions or [Reached(MODULE)]
            self.found.firsts += [(function, path) for function in called for path in self._paths(arguments[0])]
        for keyword in node.keywords:
            if keyword.arg == "out":
                outs = keyword.value.elts if isinstance(keyword.value, ast.Tuple) else [keyword.value]
                self.found.changes += [path for out in outs for path in self._paths(out)]
        self.visit(node.func)
        given: list[tuple[Any, ast.expr]] = [
            *enumerate(node.args),
            *((one.arg, one.value) for one in node.keywords),
        ]
        for place, value in given:
            paths = self._paths(value)
            whole = any(path.steps[-1:] == (("*", None),) for path in paths)
            if functions and place is not None and paths and not (whole or isinstance(value, ast.Starred)):
                self.found.calls += [(function, place, path) for function in functions for path in paths]
                self._note_methods(paths)
                self._visit_keys(value)
            else:
                self.visit(value)

    def _visit_keys(self, node: ast.expr) -> None:
        """What is read inside a path: keys that aren't constant."""
        for one in ast.walk(node):
            if isinstance(one, ast.Subscript) and not isinstance(one.slice, ast.Constant):
                self.visit(one.slice)

    def _note_methods(self, paths: list[Reached]) -> None:
        """Methods that may change their object, called or given to somebody who calls them."""
        for path in paths:
            if path.steps and path.steps[-1][0] == "." and _is_change(path.steps[-1][1]):
                self.found.methods.append((Reached(path.name, path.steps[:-1]), path.steps[-1][1]))

    def _read(self, node: ast.expr) -> None:
        paths = self._paths(node)
        self.found.reads += paths
        self._note_methods(paths)
        if paths or isinstance(node, ast.Name):
            self._visit_keys(node)
        else:
            self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        self._read(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._read(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self._read(node)

    def visit_arg(self, node: ast.arg) -> None:
        """An annotation is not read."""
