"""Zarr, versions 2 and 3, in a folder of this machine: arrays by path. All metadata is checked before it is used."""

from __future__ import annotations

import base64
import json
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np

from distsgd.core.device import Array, Shape
from distsgd.core.errors import DataError, first_line
from distsgd.core.files import FileStamp, read_regular
from distsgd.data.sources.arrays.decoding import ATTRIBUTES, decoding
from distsgd.data.sources.arrays.named_arrays import Roles, data_source, one_by_one, used_names
from distsgd.data.sources.arrays.variables import Stored, VariableSource, axis_of, variable_shape
from distsgd.data.sources.base import ArraySource, DataSource, ReadOptions
from distsgd.data.sources.streams import reading, stamps

_METADATA = 1 << 20
"""Bytes of one array's or group's metadata."""
_NAMES, _DEEPEST = 10_000, 32
_MOST_FILES = 10**7
_OWN = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")
_BLOSC = struct.Struct("<4xI4xI")
"""The beginning of what blosc packs: its length unpacked, the length of its blocks, and its own length."""
_NUMBERS = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)|[<>|][biuf][1248]")
_CODECS = {
    "bytes", "transpose", "blosc", "zstd", "gzip", "zlib", "lz4", "crc32c", "sharding_indexed", "shuffle", "delta",
    "numcodecs.zlib", "numcodecs.shuffle", "numcodecs.delta", "numcodecs.lz4", "numcodecs.zstd", "numcodecs.blosc",
    "numcodecs.gzip",
}  # fmt: skip
"""Of both versions. Others may run code, or give other numbers than were written."""


@dataclass(frozen=True)
class _Metadata:
    """What an array's metadata says."""

    stored: Stored
    attributes: dict[str, Any]
    dimensions: tuple[str, ...]
    path: str
    has_fill: bool
    grid: Shape
    is_blosc: bool
    """Whether files of chunks are as blosc packs them."""


def open_source(where: str, options: ReadOptions) -> DataSource:
    """The data set in a Zarr folder: arrays by their paths, `x` and `y` or `x_train`, … without options."""
    names = _array_names(where)

    def files(used: Roles) -> tuple[FileStamp, ...]:
        paths = [_metadata_path(os.path.join(where, name)) for name in used_names(used)]
        return stamps(path for path in paths if path)

    return data_source(where, names, options, one_by_one(partial(_described, where, options)), files)


def _described(where: str, options: ReadOptions, name: str, whole: bool) -> ArraySource:
    what, found = f"{where}: {name}", _read_metadata(where, name)
    stored = found.stored
    stored.check(what)
    _check_chunks(what, os.path.join(where, name), found, streamed=options.streamed)
    axis = axis_of(what, options.axis, len(stored.shape), found.dimensions)
    decode = decoding(what, stored.dtype, found.attributes, whole=whole)
    dtype = stored.dtype.newbyteorder("=") if decode is None else decode.dtype
    stamp = FileStamp.of(found.path)
    return ZarrSource(variable_shape(stored, axis), dtype, where, name, stored, axis, stamp, decode)


def _metadata_path(folder: str) -> str | None:
    """The file that says what this folder is; None where it is no part of a Zarr folder."""
    for name in ("zarr.json", ".zarray", ".zgroup"):
        if os.path.lexists(path := os.path.join(folder, name)):
            return path
    return None


def _document(where: str, path: str) -> dict[str, Any]:
    """The JSON object in a file of metadata, which is in the folder and not outside."""
    if not os.path.realpath(path).startswith(os.path.realpath(where) + os.sep):
        raise DataError(f"{path}: this is a link out of the folder; copy the array into it")
    with reading(path):
        try:
            found = json.loads(read_regular(path, _METADATA))
        except RecursionError:
            raise DataError(
                f"{path}: expected Zarr's metadata, got lists in lists without end; write it again"
            ) from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected Zarr's metadata, a JSON object; write it again")
    return found


def _array_names(where: str) -> list[str]:
    """The paths of all arrays in the folder, sorted."""
    found, groups = [], [("", 0)]
    while groups:
        prefix, depth = groups.pop()
        folder = os.path.join(where, prefix)
        path = _metadata_path(folder)
        if path is None:
            continue
        if path.endswith(".zarray") or (
            path.endswith("zarr.json") and _document(where, path).get("node_type") == "array"
        ):
            found.append(prefix.rstrip("/"))
            continue
        with reading(folder):
            inner = sorted(name for name in os.listdir(folder) if os.path.isdir(os.path.join(folder, name)))
        if len(found) + len(groups) + len(inner) > _NAMES or depth > _DEEPEST:
            raise DataError(
                f"{where}: expected at most {_NAMES:,} arrays, in groups at most {_DEEPEST} deep, it has more; copy "
                "the arrays that are used into a folder of their own"
            )
        groups += [(f"{prefix}{name}/", depth + 1) for name in reversed(inner)]
    if found == [""]:
        raise DataError(f"{where}: this is one Zarr array; name a group that holds x and y")
    if not found:
        raise DataError(f"{where}: expected a Zarr folder with arrays, found none; check the path")
    return found


