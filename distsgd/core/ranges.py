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
    try:
        value = float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
    if is_in(interval, value):
        return value
    raise ConfigurationError(f"{what} must be a finite number {bounds(interval)}".rstrip() + f", got {given!r}")


def is_in(interval: str, value: float) -> bool:
    """Whether the number lies in the interval; a whole number is compared exactly."""
    low, high = _ends(interval)
    return low < value < high or (value == low and interval[0] == "[") or (value == high and interval[-1] == "]")


def bounds(interval: str) -> str:
    """The interval in words.

    Examples
    --------
    >>> bounds("[0, 1)"), bounds("(0, inf)")
    ('at least 0 and below 1', 'above 0')
    """
    low, high = _ends(interval)
    found = [f"{'at least' if interval[0] == '[' else 'above'} {_text(low)}"] if low > -math.inf else []
    found += [f"{'at most' if interval[-1] == ']' else 'below'} {_text(high)}"] if high < math.inf else []
    return " and ".join(found)


def _ends(interval: str) -> tuple[float, float]:
    low, high = (float(end) for end in interval[1:-1].split(","))
    return low, high


def _text(number: float) -> str:
    return str(int(number)) if number.is_integer() else f"{number:g}"


def check_fields(owner: Any, intervals: Mapping[str, str]) -> None:
    """Makes Python floats of those fields of a frozen dataclass that `intervals` names, and checks their ranges."""
    for name in (field.name for field in fields(owner) if field.name in intervals):
        value = number_in(intervals[name], f"{type(owner).__name__}: {name}", getattr(owner, name))
        object.__setattr__(owner, name, value)
