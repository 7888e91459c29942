"""CUDA graphs for the stand-in for CuPy: what is recorded isn't done, and each start of the graph does it once.

Stricter than CUDA: memory that a recording found is filled with rubbish when it ends and when its pool is gone, and
neither copies nor waits nor memory from outside a pool of its own may be recorded.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


class Pool:
    """Memory for the arrays of one recording."""

    def malloc(self, size: int) -> None:
        raise AssertionError("only the stand-in's own arrays are made")


class Tape:
    """What one thread has recorded since it began."""

    def __init__(self, pool: Pool) -> None:
        self.steps: list[Callable[[], Any]] = []
        self.made: list[np.ndarray] = []
        self.pool_is_gone = False
        weakref.finalize(pool, self._lose_pool)

    def _lose_pool(self) -> None:
        self.pool_is_gone = True
        self.spoil()

    def spoil(self) -> None:
        """Writes rubbish over all arrays of the recording."""
        for array in self.made:
            array.view(np.uint8 if array.ndim else array.dtype)[...] = 0xFF if array.ndim else 0
            if not array.ndim:
                array[...] = np.nan if array.dtype.kind == "f" else 1

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


class Graph:
    """What `end_capture` returns."""

    def __init__(self, tape: Tape, note: Callable[[], None], threads: Any) -> None:
        self._tape, self._note, self._threads = tape, note, threads
        tape.spoil()

    def launch(self) -> None:
        assert not self._tape.pool_is_gone, "the graph's memory may be somebody else's by now"
        self._note()
        self._threads.launched = getattr(self._threads, "launched", 0) + 1
        with np.errstate(all="ignore"):
            for step in self._tape.steps:
                step()


class Event:
    """A point in a stream's work: the copies that were asked for before it, and the graphs launched."""

    def __init__(self, recorder: Any) -> None:
        self._recorder = recorder
        self.stream: Stream | None = None
        self.copies, self.launched = 0, 0

    def record(self, stream: Stream) -> None:
        self.stream, self.copies, self.launched = stream, stream.asked, getattr(self._recorder.threads, "launched", 0)

    def synchronize(self) -> None:
        """The host waits for it."""
        if self.stream is not None:
            self.stream.unlock(self.copies)


class Stream:
    """A stream of the stand-in: only one that isn't CUDA's default can be recorded."""

    def __init__(self, recorder: Any, non_blocking: bool = True) -> None:
        self._recorder, self._is_default = recorder, not non_blocking
        self.asked, self.seen = 0, 0
        self._copies: list[tuple[int, np.ndarray, np.ndarray]] = []
        self._locked: list[tuple[int, np.ndarray, np.ndarray]] = []

    def use(self) -> None:
        self._recorder.threads.stream = self

    def synchronize(self) -> None:
        self._recorder.wait()

    def copy_later(self, target: np.ndarray, host: np.ndarray) -> None:
        """A copy to the GPU, done when somebody waits for it. It may begin at once, so of all graphs that were launched
        only the last one may still be reading, at another place."""
        launched = getattr(self._recorder.threads, "launched", 0)
        assert self.seen >= launched - 1, "a copy writes over what a graph may still be reading"
        locked = any(np.may_share_memory(host, one) for _, one, _ in self._locked)
        assert not locked, "the host doesn't know yet whether this memory has been copied"
        self.asked += 1
        self._copies.append((self.asked, target, host.copy()))
        self._locked.append((self.asked, host, host.copy()))

    def copy_until(self, number: int) -> None:
        """The copies up to this one are done, for the GPU: the host doesn't know it yet."""
        for _, target, content in (copy for copy in self._copies if copy[0] <= number):
            target[...] = content
        self._copies = [copy for copy in self._copies if copy[0] > number]

    def unlock(self, number: int) -> None:
        """The host knows that the copies up to this one are done, and may write to where they came from."""
        self.copy_until(number)
        for _, host, content in (copy for copy in self._locked if copy[0] <= number):
            assert np.array_equal(host, content), "the host wrote to memory that was being copied to a GPU"
        self._locked = [copy for copy in self._locked if copy[0] > number]

    def wait_event(self, event: Event) -> None:
        """What is asked of this stream from now on begins behind the event."""
        assert self._recorder.tape is None
        self.seen = max(self.seen, event.launched)
        if event.stream is not None:
            event.stream.copy_until(event.copies)

    def begin_capture(self) -> None:
        assert not self._is_default
        pool = getattr(self._recorder.threads, "pool", None)
        assert pool is not None, "the arrays of a recording need a pool of their own"
        self._recorder.threads.tape = Tape(pool)

    def end_capture(self) -> Graph:
        tape, self._recorder.threads.tape = self._recorder.threads.tape, None
        return Graph(tape, lambda: self._recorder.note("graph", len(tape.steps)), self._recorder.threads)


@contextmanager
def using_allocator(recorder: Any, malloc: Any) -> Iterator[None]:
    """New arrays come from the pool that `malloc` belongs to."""
    recorder.threads.pool = malloc.__self__
    try:
        yield
    finally:
        recorder.threads.pool = None
