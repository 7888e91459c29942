"""The modules that users import from: what they list is there, for Python, for type checkers and for `import *`."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

import pytest

import distsgd
from tests import generated_faces
from tests.unit.project.test_structure import FACES as FACES_OF_MODULES
from tests.unit.project.test_structure import ROOT, TREES, row_of

FACES = ("distsgd", "distsgd.data", "distsgd.metrics", "distsgd.nn", "distsgd.optim", "distsgd.testing")
PUBLIC = [(face, name) for face in FACES for name in import_module(face).__all__]


@pytest.mark.parametrize("package", generated_faces.PACKAGES)
def test_stubs_are_those_of_the_tables(package: str) -> None:
    written = generated_faces.path_of(package).read_text(encoding="utf-8")
    assert written == generated_faces.stub(package), "run python -m tests.generated_faces"


@pytest.mark.parametrize("package", generated_faces.PACKAGES)
def test_a_stub_names_what_python_finds(package: str) -> None:
    """The stub's imports, made by Python, are the package's own names: all of them, and the same objects."""
    found: dict[str, object] = {}
    exec(generated_faces.path_of(package).read_text(encoding="utf-8"), found)
    module = import_module(package)
    assert {name for name in found if not name.startswith("__") or name == "__version__"} == set(module.__all__)
    assert all(getattr(module, name) is found[name] for name in module.__all__)
    assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize("package", [name for name in generated_faces.PACKAGES if name != "distsgd"])
def test_tables_point_down(package: str) -> None:
    own = package.removeprefix("distsgd.")
    for module in import_module(package).NAMES:
        own_package = own.partition(".")[0]
        assert own in FACES_OF_MODULES or module.startswith(f"{own_package}.") or row_of(module) > row_of(own), module


@pytest.mark.parametrize("name", ["optim"])
def test_a_face_that_imports_its_names_lists_them(name: str) -> None:
    imports = [node for node in TREES[name].body if isinstance(node, ast.ImportFrom)]
    assert set(getattr(distsgd, name).__all__) == {alias.name for node in imports for alias in node.names}


@pytest.mark.parametrize(("face", "name"), PUBLIC)
def test_public_names_exist(face: str, name: str) -> None:
    assert getattr(import_module(face), name) is not None
    assert import_module(face).__all__.count(name) == 1


def test_one_name_is_one_thing() -> None:
    """A name that several modules have is the same object in each, but for the two kinds of `Constant`."""
    objects: dict[str, set[int]] = {}
    for face, name in PUBLIC:
        objects.setdefault(name, set()).add(id(getattr(import_module(face), name)))
    assert [name for name, known in objects.items() if len(known) > 1] == ["Constant"]


def test_a_name_is_imported_when_it_is_first_used() -> None:
    code = (
        "import sys, distsgd\n"
        "def known(): return sum(name.startswith('distsgd') for name in sys.modules)\n"
        "before = known(); distsgd.Adam; print(before, 'distsgd.nn.layers' in sys.modules, 'Adam' in vars(distsgd))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["4", "False", "True"]


@pytest.mark.parametrize("face", FACES)
def test_an_unknown_name_is_refused(face: str) -> None:
    module: ModuleType = import_module(face)
    with pytest.raises(AttributeError, match="has no attribute 'Dens'"):
        module.Dens  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Dens'"):
        exec(f"from {face} import Dens")


def test_python_suggests_the_near_name() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import distsgd; distsgd.nn.Dens"], cwd=ROOT, capture_output=True, text=True
    )
    assert "Did you mean: 'Dense'?" in done.stderr


def users_imports() -> Iterator[tuple[str, str]]:
    """(file, module of distsgd) of all that examples, README and docs import where a user's own file would."""
    for path in sorted((ROOT / "examples").glob("*.py")):
        yield from ((path.name, found) for found in imports_in(path.read_text(encoding="utf-8")))
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
            if not block.startswith("# distsgd/"):  # which goes into distsgd itself
                yield from ((path.name, found) for found in imports_in(block))


def imports_in(text: str) -> list[str]:
    """Modules of distsgd that a text imports from."""
    return re.findall(r"^\s*(?:from|import) (distsgd[\w.]*)", text, re.MULTILINE)


def test_users_import_from_faces_alone() -> None:
    found = list(users_imports())
    assert len(found) > 10
    assert [(file, module) for file, module in found if module not in FACES] == []
