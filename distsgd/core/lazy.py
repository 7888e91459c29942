"""Names of a package that are imported when they are first used, so that what isn't used costs nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any


def lazily(package: str, names: Sequence[str], modules: Sequence[str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose names are in other modules.

    Parameters
    ----------
    package
        The package's `__name__`.
    names
        Its names.
    modules
        Where they are looked for, in order: no module after the right one is imported.
    """

    def find(name: str) -> Any:
        for module in modules if name in names else ():
            found = import_module(module)
            if hasattr(found, name):
                vars(sys.modules[package])[name] = getattr(found, name)
                return getattr(found, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find
