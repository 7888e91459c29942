"""Names of a package that are imported when they are first used, so that what isn't used costs nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazily(package: str, where: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose names are in other modules.

    Parameters
    ----------
    package
        The package's `__name__`.
    where
        Each name's module.
    """

    def find(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(where[name]), name)
        vars(sys.modules[package])[name] = value
        return value

    return find
