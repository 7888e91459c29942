"""Files of arrays as netCDF4, xarray, h5netcdf and zarr write them, against what these read out of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd.core.errors import DataError
from distsgd.data.sources.base import read_array

netcdf4 = pytest.importorskip("netCDF4")
xarray = pytest.importorskip("xarray")
pytest.importorskip("h5netcdf")

N = 60
RNG = np.random.default_rng(1)
VALUES = RNG.normal(size=(N, 4, 3)).astype(np.float32)
LABELS = (np.arange(N) % 3).astype(np.int32)
HOLES = np.where(RNG.random(VALUES.shape) < 0.01, np.nan, VALUES).astype(np.float32)
PACKING = {"dtype": "int16", "scale_factor": np.float32(0.01), "add_offset": np.float32(1), "_FillValue": -9999}


def data(values: Any = VALUES) -> Any:
    """A data set of xarray's, examples along time."""
    return xarray.Dataset(
        {"rain": (("time", "lat", "lon"), values), "wet": (("time",), LABELS)},
        coords={"time": np.arange(N), "lat": [1.0, 2, 3, 4], "lon": [5.0, 6, 7]},
    )


def opened(path: Path, **options: Any) -> distsgd.data.DataSource:
    return distsgd.open_dataset(path, x="rain", y="wet", axis="time", **options)


@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf"])
@pytest.mark.parametrize(
    "encoding",
    [{}, {"zlib": True, "chunksizes": (16, 2, 3), "shuffle": True}, PACKING, {"dtype": ">f4"}],
    ids=["plain", "zlib", "packed", "big-endian"],
)
def test_netcdf_of_xarray(tmp_path: Path, engine: str, encoding: dict[str, Any]) -> None:
    path = tmp_path / "a.nc"
    data(HOLES if encoding is PACKING else VALUES).to_netcdf(path, engine=engine, encoding={"rain": encoding})
    with xarray.open_dataset(path, engine=engine) as theirs:
        expected = theirs["rain"].values
    found = read_array(opened(path).arrays["x_train"])
    assert found.dtype == expected.dtype.newbyteorder("=")
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_array_equal(read_array(opened(path).arrays["y_train"]), LABELS)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("encoding", [{}, {"chunks": (16, 4, 3)}, PACKING], ids=["plain", "chunks", "packed"])
def test_zarr_of_xarray(tmp_path: Path, version: int, encoding: dict[str, Any]) -> None:
    path = tmp_path / "a.zarr"
    data(HOLES if encoding is PACKING else VALUES).to_zarr(
        path, zarr_format=version, consolidated=False, encoding={"rain": encoding}
    )
    with xarray.open_zarr(path, consolidated=False) as theirs:
        expected = theirs["rain"].values
    found = read_array(opened(path).arrays["x_train"])
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(read_array(opened(path).arrays["y_train"]), LABELS)


def test_netcdf_of_its_own_library(tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    with netcdf4.Dataset(path, "w") as file:
        file.createDimension("time", None)
        file.createDimension("lat", 4)
        file.createDimension("unused", 3)
        rain = file.createVariable("rain", "f4", ("lat", "time"), zlib=True)
        count = file.createVariable("count", "i2", ("time",), fill_value=-1)
        byte = file.createVariable("byte", "i1", ("time",))
        byte.set_auto_maskandscale(False)
        byte._Unsigned = "true"
        rain[:, :N] = VALUES[:, :, 0].T
        count[:N] = np.ma.masked_equal(np.arange(N), 7)
        byte[:N] = np.arange(N, dtype=np.int8) - 100
        file.createVariable("wet", "i4", ("time",))[:N] = LABELS
        partly = file.createVariable("partly", "f8", ("time",))
        partly[: N - 5], partly[N - 1] = 1, 1
        group = file.createGroup("more")
        group.createVariable("rain", "f8", ("time", "lat"))[:N] = VALUES[:, :, 1]
    x = read_array(distsgd.open_dataset(path, x=["rain", "count", "byte"], y="wet", axis="time").arrays["x_train"])
    np.testing.assert_array_equal(x[:, :4], VALUES[:, :, 0])
    np.testing.assert_array_equal(x[:, 4], np.where(np.arange(N) == 7, np.nan, np.arange(N)))
    np.testing.assert_array_equal(x[:, 5], (np.arange(N, dtype=np.int8) - 100).view(np.uint8))
    nested = distsgd.open_dataset(path, x="more/rain", y="wet").arrays["x_train"]
    np.testing.assert_array_equal(read_array(nested), VALUES[:, :, 1].astype(np.float64))
    found = read_array(distsgd.open_dataset(path, x=["rain", "partly"], y="wet", axis="time").arrays["x_train"])
    assert np.flatnonzero(np.isnan(found[:, 4])).tolist() == [N - 5, N - 4, N - 3, N - 2]
    everything = distsgd.open_dataset(path, x=["rain"], y="wet", axis="time")
    assert "unused" not in everything.unused
    assert "time" not in everything.unused


def test_netcdf_3(tmp_path: Path) -> None:
    for kind in ("NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA"):
        with netcdf4.Dataset(tmp_path / "a.nc", "w", format=kind) as file:
            file.createDimension("time", 3)
        with pytest.raises(DataError, match="this is NetCDF 3; nccopy -k nc4 IN OUT converts it"):
            distsgd.open_dataset(tmp_path / "a.nc")


@pytest.mark.parametrize("name", ["a.nc", "a.zarr"])
def test_training_has_the_bits_of_the_same_values_in_npz(tmp_path: Path, name: str) -> None:
    made, path = data(), tmp_path / name
    made.to_zarr(path, consolidated=False) if name == "a.zarr" else made.to_netcdf(path)
    np.savez(tmp_path / "a.npz", x=VALUES, y=LABELS)
    options: dict[str, Any] = {"epochs": 2, "batch_size": 16}
    expected, found = (
        distsgd.fit("softmax", source, **options).summary["parameters_sha256"]
        for source in (distsgd.open_dataset(tmp_path / "a.npz"), opened(path))
    )
    assert found == expected
