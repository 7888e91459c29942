"""The project's shape: which module may import which, how long files are, and what importing costs.

Each rule is checked on the source, so that a breach names its file and line.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import distsgd

ROOT = Path(__file__).parents[2]

# Top to bottom: a module imports only from rows above its own. Names in one row don't import each other. A package
# stands for its modules, which may import each other without a cycle, unless they have a row of their own.
ROWS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("runtime", "device", "processes", "status table", "files", "launchers"),
    ("folders", "output"),
    ("locks",),
    ("layout", "user_code", "components"),
    ("random",),
    ("batch",),
    ("kernels",),
    ("initializers", "losses", "schedules"),
    ("layers",),
    ("optimizers",),
    ("sampling", "augmentation"),
    ("models",),
    ("datasets",),
    ("communication.tree", "communication.base"),
    ("communication",),
    ("digests",),
    ("identity",),
    ("agreement",),
    ("objective", "non_finite"),
    ("examples",),
    ("regularization", "workers", "streaming", "zero_gradients"),
    ("graphs",),
    ("update",),
    ("step",),
    ("in_flight",),
    ("metrics", "early_stopping"),
    ("validation",),
    ("checkpoint",),
    ("records",),
    ("option_values",),
    ("config", "batch_job", "intervals"),
    ("snapshot", "background"),
    ("callbacks", "replicas"),
    ("hooks",),
    ("trainer",),
    ("outcome",),
    ("resume",),
    ("testing",),
    ("gradient_check",),
    ("command_line",),
    ("placement",),
    ("build",),
    ("stored_model", "attempt", "progress", "launching"),
    ("plots", "diagnosis"),
    ("commands",),
    ("fitting",),
    ("train", "evaluate", "predict", "plot", "doctor", "launch"),
)
MAY_IMPORT_CUPY = {"device.py", "kernels/gpu.py", "communication/nccl.py"}
LAZY = {"cupy", "matplotlib", "mpi4py", "pooch", "rich"}  # extras, and MPI, which may abort where it loads
LONGEST_FILE = 400
LONGEST_FUNCTION = 100

ROW_OF = {name: number for number, row in enumerate(ROWS) for name in row}
MODULES = {
    ".".join(path.relative_to(ROOT / "distsgd").with_suffix("").parts).removesuffix("__init__").removesuffix("."): path
    for path in sorted((ROOT / "distsgd").rglob("*.py"))
}
"""Every module by its name inside distsgd; the package's own __init__ is the empty name."""
TREES = {name: ast.parse(path.read_text(encoding="utf-8"), str(path)) for name, path in MODULES.items()}
INSIDE = [name for name in MODULES if name]


def entry_of(module: str) -> str:
    """The name in ROWS that covers this module: the longest one."""
    parts = module.split(".")
    covering = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    found = next((name for name in covering if name in ROW_OF), None)
    assert found, f"distsgd.{module} has no place in ROWS; put it below what it imports"
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING"


def running_nodes(node: ast.AST, *, functions: bool = True) -> Iterator[ast.AST]:
    """All nodes below, without `if TYPE_CHECKING:` and, if so asked, without what is inside functions."""
    children = node.orelse if isinstance(node, ast.If) and is_type_checking(node) else ast.iter_child_nodes(node)
    for child in children:
        if functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from running_nodes(child, functions=functions)


def imports_of(tree: ast.AST, *, functions: bool = True) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported: `from a import b` gives a.b."""
    for node in running_nodes(tree, functions=functions):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def own_imports(module: str) -> Iterator[tuple[int, str]]:
    """(line, module) of the modules of distsgd that this one imports; distsgd/__init__.py itself is left out."""
    for line, name in imports_of(TREES[module]):
        package, _, inside = name.partition(".")
        if package == "distsgd":
            target = inside if inside in MODULES else inside.rpartition(".")[0]
            if target:
                yield line, target


@pytest.mark.parametrize("module", INSIDE)
def test_imports_go_one_way(module: str) -> None:
    mine = entry_of(module)
    wrong = [
        f"{MODULES[module].relative_to(ROOT)}:{line} imports distsgd.{target}"
        for line, target in own_imports(module)
        if entry_of(target) != mine and ROW_OF[entry_of(target)] >= ROW_OF[mine]
    ]
    assert not wrong


def test_no_cycles() -> None:
    graph = {module: {target for _, target in own_imports(module)} for module in INSIDE}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_rows_name_what_exists() -> None:
    assert set(ROW_OF) - {entry_of(module) for module in INSIDE} == set()


@pytest.mark.parametrize("module", MODULES)
def test_extras_are_imported_where_they_are_used(module: str) -> None:
    at_import = {name.partition(".")[0] for _, name in imports_of(TREES[module], functions=False)}
    anywhere = {name.partition(".")[0] for _, name in imports_of(TREES[module])}
    path = MODULES[module].relative_to(ROOT / "distsgd").as_posix()
    assert at_import & (LAZY - {"cupy"}) == set()
    assert "cupy" not in anywhere or path in MAY_IMPORT_CUPY


@pytest.mark.parametrize("module", MODULES)
def test_docstring(module: str) -> None:
    assert ast.get_docstring(TREES[module]), f"{MODULES[module].relative_to(ROOT)} has no docstring"


@pytest.mark.parametrize("folder", ["distsgd", "tests"])
def test_sizes(folder: str) -> None:
    too_long = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        where = path.relative_to(ROOT)
        if len(text.splitlines()) > LONGEST_FILE:
            too_long.append(f"{where}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                if lines >= LONGEST_FUNCTION:
                    too_long.append(f"{where}:{node.lineno} {node.name}: {lines} lines")
    assert not too_long


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, distsgd; print(*{'numpy', 'matplotlib', 'mpi4py', 'tyro', 'safetensors'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", ["data", "metrics", "nn", "optim"])
def test_faces_list_what_they_export(name: str) -> None:
    face = getattr(distsgd, name)
    imported = {
        alias.asname or alias.name
        for node in TREES[name].body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(face.__all__) == imported
    assert len(set(face.__all__)) == len(face.__all__)
    assert all(hasattr(face, public) for public in face.__all__)


@pytest.mark.parametrize("name", distsgd.__all__)
def test_public_names_exist(name: str) -> None:
    assert getattr(distsgd, name) is not None
