"""Numbers that users give: as Python floats, in the range that they must lie in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from distsgd.core.errors import ConfigurationError


def number_in(interval: str, what: str, given: object) -> float:
    """`given` as a Python float, for a NumPy scalar gives other bits; `interval` is written as in mathematics.

    Raises
    ------
    ConfigurationError
        Where it isn't a number in the interval, in the name of `what`.

    Examples
    --------
    >>> number_in("[0, 1)", "momentum", 0.5), number_in("(-inf, inf)", "value", 3)
    (0.5, 3.0)
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    try:
        value = float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
    if low < value < high or (value == low and interval[0] == "[") or (value == high and interval[-1] == "]"):
        return value
    bounds = [f"{'at least' if interval[0] == '[' else 'above'} {low:g}"] if low > -math.inf else []
    bounds += [f"{'at most' if interval[-1] == ']' else 'below'} {high:g}"] if high < math.inf else []
    raise ConfigurationError(f"{what} must be a finite number {' and '.join(bounds)}".rstrip() + f", got {given!r}")


def check_fields(owner: Any, intervals: Mapping[str, str]) -> None:
    """Makes Python floats of those fields of a frozen dataclass that `intervals` names, and checks their ranges."""
    for name in (field.name for field in fields(owner) if field.name in intervals):
        value = number_in(intervals[name], f"{type(owner).__name__}: {name}", getattr(owner, name))
        object.__setattr__(owner, name, value)
