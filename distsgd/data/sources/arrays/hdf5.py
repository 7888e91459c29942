"""HDF5: arrays by their path in the file. Nothing outside the file is read, and no plugin is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import DataError
from distsgd.core.files import FileStamp, open_regular
from distsgd.data.sources.arrays.decoding import ATTRIBUTES, decoding, never_written
from distsgd.data.sources.arrays.named_arrays import data_source, one_by_one
from distsgd.data.sources.arrays.variables import Stored, VariableSource, axis_of, check_real, variable_shape
from distsgd.data.sources.base import ArraySource, DataSource, ReadOptions
from distsgd.data.sources.streams import reading, stamps

_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scaleoffset", 32000: "lzf"}
"""Those of the HDF5 library and of h5py. Any other is a library that the file would have loaded."""
_LINKS, _DEEPEST, _SOFT = 10_000, 32, 8
"""Names in a file, groups in each other, and soft links one after the other, at most."""
_LONGEST_NAME = 1000


def open_source(where: str, options: ReadOptions) -> DataSource:
    """The data set in an HDF5 file: arrays by their paths, `x` and `y` or `x_train`, … without options."""
    with opened_file(where) as file:
        names = array_names(where, file)
        found = partial(_described, where, file, options)
        return data_source(where, names, options, one_by_one(found), lambda used: stamps([where]))


def _described(where: str, file: Any, options: ReadOptions, name: str, whole: bool) -> ArraySource:
    array = array_at(where, file, name)
    labels = [dimension.label for dimension in array.dims] if array.shape else []
    return described(where, array, name, options, whole=whole, labels=labels)


def described(
    where: str, array: Any, name: str, options: ReadOptions, *, whole: bool, labels: list[str], netcdf: bool = False
) -> Hdf5Source:
    """The source of an open array whose axes have these names."""
    stored, what = stored_of(where, array, name), f"{where}: {name}"
    stored.check_packed(what, array.id.get_storage_size(), streamed=options.streamed)
    axis = axis_of(what, options.axis, len(stored.shape), labels)
    decode = decoding(what, stored.dtype, attributes_of(what, array), whole=whole)
    if netcdf:
        decode = never_written(decode, stored.dtype)
    dtype = stored.dtype.newbyteorder("=") if decode is None else decode.dtype
    return Hdf5Source(variable_shape(stored, axis), dtype, where, name, stored, axis, FileStamp.of(where), decode)


@contextmanager
def opened_file(path: str) -> Iterator[Any]:
    """The open file; DataError where it can't be read, whatever the library raises for it."""
    import h5py

    with reading(path):
        check_real(path)
        before = os.stat(path)
        if not h5py.is_hdf5(path):
            raise DataError(f"{path}: expected an HDF5 file, got something else; write it with h5py")
        with h5py.File(path, "r", locking=False) as file:
            after = os.stat(path)
            if (before.st_dev, before.st_ino) != (after.st_dev, after.st_ino):
                raise DataError(f"{path}: another file took its name while it was opened; start again")
            yield file


def array_names(where: str, file: Any) -> list[str]:
    """The paths of all arrays and links in the file, sorted as it sorts them; groups that are there twice once."""
    import h5py

    found: list[str] = []
    seen: set[Any] = set()
    groups = [("", file, 0)]
    links = 0
    while groups:
        prefix, group, depth = groups.pop()
        inner = []
        for key in group:
            links += 1
            if links > _LINKS or depth > _DEEPEST or len(prefix) + len(key) > _LONGEST_NAME:
                raise DataError(
                    f"{where}: expected at most {_LINKS:,} names of at most {_LONGEST_NAME:,} characters, in groups at "
                    f"most {_DEEPEST} deep, it has more; copy the arrays that are used into a file of their own"
                )
            name = prefix + key
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                found.append(name)
                continue
            kind = group.get(key, getclass=True)
            if kind is h5py.Dataset:
                found.append(name)
            elif kind is h5py.Group:
                inner.append((name + "/", group[key], depth + 1))
        for one in reversed(inner):
            mark = h5py.h5o.get_info(one[1].id).addr
            if mark not in seen:
                seen.add(mark)
                groups.append(one)
    return found


