"""Files of named arrays (HDF5, NetCDF, Zarr, .npz): each source against NumPy's slices, and what options choose."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import distsgd
from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.data.sources.base import ArraySource, ReadOptions, read_array
from distsgd.data.sources.converted import open_rows
from distsgd.data.sources.registry import open_inputs, open_path
from tests.unit.data.sources.slices import rows_of, runs_of, sliced

N = 50
RNG = np.random.default_rng(3)
IMAGES = RNG.integers(0, 256, (N, 4, 3), dtype=np.uint8)
FLOATS = RNG.normal(size=(N, 6)).astype(np.float32)
LABELS = (np.arange(N) * 7 % 3).astype(np.int32)
HOLES = np.where(RNG.random((N, 6)) < 0.04, np.nan, FLOATS).astype(np.float32)
WHOLE = ~np.isnan(HOLES).any(axis=1)
PACKED = RNG.integers(-90, 90, (N, 5), dtype=np.int16)
"""Stored as x · 0.5 + 10, with -99 for what is missing."""


def hdf5(path: Path, **options: Any) -> Callable[..., str]:
    """Writes arrays to an HDF5 file, each with these options."""

    def write(**arrays: Array) -> str:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file.create_dataset(name, data=array, **options)
        return str(path)

    return write


def zarr_folder(path: Path, version: int, **options: Any) -> Callable[..., str]:
    """Writes arrays to a Zarr folder, in chunks of 8 rows."""

    def write(**arrays: Array) -> str:
        group = zarr.open_group(path, mode="w", zarr_format=version)
        for name, array in arrays.items():
            more = {key: (value, *array.shape[1:]) if key == "shards" else value for key, value in options.items()}
            made = group.create_array(name, shape=array.shape, dtype=array.dtype, chunks=(8, *array.shape[1:]), **more)
            made[...] = array
        return str(path)

    return write


def packed(path: Path) -> str:
    """A NetCDF file as its library writes one: dimensions, a scale, and missing values."""
    with h5py.File(path, "w") as file:
        for name, length in (("time", N), ("level", 5)):
            file.create_dataset(name, data=np.arange(length)).make_scale(name)
        for name, array, dimensions in (("x", PACKED.T, ("level", "time")), ("y", LABELS, ("time",))):
            stored = file.create_dataset(name, data=array)
            for axis, dimension in enumerate(dimensions):
                stored.dims[axis].attach_scale(file[dimension])
        file["x"].attrs.update(scale_factor=np.float32(0.5), add_offset=np.float32(10), _FillValue=np.int16(-99))
    return str(path)


def sources(folder: Path) -> dict[str, tuple[ArraySource, Array, int]]:
    """Every kind of source, what it holds, and the rows that one costs."""
    np.savez(folder / "s.npz", x=FLOATS, y=LABELS)
    np.savez(folder / "f.npz", x=np.asfortranarray(FLOATS), y=LABELS)
    gzip = {"compression": "gzip", "shuffle": True, "fletcher32": True}
    files = {
        "contiguous": hdf5(folder / "a.h5")(x=FLOATS, y=LABELS),
        "another byte order": hdf5(folder / "b.h5")(x=FLOATS.astype(">f4"), y=LABELS),
        "gzip": hdf5(folder / "c.h5", chunks=True, **gzip)(x=FLOATS, y=LABELS),
        "zarr 2": zarr_folder(folder / "d.zarr", 2)(x=IMAGES, y=LABELS),
        "zarr 3": zarr_folder(folder / "e.zarr", 3)(x=IMAGES, y=LABELS),
        "shards": zarr_folder(folder / "f.zarr", 3, shards=24)(x=IMAGES, y=LABELS),
        "stored .npz": str(folder / "s.npz"),
        "fortran .npz": str(folder / "f.npz"),
    }
    found = {name: (open_path(path).arrays["x_train"], FLOATS, 1) for name, path in files.items()}
    for name in ("zarr 2", "zarr 3", "shards"):
        found[name] = (found[name][0], IMAGES, 8)
    found["gzip"] = (found["gzip"][0], FLOATS, found["gzip"][0].chunk)
    found["fortran .npz"] = (found["fortran .npz"][0], FLOATS, N)
    with h5py.File(folder / "g.h5", "w", userblock_size=512) as file:
        file["group/one"] = FLOATS[:, 0]  # first, so that it is aligned
        file["y"], file["holes"] = LABELS, HOLES
        file.create_dataset("tiles", data=IMAGES, chunks=(7, 2, 2), compression="lzf")
        file.create_dataset("turned", data=np.moveaxis(IMAGES, 0, 1), chunks=(2, 16, 3))
        file.create_dataset("tightly", data=np.moveaxis(IMAGES, 0, 1), chunks=(2, 16, 3), compression="gzip")
    several = str(folder / "g.h5")

    def opened(*x: str, **options: Any) -> ArraySource:
        return open_path(several, ReadOptions(x=x, **options)).arrays["x_train"]

    found["tiles"] = (opened("tiles"), IMAGES, 7)
    found["axis 1"] = (opened("turned", axis="1"), IMAGES, 1)
    found["axis 1, packed"] = (opened("tightly", axis="-2"), IMAGES, 16)
    found["one number"] = (opened("group/one"), FLOATS[:, :1], 1)
    both = np.concatenate([FLOATS[:, :1], HOLES], axis=1)
    found["side by side"] = (opened("group/*", "holes"), both, 1)
    found["zeros"] = (opened("holes", missing="zero"), np.nan_to_num(HOLES), 1)
    found["dropped"] = (opened("holes", missing="drop"), FLOATS[WHOLE], 1)
    scaled = np.where(PACKED == -99, np.nan, PACKED * np.float32(0.5) + np.float32(10)).astype(np.float32)
    found["netcdf"] = (
        open_path(packed(folder / "h.nc"), ReadOptions(x=("x",), axis="time")).arrays["x_train"],
        scaled,
        1,
    )
    return found


NAMES = (
    "contiguous", "another byte order", "gzip", "zarr 2", "zarr 3", "shards", "stored .npz", "fortran .npz", "tiles",
    "axis 1", "axis 1, packed", "one number", "side by side", "zeros", "dropped", "netcdf",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[ArraySource, Array, int]]:
    found = sources(tmp_path_factory.mktemp("arrays"))
    assert tuple(found) == NAMES
    return found


@pytest.mark.parametrize("name", NAMES)
@given(reads=st.lists(runs_of(N), max_size=3))
@settings(max_examples=15, deadline=None)
def test_rows_are_those_of_the_array(
    made: dict[str, tuple[ArraySource, Array, int]], name: str, reads: list[list[tuple[int, int]]]
) -> None:
    source, array, chunk = made[name]
    assert (source.shape, source.dtype, source.chunk) == (array.shape, array.dtype, chunk)
    reads = [[(start, min(stop, len(array))) for start, stop in one if start < len(array)] for one in reads]
    with open_rows({"a": source}) as rows:
        for one in reads:
            np.testing.assert_array_equal(rows_of(rows, one, source), sliced(array, one), strict=True)
    rows.close()


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_array_and_what_can_be_mapped(made: dict[str, tuple[ArraySource, Array, int]], name: str) -> None:
    source, array, _ = made[name]
    source = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(read_array(source), array, strict=True)
    assert (source.mapped() is not None) == (name in ("contiguous", "one number"))


@pytest.mark.parametrize("name", ["gzip", "shards", "stored .npz", "side by side", "dropped"])
def test_two_threads_read_one_source(made: dict[str, tuple[ArraySource, Array, int]], name: str) -> None:
    source, array, _ = made[name]
    found: list[Array] = []

    def read() -> None:
        with open_rows({"a": source}) as rows:
            found.append(np.concatenate([rows_of(rows, [(k, k + 1)], source) for k in range(len(array))]))

    threads = [Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(found) == 2
    for one in found:
        np.testing.assert_array_equal(one, array, strict=True)


WRITERS: dict[str, Callable[[Path], Callable[..., str]]] = {
    "hdf5": lambda folder: hdf5(folder / "a.h5", compression="gzip"),
    "netcdf": lambda folder: hdf5(folder / "a.nc"),
    "zarr 2": lambda folder: zarr_folder(folder / "a.zarr", 2),
    "zarr 3": lambda folder: zarr_folder(folder / "b.zarr", 3, shards=16),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_has_changed_is_noticed(tmp_path: Path, name: str) -> None:
    write = WRITERS[name](tmp_path)
    found = open_path(write(x=FLOATS, y=LABELS))
    for stamp in found.files:
        stamp.check()
    write(x=FLOATS[1:], y=LABELS[1:])
    with pytest.raises(DataError, match=r"(start again|leave the file as it is)"):
        open_rows({"a": found.arrays["x_train"]})
    changed = found.files[0]
    with pytest.raises(DataError, match="leave the file as it is while it is in use"):
        changed.check()


@pytest.mark.parametrize("name", WRITERS)
def test_training_has_the_bits_of_the_same_values_in_npz(tmp_path: Path, name: str) -> None:
    arrays = {"x": FLOATS, "y": LABELS, "weights": np.linspace(0.5, 2, N), "x_test": FLOATS[:9], "y_test": LABELS[:9]}
    np.savez(tmp_path / "a.npz", **arrays)
    options: Any = {"epochs": 2, "batch_size": 8, "seed": 4}
    expected, found = (
        distsgd.fit("softmax", distsgd.open_dataset(path), **options).summary
        for path in (str(tmp_path / "a.npz"), WRITERS[name](tmp_path)(**arrays))
    )
    assert found["parameters_sha256"] == expected["parameters_sha256"]
    assert found["test_loss"] == expected["test_loss"]


def test_inputs_alone(tmp_path: Path) -> None:
    assert open_inputs(hdf5(tmp_path / "a.h5")(x=FLOATS[:0], other=LABELS)).shape == (0, 6)
    with pytest.raises(DataError, match="expected an array x, got a, b; name it x, or give --x NAME"):
        open_inputs(hdf5(tmp_path / "a.h5")(a=FLOATS, b=LABELS))


def test_options_choose_arrays(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "a.h5")(a=FLOATS, b1=HOLES[:, :1], b2=LABELS, target=FLOATS[:, 1], w=np.ones(N))
    found = open_path(path, ReadOptions(x=("a,b2",), y=("target",), weights="w"))
    assert found.unused == ("b1",)
    assert {name: (source.shape, source.dtype.name) for name, source in found.arrays.items()} == {
        "x_train": ((N, 7), "float64"), "y_train": ((N,), "float32"), "weights_train": ((N,), "float64"),
    }  # fmt: skip
    everything = open_path(path, ReadOptions(x=("all",), y=("b2",), weights="w"))
    assert everything.arrays["x_train"].shape == (N, 6 + 1 + 1)
    two = open_path(path, ReadOptions(x=("a",), y=("b2", "target")))
    np.testing.assert_array_equal(read_array(two.arrays["y_train"]), np.stack([LABELS, FLOATS[:, 1]], 1))
    for axis, message in (("rows", "no axis is named 'rows'"), ("2", "expected one of 2 axes, got --axis 2")):
        with pytest.raises(DataError, match=message):
            open_path(path, ReadOptions(x=("a",), y=("target",), axis=axis))
    with pytest.raises(ConfigurationError, match=r"a\.h5: no array is named 'd' \(--x\); it has a, b1, b2, target, w"):
        open_path(path, ReadOptions(x=("d",), y=("target",)))


def test_missing_values(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "a.h5")(x=HOLES, y=LABELS, x_test=HOLES[:9], y_test=LABELS[:9])
    with pytest.raises(DataError, match=rf"inputs: expected finite numbers, example {(~WHOLE).argmax()} holds nan"):
        distsgd.fit("softmax", open_path(path), epochs=1, batch_size=10)
    means = np.array([column[~np.isnan(column)].mean() for column in HOLES.astype(np.float64).T])
    found = open_path(path, ReadOptions(missing="mean"))
    columns = found.columns
    assert columns is not None
    np.testing.assert_allclose(columns.fill, means, rtol=1e-13)
    assert (columns.inputs, columns.widths, columns.missing, columns.target) == (("x",), {"x": 6}, "mean", ("y",))
    for split, array in (("train", HOLES), ("test", HOLES[:9])):
        expected = np.where(np.isnan(array), means.astype(np.float32), array)
        np.testing.assert_allclose(read_array(found.arrays[f"x_{split}"]), expected, rtol=1e-6)
    later = open_path(hdf5(tmp_path / "b.h5")(x=HOLES[:5]), ReadOptions(targets=False, columns=columns))
    np.testing.assert_array_equal(
        read_array(later.arrays["x_train"]), read_array(found.arrays["x_train"])[:5], strict=True
    )
    dropped = open_path(path, ReadOptions(missing="drop"))
    np.testing.assert_array_equal(read_array(dropped.arrays["y_train"]), LABELS[WHOLE])
    np.testing.assert_array_equal(read_array(dropped.arrays["x_test"]), FLOATS[:9][WHOLE[:9]])
    empty = hdf5(tmp_path / "c.h5")(x=np.where(np.arange(6) == 4, np.nan, FLOATS), y=LABELS)
    with pytest.raises(DataError, match="feature 4 has no value in any example, so there is no mean"):
        open_path(empty, ReadOptions(missing="mean"))
    with pytest.raises(DataError, match="every example lacks a value, so none is left"):
        open_path(empty, ReadOptions(missing="drop"))


def test_labels_that_are_missing(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.nc")
    with h5py.File(path, "a") as file:
        file["y"].attrs["_FillValue"] = np.int32(-1)
        file["y"][7] = -1
    options: dict[str, Any] = {"x": ("x",), "axis": "time"}
    with pytest.raises(DataError, match=r"y_train: example 7 is missing; fill it in, or give --missing drop"):
        open_path(path, ReadOptions(**options))
    found = open_path(path, ReadOptions(**options, missing="drop")).arrays["y_train"]
    kept = (PACKED != -99).all(axis=1) & (np.arange(N) != 7)
    np.testing.assert_array_equal(read_array(found), LABELS[kept].astype(np.int64), strict=True)


def test_zarr_chunks_that_were_never_written_hold_the_fill_value(tmp_path: Path) -> None:
    for version in (2, 3):
        path = tmp_path / f"{version}.zarr"
        group = zarr.open_group(path, mode="w", zarr_format=version)
        made = group.create_array("x", shape=(N, 2), dtype="f4", chunks=(10, 2), fill_value=7)
        made[:10] = 1
        group.create_array("y", shape=(N,), dtype="i4", chunks=(10,))[...] = LABELS
        found = read_array(open_path(path).arrays["x_train"])
        np.testing.assert_array_equal(found, np.where(np.arange(N)[:, None] < 10, 1, 7) * np.ones((1, 2)))
    (path / "x" / "c" / "0" / "0").write_bytes(b"not packed")
    with pytest.raises(DataError, match=r"3\.zarr: x: expected an intact array, reading it failed"):
        read_array(open_path(path).arrays["x_train"])


@pytest.mark.skipif(os.name != "posix", reason="makes a pipe")
def test_zarr_chunks_are_files_of_the_folder(tmp_path: Path) -> None:
    path = zarr_folder(tmp_path / "a.zarr", 3)(x=FLOATS, y=LABELS)
    chunk = Path(path) / "x" / "c" / "1" / "0"
    content = chunk.read_bytes()
    chunk.unlink()
    os.mkfifo(chunk)
    with pytest.raises(DataError, match="0 is no regular file"):
        open_path(path)
    chunk.unlink()
    (tmp_path / "elsewhere").write_bytes(content)
    chunk.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="0 is a link out of the folder; copy the file into it"):
        open_path(path)
