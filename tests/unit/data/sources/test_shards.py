"""Several files as one data set: every row against NumPy's own, and files that don't belong together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import distsgd
from distsgd.core.errors import DataError
from distsgd.data.sources.base import DataSource, ReadOptions, read_array
from distsgd.data.sources.converted import open_rows
from distsgd.data.sources.registry import open_inputs, open_path

LENGTHS = (7, 1, 12, 5, 9, 3, 4, 2, 6, 8, 3)
N = sum(LENGTHS)
ENDS = np.cumsum(LENGTHS)
X = np.random.default_rng(5).normal(size=(N, 4)).astype(np.float32)
Y = np.arange(N) % 3


def write(folder: Path, suffix: str, **changes: Any) -> Path:
    """As many files as LENGTHS says, with `changes` in the last of them."""
    folder.mkdir(exist_ok=True)
    for number, (end, length) in enumerate(zip(ENDS, LENGTHS, strict=True)):
        arrays = {"x": X[end - length : end], "y": Y[end - length : end]}
        if number == len(LENGTHS) - 1:
            arrays |= changes
        path = folder / f"part-{number:02}{suffix}"
        if suffix == ".npz":
            np.savez(path, **arrays)
        else:
            with h5py.File(path, "w") as file:
                for name, array in arrays.items():
                    more = array.shape[1:]
                    file.create_dataset(name, data=array, chunks=(2, *more), maxshape=(None, *more), compression="lzf")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> DataSource:
    return open_path(write(tmp_path_factory.mktemp("shards") / "h5", ".h5"))


def test_the_whole(source: DataSource) -> None:
    x, y = source.arrays["x_train"], source.arrays["y_train"]
    assert (x.chunk, len(source.files)) == (2, len(LENGTHS))
    np.testing.assert_array_equal(read_array(x), X, strict=True)
    np.testing.assert_array_equal(read_array(y), Y, strict=True)


@given(st.lists(st.integers(0, N), unique=True, max_size=12))
@settings(max_examples=40, deadline=None)
def test_runs_are_cut_at_the_ends_of_files(source: DataSource, ends: list[int]) -> None:
    ends.sort()
    runs = list(zip(ends[::2], ends[1::2], strict=False))
    rows = np.concatenate([np.arange(0), *(np.arange(start, stop) for start, stop in runs)]).astype(int)
    out = {name: np.zeros((len(rows), *one.shape[1:]), one.dtype) for name, one in source.arrays.items()}
    with open_rows(source.arrays) as opened:
        opened.read(runs, out)
    np.testing.assert_array_equal(out["x_train"], X[rows])
    np.testing.assert_array_equal(out["y_train"], Y[rows])


def test_training_from_a_folder_a_pattern_or_a_list_is_that_from_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "whole.npz", x=X, y=Y)
    write(tmp_path / "npz", ".npz")
    monkeypatch.chdir(tmp_path)
    names = sorted(f"npz/{name}" for name in os.listdir("npz"))
    hashes = {
        distsgd.fit("softmax", distsgd.open_dataset(given), epochs=2, batch_size=8).summary["parameters_sha256"]
        for given in ("whole.npz", "npz", Path("npz"), "npz/part-*.npz", ",".join(names), [Path(one) for one in names])
    }
    assert len(hashes) == 1
    assert open_inputs("npz/*").shape == X.shape


def test_missing_values_of_several_files(tmp_path: Path) -> None:
    last = X[-LENGTHS[-1] :].copy()
    last[1, 2] = np.nan
    holes = X.copy()
    holes[-LENGTHS[-1] :] = last
    folder = write(tmp_path / "npz", ".npz", x=last)
    np.savez(tmp_path / "whole.npz", x=holes, y=Y)
    for missing in ("mean", "zero", "drop"):
        expected, found = (
            open_path(path, ReadOptions(missing=missing))  # type: ignore[arg-type]
            for path in (tmp_path / "whole.npz", folder)
        )
        assert found.columns == expected.columns
        for name, one in expected.arrays.items():
            np.testing.assert_array_equal(read_array(found.arrays[name]), read_array(one), strict=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": X[-3:, :2]}, r"part-10\.npz: x_train: expected float32 of shape \(4,\) .*, got float32 of shape \(2,\)"),
        ({"x": X[-3:].astype(np.float64)}, r"part-10\.npz: x_train: expected float32 .*, got float64"),
        ({"weights": np.ones(3)}, r"part-10\.npz: expected the arrays x_train, y_train as .*, got x_train, y_train, w"),
        ({"y": Y[-2:]}, r"part-10\.npz: y_train: expected 3 entries"),
    ],
)
def test_files_that_are_not_alike(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_path(write(tmp_path / "npz", ".npz", **changes))


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    folder = write(tmp_path / "npz", ".npz")
    with pytest.raises(DataError, match=r"none-\*\.npz: no file matches; check the pattern"):
        open_path(folder / "none-*.npz")
    with pytest.raises(DataError, match=r"none\.npz: expected a data file or folder, there is none"):
        open_path(f"{folder}/part-00.npz,{folder}/none.npz")
    with pytest.raises(DataError, match=r"part-00\.npz is there twice, and its examples would count twice"):
        open_path(f"{folder}/part-00.npz,{folder}/part-0*.npz")
    with pytest.raises(DataError, match="got none; name at least one"):
        distsgd.open_dataset([])
    with h5py.File(folder / "a.h5", "w") as file:
        file["x"], file["y"] = X, Y
    with pytest.raises(DataError, match=r"a\.h5 is an HDF5 file, part-00\.npz is a file of NumPy; name those that"):
        open_path(folder)
    found = open_path(folder / "part-0*.npz")
    (folder / "part-03.npz").unlink()
    with pytest.raises(DataError, match=r"part-03\.npz: expected a file, found none"):
        read_array(found.arrays["x_train"])


def test_tables_of_several_files(tmp_path: Path) -> None:
    colours, prices = ["red", "blue", "", "green", "red", "blue"], ["1", "2", "3.5", "", "5", "6"]
    lines = [f"{colour},{price},{k % 2}\n" for k, (colour, price) in enumerate(zip(colours, prices, strict=True))]
    (tmp_path / "whole.csv").write_text("colour,price,y\n" + "".join(lines))
    (tmp_path / "parts").mkdir()
    for number, part in enumerate((lines[:2], lines[2:4], lines[4:])):
        (tmp_path / "parts" / f"{number}.csv").write_text("colour,price,y\n" + "".join(part))
    for missing in ("mean", "zero", "drop"):
        expected, found = (
            open_path(path, ReadOptions(missing=missing))  # type: ignore[arg-type]
            for path in (tmp_path / "whole.csv", tmp_path / "parts")
        )
        assert found.columns == expected.columns
        out: list[list[Any]] = []
        for one in (expected, found):
            runs, count = [(0, 1), (2, one.arrays["x_train"].shape[0])], one.arrays["x_train"].shape[0] - 1
            memory = {name: np.zeros((count, *a.shape[1:]), a.dtype) for name, a in one.arrays.items()}
            with open_rows(one.arrays) as rows:
                rows.read(runs, memory)
            out.append([*memory.values(), *map(read_array, one.arrays.values())])
        for left, right in zip(*out, strict=True):
            np.testing.assert_array_equal(left, right, strict=True)
    (tmp_path / "parts" / "3.csv").write_text("colour,price,z\n1,2,3\n")
    with pytest.raises(DataError, match=r"3\.csv: expected the columns of .*0\.csv in their order; write all"):
        open_path(tmp_path / "parts")
    (tmp_path / "parts" / "3.csv").write_text("colour,price,y\n1,2,3\n")
    with pytest.raises(DataError, match=r"3\.csv: column colour holds number, in .*0\.csv text; write all files alike"):
        open_path(tmp_path / "parts")
