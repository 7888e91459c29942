"""Examples per second of training steps; validation and checkpoints do not count."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, final

_SHORTEST = 1e-9


@final
class SpeedMeter:
    """Adds up the seconds and the examples of steps, since the last record and since the attempt's start.

    measure     what else a record at a step says of its time; collective
    of_attempt  what else the summary says of the attempt's
    """

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.measure: Callable[[int], dict[str, Any]] = lambda step: {}
        self.of_attempt: dict[str, Any] = {}
        self._step_began: float | None = None
        self._seconds, self._examples = 0.0, 0
        self._earlier_seconds, self._earlier_examples = 0.0, 0

    def begin_step(self) -> None:
        """From now on time counts, if it doesn't already: results of steps in flight come later."""
        if self._step_began is None:
            self._step_began = time.monotonic()

    def end_step(self, examples: int) -> None:
        """Counts a step that has ended; no more time until the next one begins."""
        self._examples += examples
        if self._step_began is not None:
            self._seconds += time.monotonic() - self._step_began
            self._step_began = None

    def since_last_record(self) -> float:
        """Examples per second since the last call of this method."""
        speed = self._examples / max(self._seconds, _SHORTEST)
        self._earlier_seconds += self._seconds
        self._earlier_examples += self._examples
        self._seconds, self._examples = 0.0, 0
        return speed

    def record(self, step: int) -> dict[str, Any]:
        """What a record at this step says of time. Collective."""
        seconds = time.monotonic() - self.began
        return {"examples_per_second": self.since_last_record(), "seconds": seconds, **self.measure(step)}

    def overall(self) -> float:
        """Examples per second of the attempt."""
        return (self._earlier_examples + self._examples) / max(self._earlier_seconds + self._seconds, _SHORTEST)
