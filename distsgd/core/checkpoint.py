"""The format of checkpoints: one safetensors file each, hashed as a whole, and never unpickled.

What isn't an array is JSON under the one metadata key `distsgd`, with floats as hexadecimal, so that nothing is
rounded. The JSON holds the sha256 of the whole file, computed with the digest's own digits as zeros: safetensors has
no checksum of its own. The digest is checked before anything in the file is parsed. Arrays are read after that, one at
a time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, BinaryIO, final

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import CheckpointError

FORMAT = 2
_ZEROS = "0" * 64
_HEADER_LIMIT = 100_000_000  # bytes; safetensors' own limit
_TENSORS = 50_000
"""Arrays of a checkpoint; each is an object to be made when it is read, in half a dozen places."""
_DIGEST = re.compile(rb'\\"sha256\\":\\"([0-9a-f]{64})\\"')
_DTYPES = {
    "f8": "F64", "f4": "F32", "f2": "F16", "i8": "I64", "i4": "I32", "i2": "I16", "i1": "I8",
    "u8": "U64", "u4": "U32", "u2": "U16", "u1": "U8", "b1": "BOOL",
}  # fmt: skip
"""safetensors' names of NumPy's types."""
_NAMES = {name: kind for kind, name in _DTYPES.items()}
_AT_ONCE = 1 << 20
"""Bytes that are read and hashed at once."""
_MOST_AXES, _MOST_ELEMENTS = 32, 1 << 58
"""Of an array that NumPy can make."""


@dataclass(frozen=True)
class _Entry:
    """Where an array is in a checkpoint's file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    end: int


@final
class _File:
    """A descriptor of a checkpoint's file, open as long as an array of it may be read; `data` is where arrays begin."""

    def __init__(self, descriptor: int, data: int) -> None:
        self._descriptor, self._data = os.dup(descriptor), data
        self._stamp = self._look()

    def __del__(self) -> None:
        os.close(self._descriptor)

    def _look(self) -> tuple[int, int]:
        """What changes when somebody writes into the file."""
        found = os.fstat(self._descriptor)
        return found.st_size, found.st_mtime_ns

    def read(self, entry: _Entry, out: Array) -> None:
        """Fill a contiguous array. Raises CheckpointError, also where the file was changed since its digest was
        checked."""
        rest = out.reshape(-1).view(np.uint8).data
        try:
            os.lseek(self._descriptor, self._data + entry.start, os.SEEK_SET)
            while rest and (count := os.readv(self._descriptor, [rest])):
                rest = rest[count:]
            whole = not rest and self._look() == self._stamp
        except OSError as error:
            raise CheckpointError(f"the checkpoint could not be read again: {error.strerror or error}") from None
        if not whole:
            raise CheckpointError("the checkpoint was changed while it was read; start again")


@final
class StoredArrays(Mapping[str, Array]):
    """The arrays of a checkpoint's file by name, which are read one at a time, each time that one is asked for.

    Together they are as large as a run's state, which a run that continues has already made memory for.
    """

    def __init__(self, file: _File, entries: Mapping[str, _Entry]) -> None:
        self._file, self._entries = file, entries

    def __getitem__(self, name: str) -> Array:
        entry = self._entries[name]
        array = np.empty(entry.shape, entry.dtype)
        self._file.read(entry, array)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def about(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]] | None:
        """(shape, dtype) of an array, which isn't read; None where there is none."""
        entry = self._entries.get(name)
        return None if entry is None else (entry.shape, entry.dtype)

    def fill(self, name: str, out: Array) -> None:
        """Read an array into its place, which has its shape and dtype. Raises CheckpointError."""
        if out.flags.c_contiguous and out.dtype == self._entries[name].dtype:
            self._file.read(self._entries[name], out)
        else:
            out[...] = self[name]

    def group(self, head: str) -> StoredArrays:
        """Those whose names begin with `head`, without it."""
        chosen = {name[len(head) :]: entry for name, entry in self._entries.items() if name.startswith(head)}
        return StoredArrays(self._file, chosen)


@dataclass
class Checkpoint:
    """Named arrays and a JSON document."""

    arrays: Mapping[str, Array] = field(default_factory=dict)
    document: dict[str, Any] = field(default_factory=dict)

    def group(self, prefix: str) -> Mapping[str, Array]:
        """The arrays whose names begin with `prefix` and a slash, without both."""
        head = prefix + "/"
        if isinstance(self.arrays, StoredArrays):
            return self.arrays.group(head)
        return {name[len(head) :]: array for name, array in self.arrays.items() if name.startswith(head)}


