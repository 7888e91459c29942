"""NetCDF-4, which is HDF5 with names for the axes, and with numbers that are packed or stand for what is missing."""

from __future__ import annotations

from functools import partial
from typing import Any

from distsgd.core.errors import DataError
from distsgd.core.files import open_regular
from distsgd.data.sources.arrays.hdf5 import array_at, array_names, described, opened_file
from distsgd.data.sources.arrays.named_arrays import data_source, one_by_one
from distsgd.data.sources.base import ArraySource, DataSource, ReadOptions
from distsgd.data.sources.streams import reading, stamps

_CLASSIC = (b"CDF\x01", b"CDF\x02", b"CDF\x05")


def open_source(where: str, options: ReadOptions) -> DataSource:
    """The data set in a NetCDF file: variables by their names, and the axis of examples by its dimension's."""
    with reading(where), open_regular(where) as stream:
        if stream.read(4) in _CLASSIC:
            raise DataError(f"{where}: this is NetCDF 3; nccopy -k nc4 IN OUT converts it")
    with opened_file(where) as file:
        names = [name for name in array_names(where, file) if not _is_dimension_alone(file, name)]
        found = partial(_described, where, file, options)
        return data_source(where, names, options, one_by_one(found), lambda used: stamps([where]))


def _described(where: str, file: Any, options: ReadOptions, name: str, whole: bool) -> ArraySource:
    array = array_at(where, file, name)
    labels = dimensions_of(array, name) if array.shape else []
    return described(where, array, name, options, whole=whole, labels=labels, netcdf=True)


def _is_dimension_alone(file: Any, name: str) -> bool:
    """Whether this is a dimension without values, which NetCDF keeps as an array."""
    import h5py

    if not isinstance(_link_to(file, name), h5py.HardLink):
        return False
    label = file[name].attrs.get("NAME", b"")
    text = label.decode("utf-8", "replace") if isinstance(label, bytes) else str(label)
    return text.startswith("This is a netCDF dimension but not a netCDF variable")


def _link_to(file: Any, name: str) -> Any:
    return file.get(name, getlink=True)


def dimensions_of(array: Any, name: str) -> list[str]:
    """The name of each axis: of the array's own name where it holds the coordinates of a dimension."""
    found = []
    for number, dimension in enumerate(array.dims):
        scales = len(dimension)
        if scales:
            found.append(str(dimension[0].name or "").rpartition("/")[2])
        elif number == 0 and array.is_scale:
            found.append(name.rpartition("/")[2])
        else:
            found.append(dimension.label)
    return found
