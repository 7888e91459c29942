"""The project's shape: which module may import which, how long files are, and what importing costs.

Each rule is checked on the source, so that a breach names its file and line.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

# Top to bottom: a package imports from rows below its own alone, for types too.
ENTRIES = ("train", "launch", "evaluate", "predict", "plot", "doctor", "__main__")
ROWS: tuple[tuple[str, ...], ...] = (
    ENTRIES,
    ("cli",),
    ("integrations",),
    ("launching",),
    ("run",),
    ("gpu", "plots"),
    ("training", "testing"),
    ("parallel", "data"),
    ("nn", "optim"),
    ("core",),
)
PUBLIC = {"", "data", "metrics", "nn", "optim", "testing"}
"""The modules of distsgd that `integrations` imports from: what a user's own file may import."""
FRAMEWORKS = {"jax", "sklearn", "torch"}
"""Each is imported by the modules of `integrations` whose names begin with it, and by no other."""
FACES = {"metrics"}
"""Modules that name public things of a package again, for users; no module of distsgd imports them."""
LONGEST_ENTRY = 12
MAY_IMPORT_CUPY = {"gpu/devices.py", "gpu/nccl.py"}
LAZY = {
    "cupy", "matplotlib", "mpi4py", "pooch", "rich", "pyarrow", "h5py", "zarr", "numcodecs", "PIL", "pandas", "polars",
    "xarray",
}  # fmt: skip
"""Extras, other packages' objects that a user may give, and MPI, which may abort where it loads."""
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
OUTSIDE = [name for name in INSIDE if name.startswith("integrations")]
"""Modules that use distsgd as a user's file does."""


def row_of(module: str) -> int:
    """The row of the package that a module belongs to; of an entry module, its own."""
    package = module.partition(".")[0]
    assert package in ROW_OF, f"distsgd.{module} belongs to no package of ROWS; put it into the one that it is about"
    return ROW_OF[package]


def nodes_of(node: ast.AST, *, functions: bool = True) -> Iterator[ast.AST]:
    """All nodes below; if so asked, without `if TYPE_CHECKING:` and what is inside functions."""
    is_for_types = isinstance(node, ast.If) and ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING"
    for child in node.orelse if is_for_types and not functions else ast.iter_child_nodes(node):
        if functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from nodes_of(child, functions=functions)


def imports_of(tree: ast.AST, *, functions: bool = True) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported: `from a import b` gives a.b."""
    for node in nodes_of(tree, functions=functions):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def own_imports(module: str) -> Iterator[tuple[int, str]]:
    """(line, module) of what this one imports of distsgd; the root package is the empty name."""
    for line, name in imports_of(TREES[module]):
        package, _, inside = name.partition(".")
        if package == "distsgd":
            yield line, inside if inside in MODULES else inside.rpartition(".")[0]


@pytest.mark.parametrize("module", [name for name in INSIDE if name not in FACES and name not in OUTSIDE])
def test_imports_point_down(module: str) -> None:
    package, row = module.partition(".")[0], row_of(module)
    wrong = [
        f"{MODULES[module].relative_to(ROOT)}:{line} imports distsgd.{target}"
        for line, target in own_imports(module)
        if not target or target in FACES or (target.partition(".")[0] != package and row_of(target) <= row)
    ]
    assert not wrong


@pytest.mark.parametrize("module", OUTSIDE)
def test_integrations_import_public_names(module: str) -> None:
    wrong = []
    for line, name in imports_of(TREES[module]):
        package, _, inside = name.partition(".")
        face, _, thing = ("", "", inside) if inside not in MODULES and "." not in inside else inside.rpartition(".")
        known = package != "distsgd" or inside.startswith("integrations.") or inside in PUBLIC
        if not known and (face not in PUBLIC or thing not in import_module(f"distsgd.{face}".strip(".")).__all__):
            wrong.append(f"{MODULES[module].relative_to(ROOT)}:{line} imports {name}")
    assert not wrong


@pytest.mark.parametrize("module", MODULES)
def test_frameworks_are_imported_by_their_integration(module: str) -> None:
    found = {name.partition(".")[0] for _, name in imports_of(TREES[module])} & FRAMEWORKS
    assert found <= {name for name in FRAMEWORKS if module.startswith(f"integrations.{name}")}


def test_no_cycles() -> None:
    graph = {module: {target for _, target in own_imports(module) if target != module} for module in INSIDE}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_rows_name_what_exists() -> None:
    assert set(ROW_OF) == {module.partition(".")[0] for module in INSIDE} - FACES


def test_the_table_of_packages_has_each_file_once() -> None:
    """docs/design.md: `name`, or `folder/`: before the names of its files; a semicolon ends them."""
    table = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").partition("\n## Packages\n")[2]
    listed = []
    for package, files in re.findall(r"^\| `(\w+)/` \| [^|]+ \| ([^|]+) \|$", table, re.MULTILINE):
        for group in files.split(";"):
            folder = re.match(r" `([\w/]+)/`: ", group)
            below = f"{package}.{folder[1].replace('/', '.')}" if folder else package
            listed += [f"{below}.{name}" for name in re.findall(r"`(\w+)`", group)]
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert sorted(listed) == sorted(name for name in INSIDE if "." in name and name not in packages)


@pytest.mark.parametrize("module", ENTRIES)
def test_entry_modules_are_short(module: str) -> None:
    lines = MODULES[module].read_text(encoding="utf-8").splitlines()
    docstring = TREES[module].body[0].end_lineno or 0
    code = [line for line in lines[docstring:] if line.strip() and not line.strip().startswith("#")]
    assert len(code) <= LONGEST_ENTRY


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
    code = (
        "import sys, distsgd; print(*{'numpy', 'matplotlib', 'mpi4py', 'argparse', 'safetensors'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
