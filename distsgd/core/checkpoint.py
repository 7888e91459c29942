"""The format of checkpoints: one safetensors file each, hashed as a whole, and never unpickled.

What isn't an array is JSON under the one metadata key `distsgd`, with floats as hexadecimal, so that nothing is
rounded. The JSON holds the sha256 of the whole file, computed with the digest's own digits as zeros: safetensors has
no checksum of its own. The digest is checked before anything in the file is parsed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

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


@dataclass
class Checkpoint:
    """Named arrays and a JSON document."""

    arrays: dict[str, Array] = field(default_factory=dict)
    document: dict[str, Any] = field(default_factory=dict)

    def group(self, prefix: str) -> dict[str, Array]:
        """The arrays whose names begin with `prefix` and a slash, without both."""
        head = prefix + "/"
        return {name[len(head) :]: array for name, array in self.arrays.items() if name.startswith(head)}


def check_length(file: BinaryIO) -> None:
    """Refuse, before reading it, a file that can't be a whole checkpoint: it may be of any length."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    _find_digest(bytearray(start + file.read(min(int.from_bytes(start, "little"), _HEADER_LIMIT))), size)
    file.seek(0)


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
    from safetensors import SafetensorError
    from safetensors.numpy import load

    zeroed = bytearray(data)
    place = _find_digest(zeroed)
    recorded = bytes(zeroed[place]).decode()
    zeroed[place] = _ZEROS.encode()
    if hashlib.sha256(zeroed).hexdigest() != recorded:
        raise CheckpointError("damaged: its contents do not have the sha256 that it names")
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")], object_pairs_hook=_once)
        document = json.loads(header["__metadata__"]["distsgd"], object_pairs_hook=_from_hex)
        _check_document(document)
        _check_count(len(header) - 1)
        arrays = load(bytes(data))
    except CheckpointError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"not a checkpoint of distsgd ({type(error).__name__}: {error})") from None
    return Checkpoint(arrays, document)


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
