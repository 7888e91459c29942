"""CUDA graphs for the stand-in for CuPy: what is recorded isn't done, and each start of the graph does it once.

Stricter than CUDA: memory that a recording found is filled with rubbish when it ends and when its pool is gone; copies
and waits can't be recorded, nor memory found outside a pool of its own, nor streams that don't come together again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.strict_streams import Clock, Streams


class Memory:
    """What CUDA gives, until no one holds it."""

    def __init__(self, size: int) -> None:
        self.size = size


class Pool:
    """Memory for the arrays of one recording, from an allocator as CuPy's pools take one."""

    def __init__(self, allocator: Callable[[int], Any] | None = None) -> None:
        self._allocator = allocator or (lambda size: SimpleNamespace(mem=Memory(size)))

    def malloc(self, size: int) -> None:
        raise AssertionError("only the stand-in's own arrays are made")

    def run_short(self) -> None:
        """Gives back what no array uses, as CuPy's pools do when CUDA has nothing left."""
        block = weakref.ref(self._allocator(512).mem)
        assert block() is not None, "a graph's kernels write where they did when it was recorded"


class Tape:
    """What one thread has recorded since it began, on streams of which nothing but the recording is known.

    uses         what memory from outside is read and written, by its first and last byte
    messengers   NCCL's communicators whose messages are recorded; each gets the graph
    """

    def __init__(self, pool: Pool, streams: Streams) -> None:
        self.steps: list[Callable[[], Any]] = []
        self.made: list[np.ndarray] = []
        self.uses: dict[tuple[int, int, bool], np.ndarray] = {}
        self.messengers: list[Any] = []
        pool.run_short()
        clocks = [Clock(clock.number) for clock in streams.clocks]
        self.streams = Streams(clocks, streams.current, note=self._use, entered=list(streams.entered))
        self.begun_on = streams.current
        self.pool_is_gone = False
        weakref.finalize(pool, self._lose_pool)

    def _use(self, array: np.ndarray, writes: bool) -> None:
        if array.size and not any(np.may_share_memory(array, one) for one in self.made):
            self.uses[(*np.lib.array_utils.byte_bounds(array), writes)] = array

    def _lose_pool(self) -> None:
        self.pool_is_gone = True
        self.spoil()

    def spoil(self) -> None:
        """Writes rubbish over all arrays of the recording."""
        for array in self.made:
            array[...] = np.frombuffer(b"\xff" * array.itemsize, array.dtype)[0]

    def perform(self, work: Callable[[], Any], *inputs: np.ndarray) -> np.ndarray:
        """A new array for work()'s result, which each start fills; a view of an input is that for good."""
        with np.errstate(all="ignore"):
            found = work()
        if isinstance(found, np.ndarray) and any(np.may_share_memory(found, one) for one in inputs):
            return found
        made = np.array(found)
        self.made.append(made)

        def again() -> None:
            made[...] = work()

        self.steps.append(again)
        return made

    def end(self) -> None:
        """Raises where a stream has done something that the one where the recording began doesn't know of."""
        known = self.streams.clocks[self.begun_on].known
        used = {stream: max(uses.values()) for stream, uses in self.streams.uses.items() if stream != self.begun_on}
        assert self.streams.current == self.begun_on
        assert all(known.get(stream, -1) >= time for stream, time in used.items()), "unjoined work"


class Graph:
    """What `end_capture` returns."""

    def __init__(self, recorder: Any, tape: Tape) -> None:
        self._recorder, self._tape = recorder, tape
        tape.end()
        tape.spoil()
        for messenger in tape.messengers:
            messenger.graphs.add(self)

    def launch(self) -> None:
        assert not self._tape.pool_is_gone, "the graph's memory may be somebody else's by now"
        self._recorder.note("graph", len(self._tape.steps))
        for (_, _, writes), array in self._tape.uses.items():
            self._recorder.streams.use(array, writes)
        with np.errstate(all="ignore"):
            for step in self._tape.steps:
                step()


@contextmanager
def using_allocator(recorder: Any, malloc: Any) -> Iterator[None]:
    """New arrays come from the pool that `malloc` belongs to."""
    recorder.threads.pool = malloc.__self__
    try:
        yield
    finally:
        recorder.threads.pool = None
