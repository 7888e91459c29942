"""Threads that read the windows of a training set into memory, one after the other."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, final

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import DataError, DistsgdError, users_error
from distsgd.core.fast_digest import digest_of
from distsgd.data.sources.base import ArraySource, Rows, Runs, cut
from distsgd.data.sources.converted import open_rows
from distsgd.data.stored import Check
from distsgd.data.windows import NONE, Windows

if TYPE_CHECKING:
    from distsgd.core.files import FileStamp

TOGETHER = 8 << 20
"""Bytes that are read at least in one call, where there are so many."""
_CONVERTED = 64 << 20
"""Bytes as they are stored that are converted at once."""
_IDLE = (0.0005, 0.02)
"""Seconds that a reader without work waits: at first, and at most."""
_ENDING = 10.0
"""Seconds that the end waits for a read that has begun."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What a host's readers read.

    Parameters
    ----------
    name
        The data set's name in messages.
    sources
        x, y and, where there are any, weights.
    memory
        Both halves of each, (2, rows, …).
    checks
        What is called with rows as they are read for the first time.
    converts
        How rows of arrays that are in memory in another form than in the file are converted.
    files
        The files as they were.
    readers
        The number of threads.
    last
        Windows from this number on are not read before a rank needs them.
    """

    name: str
    sources: Mapping[str, ArraySource]
    memory: Mapping[str, Array]
    checks: Mapping[str, Check]
    converts: Mapping[str, Callable[[Array], Array]]
    files: Sequence[FileStamp] = ()
    readers: int = 1
    last: int = sys.maxsize


@final
class WindowReader:
    """Reads windows in threads, from `start` to `close`."""

    def __init__(self, windows: Windows, reading: Reading) -> None:
        self._windows, self._reading, self._table = windows, reading, windows.table
        self._closing = threading.Event()
        self._digests = np.zeros(windows.blocks, np.uint64)
        self._opened: list[Rows | None] = [None] * reading.readers
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to read as soon as all ranks of the host have begun a step."""
        self._thread = threading.Thread(target=self._run, name="distsgd-reader", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends between two reads."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(_ENDING)

    def _run(self) -> None:
        try:
            self._read_windows()
        except DistsgdError as error:
            self._table.fail(error)
        except BaseException as error:
            self._table.fail(users_error(error, f"{self._reading.name}: reading it failed"))
        finally:
            for rows in self._opened:
                if rows is not None:
                    rows.close()

    def _read_windows(self) -> None:
        pause = _IDLE[0]
        while not self._closing.is_set():
            window = self._next()
            if window is None:
                self._closing.wait(pause)
                pause = min(2 * pause, _IDLE[1])
                continue
            pause = _IDLE[0]
            self._table.set_loaded(window % 2, NONE)
            if window not in (first := self._table.first, first + 1):
                continue  # a rank went back meanwhile, and may have found the window that was here
            for file in self._reading.files:
                file.check()
            if self._read(window):
                self._table.set_loaded(window % 2, window)

    def _next(self) -> int | None:
        """The window to read: the first that a rank needs and isn't there, or the one after it."""
        first = self._table.first
        if first < 0:
            return None
        for window in (first, first + 1):
            if self._table.loaded(window % 2) != window and (window == first or window < self._reading.last):
                return window
        return None

    def _read(self, window: int) -> bool:
        """Reads a window, by all threads; False where the end came before."""
        parts = list(self._parts(self._windows.runs(window)))
        failed: list[BaseException] = []

        def read(reader: int) -> None:
            try:
                for index in range(reader, len(parts), self._reading.readers):
                    if self._closing.is_set() or failed:
                        return
                    self._read_part(reader, window % 2, *parts[index])
                    self._table.progressed()
            except BaseException as error:
                failed.append(error)

        others = [threading.Thread(target=read, args=(k,), daemon=True) for k in range(1, self._reading.readers)]
        for thread in others:
            thread.start()
        read(0)
        for thread in others:
            thread.join()
        if failed:
            raise failed[0]
        return not self._closing.is_set()

    def _parts(self, runs: Runs) -> Iterator[tuple[int, Runs]]:
        """(the place in the memory, blocks that are read in one call): cut where no chunk of a file is, for then each
        is decoded once, and before they become too large to convert."""
        sources = self._reading.sources.values()
        chunk = max(source.chunk for source in sources)
        row = sum(prod(source.shape[1:]) * source.dtype.itemsize for source in sources)
        together: list[tuple[int, int]] = []
        place = size = 0
        for run in runs:
            cuts = not together or together[-1][1] - 1 < run[0] // chunk * chunk
            long = size >= TOGETHER and cuts
            if together and (long or (self._reading.converts and size >= _CONVERTED)):
                yield place, together
                place += len(together) * self._windows.block
                together, size = [], 0
            together.append(run)
            size += (run[1] - run[0]) * row
        if together:
            yield place, together

    def _read_part(self, reader: int, half: int, place: int, runs: Runs) -> None:
        """Reads blocks, one after the other, into a half of the memory from a place on."""
        reading, count = self._reading, sum(stop - start for start, stop in runs)
        rows = self._opened[reader]
        if rows is None:
            rows = self._opened[reader] = open_rows(reading.sources)
        found = {}
        for name, source in reading.sources.items():
            memory = reading.memory[name][half, place : place + count]
            converts = name in reading.converts
            found[name] = np.empty((count, *source.shape[1:]), source.dtype) if converts else memory
        rows.read(_joined(runs), found)
        for start, _, there in cut(runs):
            self._look_at(start, {name: array[there] for name, array in found.items()})
        for name, convert in reading.converts.items():
            memory = reading.memory[name][half, place : place + count]
            memory[...] = convert(found[name]).reshape(memory.shape)

    def _look_at(self, start: int, block: Mapping[str, Array]) -> None:
        """Checks a block as it is read first, and later that it is what it was."""
        stop, number = start + len(next(iter(block.values()))), start // self._windows.block
        digests = b"".join(digest_of(array) for array in block.values())
        digest = np.frombuffer(digest_of(np.frombuffer(digests, np.uint8)), np.uint64)[0]
        before = self._digests[number]
        if not before:
            for name, check in self._reading.checks.items():
                check(block[name], np.arange(start, stop))
            self._digests[number] = digest
        elif before != digest:
            raise DataError(
                f"{self._reading.name}: rows {start:,} to {stop - 1:,} are no longer what they were; leave the file as "
                "it is while it is in use, and start again"
            )


def _joined(runs: Runs) -> Runs:
    """The same rows in as few runs as possible."""
    found: list[tuple[int, int]] = []
    for start, stop in runs:
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return found