def _read_metadata(where: str, name: str) -> _Metadata:
    """What an array's metadata says, where all of it is known. Raises DataError."""
    folder, what = os.path.join(where, name), f"{where}: {name}"
    path = _metadata_path(folder)
    if path is None:
        raise DataError(f"{what}: expected a Zarr array, found none; check the path")
    document = _document(where, path)
    try:
        return _version_3(what, path, document) if path.endswith("zarr.json") else _version_2(what, path, document)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError):
        raise DataError(f"{what}: expected the metadata of a Zarr array, got another content; write it again") from None


def _version_2(what: str, path: str, document: dict[str, Any]) -> _Metadata:
    if document["zarr_format"] != 2:
        raise DataError(f"{what}: expected Zarr 2 or 3, got version {document['zarr_format']}; write it again")
    codecs = [document.get("compressor"), *(document.get("filters") or ())]
    _check_codecs(what, [codec["id"] for codec in codecs if codec is not None])
    attributes_path = os.path.join(os.path.dirname(path), ".zattrs")
    attributes = _document(os.path.dirname(path), attributes_path) if os.path.lexists(attributes_path) else {}
    dimensions = attributes.get("_ARRAY_DIMENSIONS", ())
    fill = document.get("fill_value")
    if dimensions and isinstance(fill, int | float):
        attributes.setdefault("_FillValue", fill)  # where xarray keeps it
    stored = _stored(what, document["shape"], document["dtype"], document["chunks"])
    names, grid = tuple(map(str, dimensions)), stored.chunks or ()
    is_blosc = codecs[0] is not None and codecs[0]["id"] == "blosc"
    return _Metadata(stored, _known(attributes), names, path, fill is not None, grid, is_blosc)


def _version_3(what: str, path: str, document: dict[str, Any]) -> _Metadata:
    if document["zarr_format"] != 3 or document["node_type"] != "array":
        raise DataError(f"{what}: expected a Zarr array of version 3; write it again")
    if document.get("storage_transformers") or document["chunk_grid"]["name"] != "regular":
        raise DataError(f"{what}: expected chunks of one shape without transformers; write it again")
    grid = document["chunk_grid"]["configuration"]["chunk_shape"]
    codecs, chunks = document["codecs"], grid
    _check_codecs(what, _names_of(codecs))
    for codec in codecs:
        if codec["name"] == "sharding_indexed":
            chunks = codec["configuration"]["chunk_shape"]  # they can be read one by one
    attributes = document.get("attributes") or {}
    dimensions = tuple("" if name is None else str(name) for name in document.get("dimension_names") or ())
    stored = _stored(what, document["shape"], document["data_type"], chunks)
    is_blosc = codecs[-1]["name"] in ("blosc", "numcodecs.blosc")
    return _Metadata(stored, _known(attributes), dimensions, path, True, tuple(map(_length, grid)), is_blosc)


def _names_of(codecs: list[Any]) -> list[str]:
    """The names of codecs and of those inside them."""
    found = []
    for codec in codecs:
        found.append(codec["name"])
        if codec["name"] == "sharding_indexed":
            inner = codec["configuration"]
            if any(one["name"] == "sharding_indexed" for one in inner["codecs"]):
                raise ValueError("a shard of shards")
            found += _names_of(inner["codecs"]) + _names_of(inner["index_codecs"])
    return found


def _check_codecs(what: str, names: list[str]) -> None:
    for name in names:
        if name not in _CODECS:
            raise DataError(
                f"{what} is packed by '{name}', and only {', '.join(sorted(n for n in _CODECS if '.' not in n))} are "
                "read, for others run code; write it with zstd"
            )


def _stored(what: str, shape: Any, dtype: Any, chunks: Any) -> Stored:
    if not isinstance(dtype, str) or not _NUMBERS.fullmatch(dtype):
        raise DataError(f"{what}: expected integers or floats of at most 64 bits, got dtype {dtype}; convert them")
    lengths, parts = tuple(map(_length, shape)), tuple(map(_length, chunks))
    if len(lengths) != len(parts) or 0 in parts:
        raise ValueError("chunks of another shape")
    return Stored(lengths, np.dtype(dtype), parts)


