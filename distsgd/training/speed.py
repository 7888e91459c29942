"""Examples per second of training steps; validation and checkpoints do not count."""

from __future__ import annotations

_SHORTEST = 1e-9


class SpeedMeter:
    """Adds up the seconds and the examples of steps, since the last record and since the attempt's start."""

    def __init__(self) -> None:
        self._seconds, self._examples = 0.0, 0
        self._earlier_seconds, self._earlier_examples = 0.0, 0

    def add_seconds(self, seconds: float) -> None:
        """Counts time that steps took."""
        self._seconds += seconds

    def add_examples(self, count: int) -> None:
        """Counts examples of a step that has ended."""
        self._examples += count

    def since_last_record(self) -> float:
        """Examples per second since the last call of this method."""
        speed = self._examples / max(self._seconds, _SHORTEST)
        self._earlier_seconds += self._seconds
        self._earlier_examples += self._examples
        self._seconds, self._examples = 0.0, 0
        return speed

    def overall(self) -> float:
        """Examples per second of the attempt."""
        return (self._earlier_examples + self._examples) / max(self._earlier_seconds + self._seconds, _SHORTEST)
