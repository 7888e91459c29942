"""What all tests keep to: they touch public names, are marked, and measure no time that a busy machine would change."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[3]
DEFINED = re.compile(r"(?:\bdef |\bclass |\bself\.|^)(_[A-Za-z]\w*)", re.MULTILINE)
"""What makes a private name: a function, a class, an attribute, or a variable of a module."""

TOUCHED: dict[tuple[str, str], str] = {}
"""(file of tests, private name of distsgd) that a test touches nevertheless, and why."""


@cache
def texts(folder: str) -> dict[str, str]:
    """The files of a folder, by their names from the project's root."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def touched(text: str, private: set[str]) -> Iterator[tuple[int, str]]:
    """(line, name) of the private names that a file of tests reads, replaces or imports."""
    foreign = private - set(DEFINED.findall(text))
    if not foreign & set(re.findall(r"\b_[A-Za-z]\w*", text)):
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name in foreign)
        elif isinstance(node, ast.Attribute) and node.attr in foreign:
            yield node.lineno, node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2].endswith("attr"):
            given = [part.value for part in node.args if isinstance(part, ast.Constant)]
            names = [value.rpartition(".")[2] for value in given if isinstance(value, str)]
            yield from ((node.lineno, name) for name in names if name in foreign)


def test_tests_touch_public_names() -> None:
    private = {name for text in texts("distsgd").values() for name in DEFINED.findall(text)}
    found = {(file, name): line for file, text in texts("tests").items() for line, name in touched(text, private)}
    assert {f"{file}:{line}: {name}" for (file, name), line in found.items() if (file, name) not in TOUCHED} == set()
    assert set(TOUCHED) - set(found) == set()


CLOCK = r"\btime\.(monotonic|perf_counter|time)(_ns)?\(\)"
SHORTEST = 60
"""Seconds that a process or a thread may be waited for at least: a limit that only what never comes reaches."""
WITH_LIMITS = ("tests/cluster/", "tests/parallel/launch.py", "tests/unit/project/test_rules_of_tests.py")
"""Whose commands have a time limit on a cluster, what ends a command that hangs, and this file."""


def limits_of_time(text: str) -> Iterator[str]:
    """Assertions that a clock is below something, and short limits for others."""
    for line in text.splitlines():
        if re.match(rf"\s*assert\b.*({CLOCK}.*<|\bseconds < )", line):
            yield line.strip()
        yield from (line.strip() for number in re.findall(r"\btimeout=([\d.]+)", line) if float(number) < SHORTEST)


def test_a_busy_machine_breaks_no_test() -> None:
    """What is bounded is bounded by counted work, or by what else takes how long on the same machine."""
    files = {file: text for file, text in texts("tests").items() if not file.startswith(WITH_LIMITS)}
    assert [f"{file}: {found}" for file, text in files.items() for found in limits_of_time(text)] == []
    assert len(list(limits_of_time("assert time.monotonic() - began < 5\nrun(timeout=20)\nrun(timeout=LIMIT)"))) == 2


STAND_INS = re.compile(r"\nfrom tests(?:\.| import .*\b)(?:strict_|cublas_stand_in|emulated_kernels|gpu_cases)")
UNMARKED = {"tests/unit/gpu/test_device.py", "tests/unit/core/test_errors_of_gpus.py"}
"""Which device is chosen, and what an error means, is shown on every user's machine."""


def test_what_runs_on_stand_ins_is_marked() -> None:
    tests = {file: text for file, text in texts("tests").items() if re.match(r"tests/(?!gpu/).*/test_", file)}
    using = {file for file, text in tests.items() if STAND_INS.search(text)}
    assert len(using) > 10
    assert using > UNMARKED
    assert [file for file in using - UNMARKED if "pytest.mark.stand_in" not in tests[file]] == []