def _length(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("no length")
    return value


def _known(attributes: dict[str, Any]) -> dict[str, Any]:
    """Those of the attributes that say how values are to be understood."""
    found = {}
    for name in ATTRIBUTES:
        if name in attributes:
            value = attributes[name]
            if name == "_FillValue" and isinstance(value, str):
                value = _fill_of(value)  # xarray's text of the number's bytes
            found[name] = float("nan") if value is None else value
    return found


def _fill_of(text: str) -> Any:
    """The number that xarray keeps as the text of its bytes, or in words."""
    words = {"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf}
    if text in words:
        return words[text]
    data = base64.standard_b64decode(text)
    return float(struct.unpack("<d", data)[0]) if len(data) == 8 else text


def _check_chunks(what: str, folder: str, found: _Metadata, *, streamed: bool) -> None:
    """DataError where a chunk is no file of the folder, has more bytes than it can need, or there are too few."""
    home, count, total = os.path.realpath(folder) + os.sep, 0, 0
    most = _most_of(found)
    for entry in _files_in(what, folder):
        if entry.is_symlink() and not os.path.realpath(entry.path).startswith(home):
            raise DataError(f"{what}: {entry.name} is a link out of the folder; copy the file into it")
        if not entry.is_file():
            raise DataError(f"{what}: {entry.name} is no regular file; write the array again")
        if entry.name in _OWN:
            continue
        size = entry.stat().st_size
        count, total = count + 1, total + size
        if size > most or count > _MOST_FILES:
            raise DataError(f"{what}: expected chunks of at most {most:,} bytes, {entry.name} has {size:,}")
    found.stored.check_packed(what, total, streamed=streamed)
    needed = prod(-(-length // chunk) for length, chunk in zip(found.stored.shape, found.grid, strict=True))
    if not found.has_fill and count < needed:
        raise DataError(
            f"{what}: expected {needed:,} chunks, there are {count:,}, and no fill value for the others; write "
            "all of it"
        )


def _most_of(found: _Metadata) -> int:
    """Bytes that a chunk has at most, packed or not: an encoding may add some."""
    return 2 * prod(found.grid) * found.stored.dtype.itemsize + (1 << 20)


def _blosc_store(most: int) -> Any:
    """Zarr's store of a folder, which compares what a chunk's header says with its length and with what it may become:
    the library would read and write past its end, which ends the process."""
    from zarr.storage import LocalStore

    class BloscStore(LocalStore):  # type: ignore[misc]
        async def get(self, key: str, *arguments: Any, **named: Any) -> Any:
            chunk = await super().get(key, *arguments, **named)
            if chunk is None or key.rpartition("/")[2] in _OWN:
                return chunk
            head = chunk[: _BLOSC.size].to_bytes()
            unpacked, packed = _BLOSC.unpack(head) if len(head) == _BLOSC.size else (0, -1)
            if packed != len(chunk) or unpacked > most:
                raise ValueError(f"chunk {key} has {len(chunk):,} bytes, and other lengths in its header")
            return chunk

    return BloscStore


def _files_in(what: str, folder: str) -> Iterator[os.DirEntry[str]]:
    """What is in a folder and those inside it but the folders."""
    folders = [folder]
    while folders:
        with reading(what), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    yield entry


@dataclass(frozen=True)
class ZarrSource(VariableSource):
    """An array of a Zarr folder."""

    @contextmanager
    def opened(self) -> Iterator[tuple[Any, Stored]]:
        import zarr
        from zarr.storage import LocalStore

        found = _read_metadata(self.path, self.name)
        version = 3 if found.path.endswith("zarr.json") else 2
        with _failing(self.where):
            kind = _blosc_store(_most_of(found)) if found.is_blosc else LocalStore
            store = kind(os.path.join(self.path, self.name), read_only=True)
            array = zarr.open_array(store, mode="r", zarr_format=version)
        if tuple(array.shape) != found.stored.shape or array.dtype != found.stored.dtype:
            raise DataError(f"{self.where}: expected the metadata of a Zarr array, it is another's; write it again")
        yield array, found.stored

    def slab(self, array: Any, start: int, stop: int, out: Array) -> None:
        """Overwrites `out`; where examples are the first axis and the bytes this machine's, without a copy."""
        with _failing(self.where):
            buffer = None if self.axis or not self.stored.dtype.isnative or not out.size else _buffer_of(out)
            if buffer is None:
                super().slab(array, start, stop, out)
            else:
                array.get_basic_selection(slice(start, stop), out=buffer)


def _buffer_of(out: Array) -> Any:
    """The library's buffer over this memory; None in a release that has it elsewhere."""
    try:
        from zarr.core.buffer import default_buffer_prototype
    except ImportError:
        return None
    return default_buffer_prototype().nd_buffer.from_numpy_array(out)


@contextmanager
def _failing(where: str) -> Iterator[None]:
    """Turns whatever the library raises for a damaged array into one sentence."""
    try:
        yield
    except Exception as error:
        raise DataError(
            f"{where}: expected an intact array, reading it failed ({first_line(error)}); make it again"
        ) from error
