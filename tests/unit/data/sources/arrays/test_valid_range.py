"""Values beyond the range that a file of measurements calls valid are missing, as the NetCDF library masks them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd.data.sources.base import read_array

pytest.importorskip("h5py")
netCDF4 = pytest.importorskip("netCDF4")  # noqa: N816


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("i2", {"valid_range": np.array([-20, 30], "i2")}),
        ("i2", {"valid_min": np.int16(-20), "scale_factor": np.float32(0.5), "add_offset": np.float32(3)}),
        ("i1", {"valid_range": np.array([0, -56], "i1"), "_Unsigned": "true", "_FillValue": np.int8(-1)}),
        ("f4", {"valid_max": np.float32(9.5), "_FillValue": np.float32(-1)}),
        ("f8", {"valid_min": -30.0, "valid_max": 40.0}),
    ],
)
def test_inputs_beyond_the_range(kind: str, attributes: dict[str, Any], tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(-50, 50, (60, 3)).astype(kind)
    path, more = tmp_path / "t.nc", dict(attributes)
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("t", 60)
        file.createDimension("k", 3)
        x = file.createVariable("x", kind, ("t", "k"), fill_value=more.pop("_FillValue", None))
        x.set_auto_maskandscale(False)
        x.setncatts(more)
        x[:] = stored
        file.createVariable("y", "i4", ("t",))[:] = np.arange(60) % 2
    with netCDF4.Dataset(path) as file:
        expected = np.ma.filled(file["x"][:].astype(float), np.nan)
    assert np.isnan(expected).any()
    with pytest.raises(distsgd.DataError, match=r"missing|nan"):
        distsgd.fit("softmax", distsgd.open_dataset(str(path)), epochs=1, batch_size=8)
    found = distsgd.open_dataset(str(path), missing="drop").arrays["x_train"]
    np.testing.assert_allclose(read_array(found), expected[~np.isnan(expected).any(axis=1)], rtol=1e-6)


def test_labels_beyond_the_range(tmp_path: Path) -> None:
    path, labels = tmp_path / "t.nc", np.arange(60) % 4
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("t", 60)
        file.createDimension("k", 1)
        file.createVariable("x", "f4", ("t", "k"))[:] = np.arange(60)[:, np.newaxis]
        y = file.createVariable("y", "i4", ("t",))
        y.valid_max = np.int32(2)
        y[:] = labels
    with pytest.raises(distsgd.DataError, match="example 3 is missing"):
        distsgd.open_dataset(str(path), x="x", y="y")
    found = distsgd.open_dataset(str(path), x="x", y="y", missing="drop")
    np.testing.assert_array_equal(read_array(found.arrays["y_train"]), labels[labels < 3])
