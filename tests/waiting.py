"""How long tests wait: a limit that only what never comes reaches, however busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable

LIMIT = 100.0
"""Seconds that a command, or a wait for something, may take; without other load most take less than five.

Less than the 120 of the watchdog, so that it is not the watchdog that ends what ends in time.
"""


def wait_until(condition: Callable[[], object], what: str | Callable[[], str], pause: float = 0.02) -> None:
    """Returns when the condition holds; fails the test with `what`, which did not come, after LIMIT seconds."""
    end = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what() if callable(what) else what} did not come within {LIMIT:g} s")
        time.sleep(pause)
