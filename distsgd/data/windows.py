"""Windows of a training set in memory: threads of a host read the next one while its ranks train on this one.

An epoch visits its blocks window by window (`orders.BlockOrder`). Window number g = epoch · windows + window, counted
over all epochs, lies in half g % 2 of the memory. Each rank writes into a table in which window its step begins. As a
step is a collective, no rank gathers from a window any more once all have begun a step in the next, which is when the
one after that may take its place.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast, final

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import DataError, DistsgdError
from distsgd.data.orders import BlockOrder, Order
from distsgd.data.sources.base import Runs
from distsgd.data.stored import RowArray

_FAILED, _PROGRESS, _LOADED, _AT = 0, 1, 2, 4
"""Places in the table: exit status of a reader that failed, what has been read so far, the window in each half, and
from here on each rank's window."""
_MESSAGE = 4096
"""Bytes of the sentence of a reader that failed."""
NONE = -1
"""The number of no window."""
_WAIT = 0.0002


def table_size(ranks: int) -> int:
    """The int64 words of the table of so many ranks of a host."""
    return _AT + ranks + _MESSAGE // 8


class Table:
    """What the ranks of a host and its readers say to each other, in memory that all see.

    Parameters
    ----------
    words
        `table_size(ranks)` words int64, zero at first.
    ranks
        The ranks of the host.
    """

    def __init__(self, words: Array, ranks: int) -> None:
        self._words, self._ranks = words, ranks
        self._message = words[_AT + ranks :].view(np.uint8)
        self._lock = threading.Lock()

    def reset(self) -> None:
        """Nothing is loaded, and no rank has begun a step: one rank calls it before others use the table."""
        self._words[: _AT + self._ranks] = NONE
        self._words[_FAILED] = self._words[_PROGRESS] = 0

    def fence(self) -> None:
        """What this thread has written before, other processes see before what it writes afterwards."""
        with self._lock:
            pass

    def begin(self, rank: int, window: int) -> None:
        """Notes that a rank's step begins in this window."""
        if self._words[_AT + rank] != window:
            self._words[_AT + rank] = window
            self.fence()

    def at(self, rank: int) -> int:
        """The window in which a rank's step begins; below 0 before the first."""
        return int(self._words[_AT + rank])

    @property
    def first(self) -> int:
        """The first window that a rank of the host needs; below 0 while one has not begun."""
        return int(self._words[_AT : _AT + self._ranks].min())

    def loaded(self, half: int) -> int:
        """The window that is in a half of the memory; below 0 for none."""
        return int(self._words[_LOADED + half])

    def set_loaded(self, half: int, window: int) -> None:
        """Notes that this window is in a half of the memory."""
        self.fence()
        self._words[_LOADED + half] = window
        self.fence()

    @property
    def progress(self) -> int:
        """Changes as readers read."""
        return int(self._words[_PROGRESS])

    def progressed(self) -> None:
        """Notes that something has been read."""
        self._words[_PROGRESS] += 1

    def fail(self, error: DistsgdError) -> None:
        """Notes that a reader has failed; the first error stays."""
        if self._words[_FAILED]:
            return
        text = str(error).encode("utf-8", "replace")[: _MESSAGE - 1]
        self._message[: len(text)] = np.frombuffer(text, np.uint8)
        self._message[len(text)] = 0
        self.fence()
        self._words[_FAILED] = error.exit_status

    def check(self) -> None:
        """Raises the error of a reader that has failed."""
        status = int(self._words[_FAILED])
        if status:
            text = self._message.tobytes().partition(b"\0")[0].decode("utf-8", "replace")
            raise (DataError if status == DataError.exit_status else DistsgdError)(text)


