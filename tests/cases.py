"""Cases of one test: the first of them always run, the others only with `-m long`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def first_of(cases: Iterable[Any], count: int = 1) -> list[Any]:
    """The cases for `pytest.mark.parametrize`; those after the first `count` are marked `long`."""
    return [
        case if number < count else pytest.param(*_values(case), marks=pytest.mark.long)
        for number, case in enumerate(cases)
    ]


def _values(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)
