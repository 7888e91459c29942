"""What all tests keep to: they touch public names, are marked, and measure no time that a busy machine would change."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[3]


@cache
def trees(folder: str) -> dict[str, ast.Module]:
    """The files of a folder, by their names from the project's root."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def is_private(name: str) -> bool:
    return re.fullmatch(r"_(?!_)\w+", name) is not None


def defined(tree: ast.AST) -> set[str]:
    """The private names that a file gives to something: functions, classes, attributes and variables."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    return {name for name in found if is_private(name)}


TOUCHED: dict[tuple[str, str], str] = {}
"""(file of tests, private name of distsgd) that a test touches nevertheless, and why."""


def touched(tree: ast.AST, private: set[str]) -> Iterator[tuple[int, str]]:
    """(line, name) of what a file reads, replaces or imports of distsgd's private names."""
    private = private - defined(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "distsgd":
            yield from ((node.lineno, alias.name) for alias in node.names if is_private(alias.name))
        elif isinstance(node, ast.Attribute) and node.attr in private:
            yield node.lineno, node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if name in ("setattr", "getattr", "hasattr", "delattr"):
                texts = [part.value for part in node.args if isinstance(part, ast.Constant)]
                names = [text.rpartition(".")[2] for text in texts if isinstance(text, str)]
                yield from ((node.lineno, text) for text in names if text in private)


def test_tests_touch_public_names() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "distsgd").rglob("*.py")]
    private = {name for text in texts for name in re.findall(r"\b_[A-Za-z]\w*", text)}
    found = {(name, what): line for name, tree in trees("tests").items() for line, what in touched(tree, private)}
    assert {f"{name}:{line}: {what}" for (name, what), line in found.items() if (name, what) not in TOUCHED} == set()
    assert set(TOUCHED) - set(found) == set()


CLOCKS = {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "time", "time_ns"}
SHORTEST = 60
"""Seconds that a process or a thread may be waited for at least: a limit that only what never comes reaches."""

WITH_LIMITS = ("tests/cluster/", "tests/parallel/launch.py")
"""Whose commands have a time limit on a cluster, and what ends a command that hangs."""


def reads_clock(node: ast.AST) -> bool:
    calls = [part.func for part in ast.walk(node) if isinstance(part, ast.Call)]
    return any(
        isinstance(function, ast.Attribute) and ast.unparse(function.value) == "time" and function.attr in CLOCKS
        for function in calls
    )


def limits_of_time(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, text) of assertions that a clock is below something, and of short limits for others."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and reads_clock(node.test):
            for part in ast.walk(node.test):
                if isinstance(part, ast.Compare) and any(isinstance(op, ast.Lt | ast.LtE) for op in part.ops):
                    yield node.lineno, ast.unparse(part)
        value = node.value if isinstance(node, ast.keyword) and node.arg == "timeout" else None
        if isinstance(value, ast.Constant) and isinstance(value.value, int | float) and value.value < SHORTEST:
            yield value.lineno, f"timeout={value.value}"


def test_a_busy_machine_breaks_no_test() -> None:
    """What is bounded is bounded by counted work, or by what else takes how long on the same machine."""
    names = [
        name for name in trees("tests") if not name.startswith("tests/cluster/") and name != "tests/parallel/launch.py"
    ]
    assert [f"{name}:{line}: {text}" for name in names for line, text in limits_of_time(trees("tests")[name])] == []


STAND_INS = re.compile(r"^tests\.(strict_\w+|cublas_stand_in|emulated_kernels|gpu_cases\.\w+)$")
UNMARKED = {"tests/unit/gpu/test_device.py", "tests/unit/core/test_errors_of_gpus.py"}
"""What decides by the devices that are there, and what an error means, is for every user's machine."""


def test_what_runs_on_stand_ins_is_marked() -> None:
    using = {
        name
        for name, tree in trees("tests").items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and Path(name).name.startswith("test_")
        for module in (node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names))
        if STAND_INS.match(module) and not name.startswith("tests/gpu/")
    }
    assert using > UNMARKED
    assert [name for name in using - UNMARKED if "pytest.mark.stand_in" not in (ROOT / name).read_text("utf-8")] == []
