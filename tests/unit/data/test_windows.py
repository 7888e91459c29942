"""Windows that threads read while the ranks of a host train: each rank finds the rows that the order names."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import pytest

from distsgd.core.device import Array
from distsgd.core.errors import DataError, DistsgdError
from distsgd.data.orders import BlockOrder
from distsgd.data.sources.base import Runs
from distsgd.data.splits import BlockIndices
from distsgd.data.stored import Check, StoredArray
from distsgd.data.window_reader import Reading, WindowReader
from distsgd.data.windows import ConvertedArray, StreamedOrder, Table, WindowedArray, Windows, table_size
from tests.unit.data.fakes import Source, source_of

ROWS, BLOCK, PER_WINDOW, BATCH = 1003, 16, 5, 48
VALUES = np.random.default_rng(0).standard_normal((ROWS, 3))
WAIT = 60


class Host:
    """The ranks of a host, with a reader of x and y."""

    def __init__(
        self, source: Source, *, ranks: int = 1, readers: int = 1, checks: Mapping[str, Check] | None = None,
        rows: BlockIndices | None = None, as_float32: bool = False,
    ) -> None:  # fmt: skip
        self.values, self.indices = source.values, np.arange(len(source.values)) if rows is None else rows[:]
        self.order = BlockOrder(len(self.indices), BLOCK, PER_WINDOW, 3)
        y = source_of(np.arange(len(source.values)))
        dtype = np.dtype(np.float32 if as_float32 else np.float64)
        memory = {
            "x": np.zeros((2, BLOCK * PER_WINDOW, *source.shape[1:]), dtype),
            "y": np.zeros((2, BLOCK * PER_WINDOW), np.int64),
        }
        words = np.zeros(table_size(ranks), np.int64)
        Table(words, ranks).reset()
        self.progressed = 0

        def windows(rank: int) -> Windows:
            return Windows(
                self.order, self.indices.__getitem__, len(self.indices), BLOCK, PER_WINDOW, Table(words, ranks), rank,
                self._progress,
            )  # fmt: skip

        def array(rank: Windows, name: str, source: Source) -> WindowedArray:
            stored = StoredArray(source)
            if name == "x" and as_float32:
                return WindowedArray(rank, memory[name], ConvertedArray(stored, _as_float32, dtype))
            return WindowedArray(rank, memory[name], stored)

        self.ranks = [windows(rank) for rank in range(ranks)]
        self.orders = [StreamedOrder(rank) for rank in self.ranks]
        self.arrays = [(array(rank, "x", source), array(rank, "y", y)) for rank in self.ranks]
        converts = {"x": _as_float32} if as_float32 else {}
        self.reader = WindowReader(
            windows(0), Reading("numbers", {"x": source, "y": y}, memory, checks or {}, converts, readers=readers)
        )

    def _progress(self) -> None:
        self.progressed += 1

    @contextmanager
    def reading(self) -> Iterator[None]:
        self.reader.start()
        try:
            yield
        finally:
            self.reader.close()

    def train(self, *epochs: int) -> None:
        """What rank 0 does in some epochs."""
        for epoch in epochs:
            for start in range(0, len(self.indices), BATCH):
                self.gather(0, epoch, start)

    def gather(self, rank: int, epoch: int, start: int) -> None:
        """One rank's part of a minibatch, compared with the order and the values."""
        stop = min(start + BATCH, len(self.indices))
        positions = self.orders[rank].indices(epoch, start, stop)
        np.testing.assert_array_equal(positions, self.order.indices(epoch, start, stop))
        share = slice(rank * len(positions) // len(self.ranks), (rank + 1) * len(positions) // len(self.ranks))
        rows, (x, y) = self.indices[positions[share]], self.arrays[rank]
        np.testing.assert_array_equal(x.take(rows), self.values[rows].astype(x.dtype))
        np.testing.assert_array_equal(y.take(rows), rows)


def _as_float32(rows: Array) -> Array:
    return rows.astype(np.float32)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("case", ["plain", "blocks", "converted", "chunks", "three readers", "slow"])
def test_each_rank_finds_the_rows_of_its_step(ranks: int, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(VALUES, rows=40 if case == "chunks" else 1)
    if case == "slow":
        monkeypatch.setattr("distsgd.data.window_reader.TOGETHER", 1)
        source = source_of(VALUES, lambda runs: time.sleep(0.003))
    rows = BlockIndices(np.delete(np.arange(63), [0, 7, 8, 30]), BLOCK, ROWS) if case == "blocks" else None
    host = Host(
        source, ranks=ranks, rows=rows, as_float32=case == "converted", readers=3 if case == "three readers" else 1
    )
    together, errors = threading.Barrier(ranks, timeout=WAIT), []

    def train(rank: int) -> None:
        try:
            for epoch in range(3):
                for start in range(0, len(host.indices), BATCH):
                    together.wait()
                    host.gather(rank, epoch, start)
        except BaseException as error:
            errors.append(error)
            together.abort()

    with host.reading():
        threads = [threading.Thread(target=train, args=(rank,)) for rank in range(ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
    assert not errors
    assert case != "slow" or host.progressed > 0


def test_any_step_can_be_the_next_one() -> None:
    host = Host(source_of(VALUES))
    with host.reading():
        for epoch, start in ((4, 480), (4, 528), (1, 0), (9, 960), (1, 432), (0, 0), (0, 48)):
            host.gather(0, epoch, start)


def test_rows_outside_the_windows_come_from_the_file() -> None:
    """As of validation, and of what is looked at before the first step."""
    host = Host(source_of(VALUES), as_float32=True)
    x, y = host.arrays[0]
    np.testing.assert_array_equal(x[:], VALUES.astype(np.float32))
    with host.reading():
        for start in range(0, ROWS - BATCH, BATCH):
            host.gather(0, 0, start)
            np.testing.assert_array_equal(x[5:ROWS], VALUES[5:].astype(np.float32))
            np.testing.assert_array_equal(y[:], np.arange(ROWS))


def test_the_error_of_a_reader_reaches_every_rank() -> None:
    def fails(runs: Runs) -> None:
        if runs[-1][1] > 300:
            raise DataError("numbers: row 300 is damaged")

    host = Host(source_of(VALUES, fails), ranks=2)
    with host.reading():
        for rank in (0, 1):
            host.orders[rank].indices(0, 0, BATCH)
        for rank in (0, 1):
            with pytest.raises(DataError, match="numbers: row 300 is damaged"):
                host.arrays[rank][0].take(host.order.indices(0, 0, BATCH))


def test_an_error_that_no_format_expects_says_which_data_were_read() -> None:
    def fails(runs: Runs) -> None:
        raise KeyError("surprise")

    host = Host(source_of(VALUES, fails))
    with host.reading(), pytest.raises(DistsgdError, match=r"(?s)numbers: reading it failed.*surprise"):
        host.gather(0, 0, 0)


def test_rows_are_checked_as_they_are_read_first() -> None:
    values, seen = VALUES.copy(), np.zeros(ROWS, int)
    values[700, 1] = np.nan

    def check(block: Array, rows: Array) -> None:
        seen[rows] += 1
        np.testing.assert_array_equal(block, values[rows])
        if not np.isfinite(block).all():
            raise DataError(f"example {rows[np.argmax(~np.isfinite(block).all(axis=1))]} holds nan")

    host = Host(source_of(values), checks={"x": check})
    with host.reading(), pytest.raises(DataError, match="example 700 holds nan"):
        host.train(0)
    host = Host(source_of(np.where(np.isnan(values), 0, values)), checks={"x": lambda block, rows: _count(seen, rows)})
    seen[:] = 0
    with host.reading():
        host.train(0, 1, 2)
    assert (seen == 1).all()


def _count(seen: Array, rows: Array) -> None:
    seen[rows] += 1


def test_rows_that_have_changed_are_named() -> None:
    values = VALUES.copy()
    host = Host(source_of(values))
    with host.reading():
        host.train(0)
        host.values = values.copy()  # a window may have been read ahead
        values[500] += 1
        with pytest.raises(DataError, match="numbers: rows 496 to 511 are no longer what they were"):
            host.train(1, 2)


def test_the_end_doesnt_wait_for_a_window() -> None:
    host = Host(source_of(VALUES, lambda runs: time.sleep(0.05), rows=1))
    host.reader.start()
    host.orders[0].indices(0, 0, BATCH)
    host.reader.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "distsgd-reader"]