def array_at(where: str, file: Any, name: str) -> Any:
    """The open array at a path, reached by links inside the file alone. Raises DataError."""
    import h5py

    at, parts, followed = file, [part for part in name.split("/") if part], 0
    while parts:
        part = parts.pop(0)
        link = at.get(part, getlink=True) if isinstance(at, h5py.Group) else None
        if isinstance(link, h5py.ExternalLink):
            raise DataError(
                f"{where}: /{name} is a link to another file ({link.filename}); copy the data into one file"
            )
        if isinstance(link, h5py.SoftLink):
            followed += 1
            if followed > _SOFT:
                raise DataError(f"{where}: /{name} leads through more than {_SOFT} links; name the array itself")
            parts = [one for one in link.path.split("/") if one and one != "."] + parts
            at = file if link.path.startswith("/") else at
            continue
        if link is None:
            raise DataError(f"{where}: /{name} leads to nothing that is in the file; name the array itself")
        at = at[part]
    if not isinstance(at, h5py.Dataset):
        raise DataError(f"{where}: /{name} is no array; name one")
    _check_storage(where, at, name)
    return at


def _check_storage(where: str, array: Any, name: str) -> None:
    """DataError where the values lie elsewhere, or are packed by what the library doesn't hold itself."""
    if array.is_virtual or array.external:
        raise DataError(f"{where}: /{name} is made of other files; copy the data into one file")
    plan = array.id.get_create_plist()
    for k in range(plan.get_nfilters()):
        number = plan.get_filter(k)[0]
        if number not in _FILTERS:
            raise DataError(
                f"{where}: /{name} is packed by the HDF5 filter {number}, and only {', '.join(_FILTERS.values())} are "
                "read, for others load code; write it with gzip"
            )


def stored_of(where: str, array: Any, name: str) -> Stored:
    """The array as the file holds it, which can be read. Raises DataError."""
    if array.shape is None:
        raise DataError(f"{where}: /{name} holds no values; name another array")
    dtype = np.dtype(array.dtype)
    if dtype.kind in "biuf":
        dtype = np.dtype(dtype.str)  # without the names of an enumeration
    chunks = None if array.chunks is None else tuple(array.chunks)
    whole = array.id.get_create_plist().get_nfilters() > 0
    stored = Stored(tuple(map(int, array.shape)), dtype, chunks, whole)
    stored.check(f"{where}: /{name}")
    return stored


def attributes_of(where: str, array: Any) -> dict[str, Any]:
    """Those of the array's attributes that say how its values are to be understood."""
    found = {}
    for name in ATTRIBUTES:
        if name in array.attrs:
            kind = array.attrs.get_id(name)
            if prod(kind.shape or (1,)) > 16:
                raise DataError(f"{where}: expected a number as {name}, got {kind.shape}; correct it")
            found[name] = array.attrs[name]
    return found


@dataclass(frozen=True)
class Hdf5Source(VariableSource):
    """An array of an HDF5 file."""

    @contextmanager
    def opened(self) -> Iterator[tuple[Any, Stored]]:
        with opened_file(self.path) as file:
            array = array_at(self.path, file, self.name)
            yield array, stored_of(self.path, array, self.name)

    def slab(self, array: Any, start: int, stop: int, out: Array) -> None:
        """Overwrites `out`; where examples are the first axis, without a copy."""
        if self.axis or start == stop or not out.size:
            super().slab(array, start, stop, out)
        else:
            array.read_direct(out, np.s_[start:stop])

    def mapped(self) -> Array | None:
        """A read-only map, where the array lies in the file as it is, aligned and in this machine's byte order."""
        if self.stored.chunks is not None or self.decoding is not None or self.axis or not self.stored.dtype.isnative:
            return None
        with self.opened() as (array, found), open_regular(self.path) as stream:
            self.check_unchanged(found)
            offset, size = array.id.get_offset(), array.id.get_storage_size()
            end = os.fstat(stream.fileno()).st_size
            if not size or size != self.nbytes or offset is None or offset % self.dtype.itemsize or offset + size > end:
                return None
            mapped = np.memmap(stream, self.dtype, "r", offset, self.shape)
        mapped.filename = self.path  # which a stream that was opened by its number doesn't know
        return mapped
