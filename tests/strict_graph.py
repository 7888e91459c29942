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

    def __init__(self, tape: Tape, note: Callable[[], None]) -> None:
        self._tape, self._note = tape, note
        tape.spoil()

    def launch(self) -> None:
        assert not self._tape.pool_is_gone, "the graph's memory may be somebody else's by now"
        self._note()
        with np.errstate(all="ignore"):
            for step in self._tape.steps:
                step()


class Stream:
    """A stream of the stand-in: only one that isn't CUDA's default can be recorded."""

    def __init__(self, recorder: Any, non_blocking: bool = True) -> None:
        self._recorder, self._is_default = recorder, not non_blocking

    def use(self) -> None:
        self._recorder.threads.stream = self

    def synchronize(self) -> None:
        self._recorder.wait()

    def begin_capture(self) -> None:
        assert not self._is_default
        pool = getattr(self._recorder.threads, "pool", None)
        assert pool is not None, "the arrays of a recording need a pool of their own"
        self._recorder.threads.tape = Tape(pool)

    def end_capture(self) -> Graph:
        tape, self._recorder.threads.tape = self._recorder.threads.tape, None
        return Graph(tape, lambda: self._recorder.note("graph", len(tape.steps)))


@contextmanager
def using_allocator(recorder: Any, malloc: Any) -> Iterator[None]:
    """New arrays come from the pool that `malloc` belongs to."""
    recorder.threads.pool = malloc.__self__
    try:
        yield
    finally:
        recorder.threads.pool = None
