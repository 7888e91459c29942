"""The site's API pages, against the public names: what `__all__` lists has an entry, and nothing else has."""

from __future__ import annotations

import inspect
import zlib
from pathlib import Path
from types import ModuleType

import pytest

import distsgd

ROOT = Path(__file__).parents[2]
API = ROOT / "docs" / "api"
MODULES = {name: getattr(distsgd, name) for name in distsgd.__all__ if inspect.ismodule(getattr(distsgd, name))}
FACES = [name for name, module in MODULES.items() if module.__name__ == f"distsgd.{name}"]
"""Each has a page; a module that distsgd has under another name than its own stands on distsgd's page."""


@pytest.fixture(scope="module")
def built() -> Path:
    """The site, as `make docs` has built it."""
    site = ROOT / "build" / "docs"
    assert (site / "objects.inv").is_file(), "there is no site; make docs builds it, and make test-docs does both"
    return site


def entries(built: Path) -> dict[str, str]:
    """The pages of Python names in the site's inventory: four lines of text, then compressed lines."""
    data = (built / "objects.inv").read_bytes().split(b"\n", 4)[4]
    rows = [line.split() for line in zlib.decompress(data).decode().splitlines()]
    return {row[0]: row[3] for row in rows if row[1].startswith("py:")}


def test_each_public_module_has_a_page() -> None:
    assert {path.stem for path in API.glob("*.md")} == {"README", "distsgd", *FACES}
    index = (API / "README.md").read_text(encoding="utf-8")
    assert [name for name in ("distsgd", *FACES) if f"]({name}.md)" not in index] == []


@pytest.mark.parametrize("name", ["", *MODULES])
def test_pages_have_the_public_names(name: str, built: Path) -> None:
    face: ModuleType = MODULES[name] if name else distsgd
    public = {one for one in face.__all__ if not inspect.ismodule(getattr(face, one))}
    beginning = f"distsgd.{name}." if name else "distsgd."
    page = f"api/{name if name in FACES else 'distsgd'}.html"
    found = {one: where for one, where in entries(built).items() if one.startswith(beginning)}
    assert {one.removeprefix(beginning) for one in found if one.count(".") == beginning.count(".")} == public
    assert [one for one in public if not found[beginning + one].startswith(page)] == []


def test_pages_show_docstrings(built: Path) -> None:
    """numpydoc's sections, of a class, a method and a function."""
    optim, nn, top = ((built / "api" / f"{name}.html").read_text("utf-8") for name in ("optim", "nn", "distsgd"))
    assert "Robbins &amp; Monro" in optim
    assert "for units that pass about half of their inputs" in nn
    assert "Raises" in top
    assert [text for text in ("TypeAliasForwardRef", "&lt;module", str(ROOT)) if text in optim + nn + top] == []
