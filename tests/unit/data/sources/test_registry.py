"""Formats and the reading by rows: every source against NumPy's slices, and what a format doesn't take is refused."""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.data.named.datasets import open_dataset
from distsgd.data.sources.arrays.idx import IdxSource
from distsgd.data.sources.arrays.npy import NpySource, open_npz
from distsgd.data.sources.base import ArraySource, ReadOptions, Rows, Runs, read_array
from distsgd.data.sources.converted import ValuesSource, converted, open_rows, read_together
from distsgd.data.sources.registry import FORMATS, Format, format_of, open_path
from tests.unit.data.sources.slices import rows_of, runs_of, sliced

N = 40
BYTES = (np.arange(N * 6) % 251).astype(np.uint8).reshape(N, 3, 2)
FLOATS = np.linspace(-3, 9, N * 4, dtype=np.float32).reshape(N, 4)


def sources(folder: Path) -> dict[str, tuple[ArraySource, Array, int]]:
    """Every kind of source, what it holds, and the rows that one costs."""
    np.save(folder / "c.npy", FLOATS)
    np.save(folder / "fortran.npy", np.asfortranarray(FLOATS))
    np.save(folder / "wide.npy", FLOATS.astype(">f8"))
    np.savez(folder / "a.npz", a=FLOATS)
    np.savez_compressed(folder / "packed.npz", a=FLOATS)
    idx = bytes([0, 0, 8, 3]) + b"".join(length.to_bytes(4, "big") for length in BYTES.shape) + BYTES.tobytes()
    (folder / "images").write_bytes(idx)
    (folder / "images.gz").write_bytes(gzip.compress(idx))
    c, labels = NpySource.open(folder / "c.npy"), ValuesSource.of(BYTES[:, 0, :1])
    return {
        "npy": (c, FLOATS, 1),
        "fortran": (NpySource.open(folder / "fortran.npy"), FLOATS, N),
        "another byte order": (NpySource.open(folder / "wide.npy"), FLOATS.astype(">f8"), 1),
        "npz": (open_npz(folder / "a.npz", ["a"])["a"], FLOATS, 1),
        "packed": (open_npz(folder / "packed.npz", ["a"])["a"], FLOATS, N),
        "idx": (IdxSource.open(folder / "images", 3), BYTES, 1),
        "idx, packed": (IdxSource.open(folder / "images.gz", 3), BYTES, N),
        "values": (ValuesSource.of(FLOATS), FLOATS, 1),
        "wider": (converted(c, np.float64), FLOATS.astype(np.float64), 1),
        "another shape": (converted(c, np.float32, (N, 2, 2)), FLOATS.reshape(N, 2, 2), 1),
        "labels": (converted(labels, np.int64, (N,)), BYTES[:, 0, 0].astype(np.int64), 1),
        "twice": (converted(converted(labels, np.int32), np.int64, (N,)), BYTES[:, 0, 0].astype(np.int64), 1),
    }


NAMES = (
    "npy", "fortran", "another byte order", "npz", "packed", "idx", "idx, packed", "values", "wider", "another shape",
    "labels", "twice",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[ArraySource, Array, int]]:
    found = sources(tmp_path_factory.mktemp("sources"))
    assert tuple(found) == NAMES
    return found


@pytest.mark.parametrize("name", NAMES)
@given(reads=st.lists(runs_of(N), max_size=3))
@settings(max_examples=20, deadline=None)
def test_rows_are_those_of_the_array(
    made: dict[str, tuple[ArraySource, Array, int]], name: str, reads: list[list[tuple[int, int]]]
) -> None:
    source, array, chunk = made[name]
    assert source.chunk == chunk
    with open_rows({"a": source}) as rows:
        for one in reads:
            np.testing.assert_array_equal(rows_of(rows, one, source), sliced(array, one), strict=True)
    rows.close()


