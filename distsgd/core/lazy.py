"""Names of a package that are imported when they are first used, so that what isn't used costs nothing."""

from __future__ import annotations

import sys
from importlib import import_module

TYPE_CHECKING = False  # typing's own would take most of the time of `import distsgd`
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

Names = dict[str, tuple[str, ...]]
"""A package's names by the module below `distsgd` that defines them. A module without names is a name itself."""


def names_in(table: Names) -> list[str]:
    """All names of a table, sorted: a package's `__all__`."""
    return sorted(name for module, names in table.items() for name in names or (module.rpartition(".")[2],))


class Registry(dict[str, "Any"]):
    """Things by name. One that is written as `module:name`, below distsgd, is imported when it is looked up."""

    def __getitem__(self, key: str) -> Any:
        found = super().__getitem__(key)
        if isinstance(found, str):
            module, _, name = found.partition(":")
            self[key] = found = getattr(import_module(f"distsgd.{module}"), name)
        return found

    def values(self) -> list[Any]:  # type: ignore[override]
        return [self[key] for key in self]

    def items(self) -> list[tuple[str, Any]]:  # type: ignore[override]
        return [(key, self[key]) for key in self]


def lazily(package: str, table: Names) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and the `__dir__` of a package whose names are in other modules.

    Type checkers read the package's stub, which `python -m tests.generated_faces` makes from the same table.
    """

    def find(name: str) -> Any:
        for module, names in table.items():
            if name in (names or (module.rpartition(".")[2],)):
                found = import_module(f"distsgd.{module}")
                vars(sys.modules[package])[name] = value = getattr(found, name) if names else found
                return value
        raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])

    return find, lambda: sorted({*names_in(table), *vars(sys.modules[package])})
