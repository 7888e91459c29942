"""Inputs in a large mapped file are checked as they are first read: the start doesn't read them all."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path

import numpy as np
import pytest

import distsgd
from distsgd.data.checks import check_rows

ROWS, BAD = (1 << 30) // 4096 + 2000, (700, 263_444)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A sparse file of a little more than 1 GiB, with two numbers that aren't finite."""
    x = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=(ROWS, 1024))
    x[BAD[0], 7], x[BAD[1], 3] = np.nan, -np.inf
    np.save(tmp_path / "y.npy", np.arange(ROWS) % 3)
    return tmp_path


def test_a_bad_number_is_found_where_it_is_read(large: Path) -> None:
    options = {"hidden": (4,), "epochs": 1, "shuffle": False, "batch_size": 100, "early_stopping": "none"}
    source = distsgd.open_dataset(str(large))
    assert distsgd.fit("mlp", source, **options, max_steps=7).summary["status"] == "completed"
    with pytest.raises(distsgd.DataError, match=r"inputs: expected finite numbers, example 700 holds nan; remove"):
        distsgd.fit("mlp", source, **options, max_steps=8)
    with pytest.raises(distsgd.DataError, match=r"inputs: expected finite numbers, example 263444 holds -inf"):
        distsgd.fit("mlp", source, **options, max_steps=1, validation_last=800)


def test_the_rows_that_are_looked_at_are_checked_at_the_start(large: Path) -> None:
    x = np.lib.format.open_memmap(large / "x.npy", mode="r+")
    x[-1, 0] = np.nan
    with pytest.raises(distsgd.DataError, match=f"example {ROWS - 1} holds nan"):
        distsgd.fit("softmax", distsgd.open_dataset(str(large)), epochs=0)


@pytest.mark.skipif(sys.platform != "linux", reason="counts the pages that Linux keeps of a file")
def test_the_start_reads_little_of_the_file(tmp_path: Path) -> None:
    """Systems read ahead of what is asked for, some of them megabytes."""
    rows = 1 << 20
    np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=(rows, 1024))
    np.save(tmp_path / "y.npy", np.arange(rows) % 3)
    distsgd.fit("softmax", distsgd.open_dataset(str(tmp_path)), epochs=0, validation_fraction=0)
    with (tmp_path / "x.npy").open("rb") as file:
        kept = pages_kept(file.fileno())
    assert 0 < kept < 0.1


def pages_kept(descriptor: int) -> float:
    """The part of a file that is in memory."""
    size = os.fstat(descriptor).st_size
    found = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with mmap.mmap(descriptor, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        start = (ctypes.c_char * size).from_buffer(mapped)
        status = ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), found)
        del start
    assert status == 0
    return sum(page & 1 for page in bytes(found)) / len(found)


@pytest.mark.parametrize("stored", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gathered_rows_are_checked_as_whole_arrays_are(stored: type, dtype: type) -> None:
    check = check_rows("d", np.dtype(dtype))
    x = np.full((5, 2, 3), np.finfo(stored).max / 4, stored)
    rows = np.array([7, 2, 9, 4, 4])
    if stored is not np.float64 or dtype is np.float64:
        check(x, rows)
    else:
        with pytest.raises(distsgd.DataError, match="numbers that float32 can hold, example 7 holds"):
            check(x, rows)
    x[...] = 1
    check(x, rows)
    for value in (np.nan, np.inf, -np.inf):
        x[3, 1, 1] = value
        with pytest.raises(distsgd.DataError, match=f"^d: inputs: expected finite numbers, example 4 holds {value};"):
            check(x, rows)
    check(np.ones((2, 3), np.int8), rows[:2])
    several = np.zeros(2, [("tokens", np.int32, (3,)), ("length", np.float32)])
    check(several, rows[:2])
    several["length"][1] = np.nan
    with pytest.raises(distsgd.DataError, match=r"input length: .*example 2 holds nan"):
        check(several, rows[:2])