def test_two_threads_read_one_source(made: dict[str, tuple[ArraySource, Array, int]]) -> None:
    source, array, _ = made["npy"]
    found: list[Array] = []

    def read() -> None:
        with open_rows({"a": source}) as rows:
            found.append(np.concatenate([rows_of(rows, [(k, k + 1)], source) for k in range(N)]))

    threads = [Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(found) == 2
    assert all(np.array_equal(one, array) for one in found)


def test_a_file_that_has_changed_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.npy"
    np.save(path, FLOATS)
    source = NpySource.open(path)
    np.save(path, FLOATS[:-1])
    with pytest.raises(DataError, match=r"c\.npy: expected the array that was opened, it has changed since"):
        open_rows({"a": source})
    many = np.zeros((20_000, 4))
    np.save(path, many)
    source = NpySource.open(path)
    with open_rows({"a": source}) as rows:
        os.truncate(path, 20_000)
        with pytest.raises(DataError, match=r"c\.npy: expected 32 bytes of data, the file ends after 0"):
            rows_of(rows, [(len(many) - 1, len(many))], source)


def test_files_are_stamped(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=FLOATS, y=np.arange(N))
    (stamp,) = open_dataset(str(tmp_path / "d.npz")).files
    stamp.check()
    np.savez(tmp_path / "d.npz", x=FLOATS[1:], y=np.arange(N - 1))
    with pytest.raises(DataError, match="leave the file as it is while it is in use"):
        stamp.check()
    for kind in ("x", "y", "weights"):
        np.save(tmp_path / f"{kind}.npy", np.ones(N) if kind != "x" else FLOATS)
    assert len(open_dataset(str(tmp_path / "x.npy")).files) == 3
    (tmp_path / "d.npz").unlink()
    assert len(open_dataset(str(tmp_path)).files) == 3


@dataclass(frozen=True)
class TableSource(ArraySource):
    """Some columns of a table in memory, whose readings are counted."""

    first: int
    log: tuple[list[int], ...]

    @property
    def chunk(self) -> int:
        return 4

    @property
    def table(self) -> Hashable:
        return id(self.log)

    def read_into(self, out: Array) -> None:
        read_together({"": self}, {"": out})

    def open_rows(self, arrays: Mapping[str, ArraySource]) -> Rows:
        return TableRows(arrays)


class TableRows(Rows):
    def __init__(self, arrays: Mapping[str, ArraySource]) -> None:
        self.arrays: dict[str, Any] = dict(arrays)

    def read(self, runs: Runs, out: Mapping[str, Array]) -> None:
        assert out.keys() == self.arrays.keys()
        for name, memory in out.items():
            first, width = self.arrays[name].first, memory[0].size
            memory[...] = sliced(FLOATS, runs)[:, first : first + width].reshape(memory.shape)
        next(iter(self.arrays.values())).log[0].extend(stop - start for start, stop in runs)

    def close(self) -> None:
        next(iter(self.arrays.values())).log[0].append(-1)


def test_sources_of_one_table_are_read_in_one_pass(tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", FLOATS[:, 0])
    log: tuple[list[int], ...] = ([],)
    arrays: dict[str, ArraySource] = {
        "y": converted(TableSource((N, 1), FLOATS.dtype, 3, log), np.float64, (N,)),
        "w": NpySource.open(tmp_path / "w.npy"),
        "x": TableSource((N, 3), FLOATS.dtype, 0, log),
    }
    out = {name: np.zeros(source.shape, source.dtype) for name, source in arrays.items()}
    read_together(arrays, out)
    assert log[0] == [N, -1]
    assert arrays["y"].chunk == 4
    log[0].clear()
    some = {name: np.zeros((5, *source.shape[1:]), source.dtype) for name, source in arrays.items()}
    with open_rows(arrays) as rows:
        rows.read([(0, 2), (7, 10)], some)
    assert log[0] == [2, 3, -1]
    picked = [0, 1, 7, 8, 9]
    for found, at in ((out, list(range(N))), (some, picked)):
        np.testing.assert_array_equal(found["x"], FLOATS[at, :3], strict=True)
        np.testing.assert_array_equal(found["y"], FLOATS[at, 3].astype(np.float64), strict=True)
        np.testing.assert_array_equal(found["w"], FLOATS[at, 0], strict=True)
    np.testing.assert_array_equal(read_array(arrays["x"]), FLOATS[:, :3], strict=True)


GIVEN: dict[str, Any] = {
    "x": ("a",), "y": ("a",), "weights": "w", "group": "g", "axis": "1", "missing": "mean", "classes": ("a", "b"),
    "keep": ("a",),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(GIVEN.keys() - {"x", "y", "weights", "missing", "classes"}))
def test_what_a_format_does_not_take_is_refused(tmp_path: Path, name: str) -> None:
    np.savez(tmp_path / "d.npz", x=FLOATS, y=np.arange(N))
    with pytest.raises(ConfigurationError, match=f"^{name}: would change nothing for a file of NumPy, as "):
        open_path(tmp_path / "d.npz", ReadOptions(**{name: GIVEN[name]}))


def test_a_format_is_found_by_its_longest_ending_or_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("tests_own_format")
    module.open_source = lambda path, options: (os.path.basename(path), options.axis)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    own = Format("an own file", (".own", ".own.npz"), module.__name__, inside=("*.part",), takes=("axis",))
    needy = Format("a needy file", (".needy",), "never.imported", package="no_such_package", extra="plot")
    monkeypatch.setattr("distsgd.data.sources.registry.FORMATS", (*FORMATS, own, needy))
    for name in ("a.own", "b.own.npz", "c.npz", "d.needy"):
        (tmp_path / name).touch()
    assert open_path(tmp_path / "a.own", ReadOptions(axis="2")) == ("a.own", "2")
    assert format_of(str(tmp_path / "b.own.npz")) is own
    assert format_of(str(tmp_path / "c.npz")) is FORMATS[0]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "1.part").touch()
    assert format_of(str(tmp_path / "folder")) is own
    with pytest.raises(ConfigurationError, match=r"d\.needy: a needy file is read by no_such_package, .*\[plot\]"):
        open_path(tmp_path / "d.needy")
    (tmp_path / "e.txt").touch()
    with pytest.raises(DataError, match=r"ending in \.npz, .*\.own, \.own\.npz, \.needy"):
        open_path(tmp_path / "e.txt")
