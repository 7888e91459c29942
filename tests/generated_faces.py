"""What type checkers read of the packages whose names are imported when they are first used.

python -m tests.generated_faces writes the stub of each, such as `__init__.pyi`, from its table NAMES.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("distsgd", "distsgd.nn", "distsgd.nn.layers", "distsgd.data", "distsgd.metrics")


def path_of(package: str) -> Path:
    """The stub's path."""
    folder = ROOT.joinpath(*package.split("."))
    return folder / "__init__.pyi" if folder.is_dir() else folder.with_suffix(".pyi")


def stub(package: str) -> str:
    """The stub: an import of each name from the module that defines it, in ruff's order."""
    imports: dict[str, list[str]] = {}
    for module, names in import_module(package).NAMES.items():
        parent, _, name = module.rpartition(".")
        owner = f"distsgd.{module}" if names else f"distsgd.{parent}".rstrip(".")
        imports.setdefault(owner, []).extend(names or [name])
    if package == "distsgd":
        imports["distsgd.core.version"] = ["__version__"]
    lines = [
        f"from {module} import {name} as {name}"
        for module in sorted(imports)
        for name in sorted(imports[module], key=lambda name: (_kind(name), name))
    ]
    return "\n".join([f'"""The names of {package}; made by python -m tests.generated_faces."""', "", *lines, ""])


def _kind(name: str) -> int:
    """Constants, then classes, then the others."""
    return 0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2


if __name__ == "__main__":
    for one in PACKAGES:
        path_of(one).write_text(stub(one), encoding="utf-8")
