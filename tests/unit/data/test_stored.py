"""Arrays that stay in their files, against NumPy's on the same numbers."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from distsgd.core.device import CPU, Array
from distsgd.core.errors import DataError
from distsgd.data.examples import Examples
from distsgd.data.sources.arrays.npy import NpySource
from distsgd.data.sources.base import ArraySource, Runs
from distsgd.data.sources.converted import ValuesSource
from distsgd.data.sources.streams import stamps
from distsgd.data.stored import StoredArray, runs_of
from tests.unit.data.fakes import Source, source_of

VALUES = np.arange(3000 * 7, dtype=np.float32).reshape(3000, 7)
READS: list[Runs] = []


def chunked(rows: int) -> Source:
    return source_of(VALUES, READS.append, rows)


@pytest.mark.parametrize(
    "source",
    [ValuesSource.of(VALUES), chunked(1), chunked(5), chunked(3000)],
    ids=["values", "rows", "chunks of 5", "one chunk"],
)
def test_rows_are_numpys(source: ArraySource) -> None:
    stored, draws = StoredArray(source), np.random.default_rng(0)
    about = (stored.shape, stored.dtype, stored.ndim, stored.size, stored.nbytes, len(stored))
    assert about == (VALUES.shape, VALUES.dtype, 2, VALUES.size, VALUES.nbytes, 3000)
    for count in (0, 1, 40, 3000, 7000):
        rows = draws.integers(0, 3000, count)
        out = np.empty((count, 7), np.float32)
        assert CPU.take(stored, rows, out) is out  # type: ignore[arg-type]
        np.testing.assert_array_equal(out, VALUES[rows])
        np.testing.assert_array_equal(stored.take(np.sort(rows)), VALUES[np.sort(rows)])
    for key in (3, -1, slice(10, 2999), slice(None, None, -7), np.array([2, -2]), VALUES[:, 0] > 9000, [5, 5]):
        np.testing.assert_array_equal(stored[key], VALUES[key])
    with pytest.raises(IndexError, match="below 3000"):
        stored[3000]
    part = stored.part(100, 150)
    np.testing.assert_array_equal(part[:], VALUES[100:150])
    np.testing.assert_array_equal(part.part(10, 20)[-1], VALUES[119])
    assert len(part) == 50
    with pytest.raises(TypeError, match="rows"):
        np.asarray(stored)


def test_runs() -> None:
    assert runs_of(np.array([], np.int64)) == []
    assert runs_of(np.array([0, 1, 5, 7, 8])) == [(0, 2), (5, 6), (7, 9)]


def test_a_chunk_is_read_once_where_its_rows_are_asked_for_one_after_the_other() -> None:
    stored = StoredArray(chunked(3000))
    READS.clear()
    for start in range(0, 3000, 100):
        assert stored[start : start + 100].shape == (100, 7)
    assert READS == [[(0, 3000)]]
    READS.clear()
    stored.close()
    assert stored[0].tolist() == VALUES[0].tolist()
    assert len(READS) == 1


def test_rows_of_a_raw_file_are_read_alone() -> None:
    stored = StoredArray(chunked(1))
    READS.clear()
    stored.take(np.array([9, 7, 8, 2000]))
    assert READS == [[(7, 10), (2000, 2001)]]


def test_examples_take_it_as_an_array(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", VALUES)
    stored = StoredArray(NpySource.open(tmp_path / "x.npy"))
    examples = Examples(stored, np.arange(3000)).subset(np.array([5, 2]))  # type: ignore[arg-type]
    rows = examples.row_indices(np.array([1, 0]))
    np.testing.assert_array_equal(examples.x.take(rows, axis=0), VALUES[[2, 5]])


def test_threads_read_at_the_same_time() -> None:
    stored, wrong = StoredArray(chunked(64)), []

    def read(seed: int) -> None:
        draws = np.random.default_rng(seed)
        for _ in range(50):
            rows = draws.integers(0, 3000, 30)
            if not np.array_equal(stored.take(rows), VALUES[rows]):
                wrong.append(rows)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_the_check_sees_what_is_read() -> None:
    def check(block: Array, rows: Array) -> None:
        np.testing.assert_array_equal(block, VALUES[rows])
        if (rows == 1234).any():
            raise DataError("example 1,234 is wrong")

    for source in (chunked(1), chunked(100)):
        with pytest.raises(DataError, match="1,234"):
            StoredArray(source, check=check)[1200:1300]
    np.testing.assert_array_equal(StoredArray(chunked(1), check=check)[:1000], VALUES[:1000])


def test_a_file_that_has_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distsgd.data.stored.LOOKED_AFTER", -1.0)
    path = tmp_path / "x.npy"
    np.save(path, VALUES)
    stored = StoredArray(NpySource.open(path), stamps([str(path)]))
    np.testing.assert_array_equal(stored[5:9], VALUES[5:9])
    with path.open("r+b") as file:
        file.truncate(50_000)
    with pytest.raises(DataError, match=r"x\.npy: .*50000 bytes"):
        stored[5:9]