@contextmanager
def understanding(what: str) -> Iterator[None]:
    """Turn errors from using an intact document of another version into a CheckpointError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"{what}: expected what this version of distsgd writes, got something else ({type(error).__name__}: "
            f"{error}); use the version that wrote it, or start anew with --resume never"
        ) from error


def encode(checkpoint: Checkpoint) -> bytes:
    """The bytes of a checkpoint file."""
    return b"".join(pieces(checkpoint))


def pieces(checkpoint: Checkpoint) -> list[bytearray | memoryview]:
    """The bytes of a checkpoint file: its header, then the arrays' own memory, which isn't copied.

    The same bytes as from safetensors' own `save`, which makes two copies of everything while other threads wait.
    """
    document = {**checkpoint.document, "format": FORMAT, "sha256": _ZEROS}
    text = json.dumps(_to_hex(document), separators=(",", ":"), sort_keys=True, allow_nan=False)
    _check_count(len(checkpoint.arrays))
    arrays = {
        name: np.asarray(array, array.dtype.newbyteorder("<"), order="C") for name, array in checkpoint.arrays.items()
    }
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))  # so that each is aligned
    header: dict[str, Any] = {"__metadata__": {"distsgd": text}}
    end = 0
    for name in order:
        array, start, end = arrays[name], end, end + arrays[name].nbytes
        dtype = _DTYPES[array.dtype.str[1:]]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    first = bytearray(len(head).to_bytes(8, "little") + head)
    rest = [arrays[name].reshape(-1).view(np.uint8).data for name in order]
    digest = hashlib.sha256(first)
    for piece in rest:
        digest.update(piece)
    first[_find_digest(first)] = digest.hexdigest().encode()
    return [first, *rest]


def decode(data: bytes | bytearray) -> Checkpoint:
    """Decode a checkpoint. Raises CheckpointError where the bytes aren't a whole, undamaged one."""
    entries, begin, document = _parse(BytesIO(data), len(data))
    arrays = {
        name: np.frombuffer(data[begin + entry.start : begin + entry.end], entry.dtype).reshape(entry.shape).copy()
        for name, entry in entries.items()
    }
    return Checkpoint(arrays, document)


def open_stored(file: BinaryIO) -> Checkpoint:
    """The checkpoint in an open file, whose arrays are read later: it keeps a descriptor of the file for that.

    Raises CheckpointError where it isn't a whole, undamaged one, and OSError. All of it is read once, to check its
    digest.
    """
    entries, begin, document = _parse(file, os.fstat(file.fileno()).st_size)
    return Checkpoint(StoredArrays(_File(file.fileno(), begin), entries), document)


def _parse(file: BinaryIO, size: int) -> tuple[dict[str, _Entry], int, dict[str, Any]]:
    """(where the arrays are, where the first one begins, the document)."""
    start = file.read(8)
    head = bytearray(start + file.read(min(int.from_bytes(start, "little"), _HEADER_LIMIT)))
    place = _find_digest(head, size)
    recorded, text = bytes(head[place]).decode(), bytes(head[8:])
    head[place] = _ZEROS.encode()
    digest, buffer = hashlib.sha256(head), memoryview(bytearray(_AT_ONCE))
    while count := file.readinto(buffer):  # type: ignore[attr-defined]
        digest.update(buffer[:count])
    if digest.hexdigest() != recorded:
        raise CheckpointError("damaged: its contents do not have the sha256 that it names")
    try:
        header = json.loads(text, object_pairs_hook=_once)
        document = json.loads(header.pop("__metadata__")["distsgd"], object_pairs_hook=_from_hex)
        _check_document(document)
        _check_count(len(header))
        entries = {name: _entry(about) for name, about in header.items()}
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"not a checkpoint of distsgd ({type(error).__name__}: {error})") from None
    end = 0
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.end)):
        if entry.start != end:
            raise CheckpointError("not a checkpoint of distsgd: its arrays don't follow each other")
        end = entry.end
    if len(head) + end != size:
        raise CheckpointError("not a checkpoint of distsgd: its arrays don't end where the file does")
    return entries, len(head), document


def _entry(about: Mapping[str, Any]) -> _Entry:
    """From an array's entry in the header. Raises ValueError, KeyError or TypeError for what is none."""
    dtype, shape = np.dtype("<" + _NAMES[about["dtype"]]), about["shape"]
    start, end = about["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (start, end, *shape)) or len(shape) > _MOST_AXES:
        raise ValueError("an array has a place or a shape that is none")
    if math.prod(shape) * dtype.itemsize != end - start or math.prod(filter(None, shape)) > _MOST_ELEMENTS:
        raise ValueError("an array has another length than its shape")
    return _Entry(dtype, tuple(shape), start, end)


def _check_count(count: int) -> None:
    """Raise CheckpointError for more arrays than a checkpoint may have."""
    if count > _TENSORS:
        raise CheckpointError(
            f"a checkpoint of {count} arrays, expected at most {_TENSORS}; give the model fewer and larger parameters"
        )


def _check_document(document: Any) -> None:
    """Raise CheckpointError where this is no document of this format."""
    if not isinstance(document, dict):
        raise CheckpointError(f"not a checkpoint of distsgd: its document is a {type(document).__name__}")
    if document.get("format") != FORMAT:
        raise CheckpointError(
            f"has format {document.get('format')!r}, this version reads format {FORMAT}; "
            "use the version of distsgd that wrote it"
        )
    if not isinstance(document.get("step", 0), int):
        raise CheckpointError(f"not a checkpoint of distsgd: its step is {document['step']!r}")


def _find_digest(data: bytearray, size: int | None = None) -> slice:
    """The position of the file's digest, found without parsing; `size` is the file's, where `data` is its start."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(_HEADER_LIMIT, (len(data) if size is None else size) - 8):
        raise CheckpointError("damaged: it is shorter than its header says")
    found = list(_DIGEST.finditer(data, 8, 8 + length))
    if len(found) != 1:
        raise CheckpointError("not a checkpoint of distsgd: it names no sha256 of itself")
    return slice(*found[0].span(1))


def _to_hex(value: Any) -> Any:
    if isinstance(value, float):
        return {"hex": value.hex()}
    if isinstance(value, Mapping):
        return {str(key): _to_hex(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_hex(item) for item in value]
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _from_hex(pairs: list[tuple[str, Any]]) -> Any:
    value = _once(pairs)
    return float.fromhex(value["hex"]) if value.keys() == {"hex"} else value