@dataclass(eq=False)
class Windows:
    """Where the examples of the windows are, as a rank sees them; its x, y and weights share it.

    Parameters
    ----------
    order
        In which an epoch visits the training examples.
    rows_of
        The rows of the file of positions in the training set; a block's are consecutive, and a block of the file.
    count, block, per_window
        The number of training examples, examples of a block, and blocks of a window.
    table, rank
        The host's table, and this rank's number on the host.
    progressed
        Called while a rank waits for a reader that reads.
    """

    order: BlockOrder
    rows_of: Callable[[Array], Array]
    count: int
    block: int
    per_window: int
    table: Table
    rank: int
    progressed: Callable[[], object]
    _kept: tuple[int, Array] | None = field(default=None, init=False, repr=False)

    @property
    def rows(self) -> int:
        """Of a half of the memory."""
        return self.block * self.per_window

    @property
    def blocks(self) -> int:
        """Blocks of the file up to the last one that is trained on."""
        return int(self.rows_of(np.array([self.count - 1]))[0]) // self.block + 1

    def runs(self, window: int) -> Runs:
        """The rows of each block of a window, in the file's order."""
        blocks = self.order.window_blocks(*divmod(window, self.order.windows))
        starts = self.rows_of(blocks * self.block)
        lengths = np.minimum(self.block, self.count - blocks * self.block)
        return list(zip(starts.tolist(), (starts + lengths).tolist(), strict=True))

    def places(self, rows: Array) -> Array | None:
        """Where in the memory these rows of the file are, once they are there; None where they aren't of a window that
        the step needs. Raises the error of a reader that has failed."""
        current = self.table.at(self.rank)
        if current < 0:
            return None
        starts = self._starts(current)
        blocks = rows // self.block
        if len(rows) and int(blocks.max()) >= len(starts):
            return None
        found: Array = starts[blocks]
        if len(rows) and int(found.min()) < 0:
            return None
        halves = found // self.rows
        for window in (current, current + 1):
            if (halves == window % 2).any():
                self._wait_for(window)
        found += rows - blocks * self.block
        return found

    def _starts(self, current: int) -> Array:
        """Where in the memory each block of the file begins, -1 for those that are in neither of the two windows."""
        kept = self._kept
        if kept is not None and kept[0] == current:
            return kept[1]
        found = np.full(self.blocks, NONE, np.int64)
        for window in (current + 1, current):  # a block may be in an epoch's last window and in the next one's first
            blocks = np.array([start // self.block for start, _ in self.runs(window)], np.int64)
            found[blocks] = window % 2 * self.rows + np.arange(len(blocks)) * self.block
        self._kept = (current, found)
        return found

    def _wait_for(self, window: int) -> None:
        before = self.table.progress
        while self.table.loaded(window % 2) != window:
            self.table.check()
            now = self.table.progress
            if now != before:
                before = now
                self.progressed()
            time.sleep(_WAIT)
        self.table.fence()


@final
class WindowedArray(RowArray):
    """An array of a training set: rows of the windows that a step needs come from memory, others from the file.

    Parameters
    ----------
    windows
        Where rows are.
    memory
        Both halves, (2, rows, …).
    stored
        The same array in its file, with rows as the memory holds them.
    """

    def __init__(self, windows: Windows, memory: Array, stored: RowArray) -> None:
        super().__init__((len(stored), *memory.shape[2:]), memory.dtype, stored.files)
        self._windows, self._stored = windows, stored
        self._memory = memory.reshape(-1, *memory.shape[2:])

    def take(self, rows: Array, axis: int = 0, out: Array | None = None, mode: str = "clip") -> Array:
        places = self._windows.places(rows)
        if places is None:
            return self._stored.take(rows, out=out)
        found: Array = self._memory.take(places, axis=0, out=out, mode="clip")
        return found


@final
class ConvertedArray(RowArray):
    """Another array, each block of rows converted after it is read."""

    def __init__(self, inner: RowArray, convert: Callable[[Array], Array], dtype: np.dtype[Any]) -> None:
        super().__init__(inner.shape, dtype, inner.files)
        self._inner, self._convert = inner, convert

    def take(self, rows: Array, axis: int = 0, out: Array | None = None, mode: str = "clip") -> Array:
        found = self._convert(self._inner.take(rows)).reshape(len(rows), *self.shape[1:])
        if out is None:
            return found
        out[...] = found
        return out


@final
class StreamedOrder(Order):
    """An order that notes in which window each minibatch begins."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows

    def indices(self, epoch: int, start: int, stop: int) -> Array:
        """See `Order.indices`; this rank has gathered all that it asked for before."""
        order = self._windows.order
        self._windows.table.begin(self._windows.rank, epoch * order.windows + order.find(epoch, start))
        return order.indices(epoch, start, stop)


def windowed(windows: Windows, memory: Array, stored: RowArray) -> Array:
    """A `WindowedArray` as what takes arrays in memory is given it."""
    return cast("Array", WindowedArray(windows, memory, stored))
