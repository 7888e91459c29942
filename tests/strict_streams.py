"""Streams of the stand-in for CuPy: what one does to memory has to come before or after what another one does to it.

Everything is done at once, so a wait that is missing changes no number. Each stream counts what it does, and knows how
far the others have come by the events that it has waited for (vector clocks); an access to memory that another stream
has used, unless both only read, must know of that use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Clock:
    """A stream's time, and how far it knows that others have come."""

    number: int
    time: int = 0
    known: dict[int, int] = field(default_factory=dict)

    def learn(self, known: dict[int, int]) -> None:
        for number, time in known.items():
            self.known[number] = max(self.known.get(number, -1), time)


@dataclass
class Streams:
    """The streams of one rank: 0, the default one, and those that it makes. Nothing is noted before it makes one.

    uses     when each stream last read or wrote the bytes [first, last), by its own time
    note     notes each use, too
    entered  streams of `with` blocks that haven't ended; `use` leaves no trace there
    """

    clocks: list[Clock] = field(default_factory=lambda: [Clock(0)])
    current: int = 0
    uses: dict[int, dict[tuple[int, int, bool], int]] = field(default_factory=dict)
    note: Callable[[np.ndarray, bool], None] = lambda array, writes: None
    entered: list[int] = field(default_factory=lambda: [0])

    def make(self) -> int:
        self.clocks.append(Clock(len(self.clocks)))
        return len(self.clocks) - 1

    def use(self, array: np.ndarray, writes: bool) -> None:
        """The current stream reads or writes this array."""
        self.note(array, writes)
        if len(self.clocks) == 1 or array.size == 0:
            return
        start, stop = np.lib.array_utils.byte_bounds(array)
        clock = self.clocks[self.current]
        for other, uses in self.uses.items():
            if other == self.current:
                continue
            for (first, last, wrote), time in uses.items():
                if first < stop and start < last and (writes or wrote):
                    assert clock.known.get(other, -1) >= time, (
                        f"stream {self.current} {'writes' if writes else 'reads'} what stream {other} "
                        f"{'writes' if wrote else 'reads'}, and nothing says which comes first"
                    )
        self.uses.setdefault(self.current, {})[start, stop, writes] = clock.time

    def mark(self, number: int) -> dict[int, int]:
        """All that a stream has done and knows of, from its next use on a thing of the past."""
        clock = self.clocks[number]
        reported = {**clock.known, number: clock.time}
        clock.time += 1
        return reported

    def host_waits(self, reported: dict[int, int] | None = None) -> dict[int, int]:
        """What is asked for from now on comes after all that the current stream has done, or an event marks; how
        far the host knows the streams to be."""
        reported = self.mark(self.current) if reported is None else reported
        for clock in self.clocks:
            clock.learn(reported)
        return reported

    @property
    def now(self) -> tuple[int, int]:
        """The current stream and its time."""
        return self.current, self.clocks[self.current].time


class StrictStream:
    """A stream, or the default one where it has number 0, which can't be recorded."""

    def __init__(self, recorder: Any, number: int) -> None:
        self._recorder, self.ptr = recorder, number

    def synchronize(self) -> None:
        assert self.ptr == self._recorder.streams.current
        self._recorder.wait()

    def use(self) -> None:
        self._recorder.streams.current = self.ptr

    def is_capturing(self) -> bool:
        return self._recorder.tape is not None

    def begin_capture(self) -> None:
        assert self.ptr == self._recorder.streams.current != 0
        self._recorder.begin_tape()

    def end_capture(self) -> Any:
        return self._recorder.end_tape()

    def wait_event(self, event: StrictEvent) -> None:
        assert event.reported is not None, "nothing was recorded yet"
        assert event.captured == self.is_capturing(), "an event of a recording belongs to it"
        self._recorder.streams.clocks[self.ptr].learn(event.reported)

    def __enter__(self) -> StrictStream:
        self._recorder.streams.entered.append(self.ptr)
        self.use()
        return self

    def __exit__(self, *error: object) -> None:
        """As CuPy has it: back to the stream of the block around, whatever `use` did since, or the default one."""
        streams = self._recorder.streams
        streams.entered.pop()
        streams.current = streams.entered[-1]


class StrictEvent:
    """A mark in a stream, that another stream or the host can wait for."""

    def __init__(self, recorder: Any) -> None:
        self._recorder = recorder
        self.reported: dict[int, int] | None = None
        self.captured = False

    def record(self, stream: StrictStream) -> None:
        self.captured = self._recorder.tape is not None
        self.reported = self._recorder.streams.mark(stream.ptr)

    def synchronize(self) -> None:
        assert self.reported is not None
        assert not self.captured, "the host can't wait for an event of a recording"
        self._recorder.wait(self.reported)
