"""The core's list of files and the tutorial: both name files and names that exist, and the core stays small."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

from tests.unit.project.test_structure import MODULES, ROOT

MOST_LINES = 2500
PACKAGE = ROOT / "distsgd"
FILE = re.compile(r"`([a-z_0-9/]+\.py)`")
CORE = re.findall(r"^\d+\. `([^`]+)`: ", (ROOT / "docs" / "core.md").read_text(encoding="utf-8"), re.MULTILINE)
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
_MINIBATCH = TUTORIAL.partition("\n## One minibatch\n")[2].partition("\n## ")[0]
STEPS = re.split(r"^(?=\*\*\d+\. )", _MINIBATCH, flags=re.MULTILINE)[1:]
"""The tutorial's steps of one minibatch, each a heading in bold and what follows it."""
NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
}  # fmt: skip


def code_lines(source: str) -> int:
    """Lines with code: not blank, and more than a comment or a part of a docstring."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and ast.get_docstring(node):
                docstrings.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    used: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            used.update(range(token.start[0], token.end[0] + 1))
    return len(used - docstrings)


def names_in(path: Path) -> set[str]:
    """Every name that a file defines or uses: functions, classes, attributes, parameters, constants."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for attribute in ("name", "id", "attr", "arg"):
            if isinstance(value := getattr(node, attribute, None), str):
                found.add(value)
    return found


def test_lines_are_counted_as_code() -> None:
    assert code_lines('"""Doc.\n\nMore."""\n\nx = 1  # a comment\n# another\ny = (\n    2,\n)\n') == 4
    assert code_lines('def f():\n    """Doc."""\n    return """\n\n"""\n') == 4


def test_the_core_is_small() -> None:
    assert len(CORE) == len(set(CORE))
    assert [path for path in CORE if not (PACKAGE / path).is_file()] == []
    lines = {path: code_lines((PACKAGE / path).read_text(encoding="utf-8")) for path in CORE}
    assert sum(lines.values()) <= MOST_LINES, lines


def test_the_tutorial_names_the_files_of_the_core_in_order() -> None:
    assert list(dict.fromkeys(FILE.findall(TUTORIAL))) == CORE
    modules = {name for name in MODULES if "." in name}
    assert {word for word in re.findall(r"distsgd\.([a-z_.]+\w)", TUTORIAL) if word in modules} == set()


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.partition(". ")[2].partition("*")[0])
def test_names_of_the_tutorial_exist(step: str) -> None:
    """A name in backticks is a name in one of the files that its step has named before it."""
    known: set[str] = set()
    for quoted in re.findall(r"`([^`]+)`", step):
        if FILE.fullmatch(f"`{quoted}`"):
            known |= names_in(PACKAGE / quoted)
        elif re.fullmatch(r"[A-Za-z_][\w.]*(\(.*\))?", quoted):
            missing = [name for name in quoted.partition("(")[0].split(".") if name not in known]
            assert not missing, f"`{quoted}`: {missing} is in no file that this step names"
