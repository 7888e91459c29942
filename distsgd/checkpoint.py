"""Checkpoints: one safetensors file each, written atomically, hashed as a whole, and never unpickled.

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
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from distsgd.device import Array
from distsgd.errors import CheckpointError
from distsgd.files import make_folders, open_regular, sync_folder

FORMAT = 1
_ZEROS = "0" * 64
_HEADER_LIMIT = 100_000_000  # bytes; safetensors' own limit
_TOO_SHORT = "damaged: it is shorter than its header says"
_KINDS: dict[str, tuple[type, ...]] = {
    "step": (int,), "count": (int,), "loss_sum": (float,), "config": (dict,), "signature": (dict,), "contents": (str,),
    "examples": (list,), "best": (dict, type(None)), "scores": (dict, type(None)), "rule": (dict, type(None)),
}  # fmt: skip
"""What the document's entries are, where they are there."""
_DIGEST = re.compile(rb'\\"sha256\\":\\"([0-9a-f]{64})\\"')
_DTYPES = {
    "f8": "F64", "f4": "F32", "f2": "F16", "i8": "I64", "i4": "I32", "i2": "I16", "i1": "I8",
    "u8": "U64", "u4": "U32", "u2": "U16", "u1": "U8", "b1": "BOOL",
}  # fmt: skip
"""safetensors' names of NumPy's types."""

Bytes: TypeAlias = bytes | bytearray | memoryview
"""What can be hashed and written without a copy of it."""


@dataclass
class Checkpoint:
    """Named arrays and a JSON document."""

    arrays: dict[str, Array] = field(default_factory=dict)
    document: dict[str, Any] = field(default_factory=dict)

    def group(self, prefix: str) -> dict[str, Array]:
        """The arrays whose names begin with `prefix` and a slash, without both."""
        head = prefix + "/"
        return {name[len(head) :]: array for name, array in self.arrays.items() if name.startswith(head)}


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes the file whole or not at all. Raises CheckpointError where it can't be written."""
    try:
        write_atomically(path, *pieces(checkpoint))
    except OSError as error:
        raise CheckpointError(f"could not write the checkpoint {path}: {error.strerror or error}") from None


def read_checkpoint(path: Path) -> Checkpoint:
    """Raises CheckpointError where the file can't be read, is damaged, or is of another format."""
    try:
        with open_regular(path) as file:
            _check_length(file)
            data = file.read()
    except OSError as error:
        raise CheckpointError(f"could not read the checkpoint {path}: {error.strerror or error}") from None
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    try:
        return decode(data)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _check_length(file: BinaryIO) -> None:
    """Refuses, before it is in memory, what can't be a whole checkpoint: it may be of any length."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(_HEADER_LIMIT, size - 8):
        raise CheckpointError(_TOO_SHORT)
    _find_digest(bytearray(start + file.read(length)), size)
    file.seek(0)


@contextmanager
def understanding(what: str) -> Iterator[None]:
    """Turns what an intact document of another make raises where it is used into a CheckpointError."""
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


def pieces(checkpoint: Checkpoint) -> list[Bytes]:
    """The bytes of a checkpoint file: its header, and then the arrays' own memory, which isn't copied.

    The same bytes as safetensors' own `save` gives, which makes two copies of everything while other threads wait.
    """
    document = {**checkpoint.document, "format": FORMAT, "sha256": _ZEROS}
    text = json.dumps(_to_hex(document), separators=(",", ":"), sort_keys=True, allow_nan=False)
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
    """The checkpoint in these bytes. Raises CheckpointError where they aren't a whole, undamaged one."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    zeroed = bytearray(data)
    place = _find_digest(zeroed)
    said = bytes(zeroed[place]).decode()
    zeroed[place] = _ZEROS.encode()
    if hashlib.sha256(zeroed).hexdigest() != said:
        raise CheckpointError("damaged: its contents do not have the sha256 that it names")
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        document = _from_hex(json.loads(header["__metadata__"]["distsgd"]))
        _check_document(document)
        arrays = load(bytes(data))
    except CheckpointError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"not a checkpoint of distsgd ({type(error).__name__}: {error})") from None
    return Checkpoint(arrays, document)


def _check_document(document: Any) -> None:
    """Raises CheckpointError where this is no document of this format."""
    if not isinstance(document, dict):
        raise CheckpointError(f"not a checkpoint of distsgd: its document is a {type(document).__name__}")
    if document.get("format") != FORMAT:
        raise CheckpointError(
            f"has format {document.get('format')!r}, this version reads format {FORMAT}; "
            "use the version of distsgd that wrote it"
        )
    for key, kinds in _KINDS.items():
        if not isinstance(document.get(key, kinds[0]()), kinds):
            raise CheckpointError(f"not a checkpoint of distsgd: its {key} is {document[key]!r}")


def _find_digest(data: bytearray, size: int | None = None) -> slice:
    """Where the file's own digest stands, without parsing the header; `size` of the file where `data` is its start."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(_HEADER_LIMIT, (len(data) if size is None else size) - 8):
        raise CheckpointError(_TOO_SHORT)
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


def _from_hex(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"hex"}:
            return float.fromhex(value["hex"])
        return {key: _from_hex(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_hex(item) for item in value]
    return value


def write_atomically(path: Path, *contents: Bytes) -> None:
    """Writes a temporary file beside `path`, syncs it, renames it, and syncs the folder. Raises OSError."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            for piece in contents:
                _write_all(descriptor, memoryview(piece))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _write_all(descriptor: int, data: memoryview) -> None:
    """A disk that fills up takes a part, and says why it took no more when it is given the rest."""
    while data:
        data = data[os.write(descriptor, data) :]


@dataclass(frozen=True)
class CheckpointFolder:
    """`last`, `best` and the newest `keep` numbered checkpoints of a run."""

    folder: Path
    keep: int = 3

    def save(self, checkpoint: Checkpoint, step: int) -> None:
        """Writes step-N.safetensors, points last.safetensors to it, and removes old ones. Raises CheckpointError."""
        numbered = self._path(step)
        try:
            make_folders(self.folder)
            write_atomically(numbered, *pieces(checkpoint))
            self._link(numbered, self.folder / "last.safetensors")
            numbers = self._numbered()
            # Those behind this step are of a course that the run has left, by going back to an older checkpoint.
            left = [number for number in numbers if number > step]
            for number in left + [number for number in numbers if number <= step][self.keep :]:
                self._path(number).unlink(missing_ok=True)
            for torn in self.folder.glob(".step-*.tmp"):  # where not even removing it was possible
                torn.unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(f"could not write the checkpoint {numbered}: {error.strerror or error}") from None

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Writes best.safetensors."""
        write_checkpoint(self.folder / "best.safetensors", checkpoint)

    def _link(self, source: Path, name: Path) -> None:
        """A second name for the same bytes; a copy where the file system has no hard links."""
        temporary = name.with_name(f".{name.name}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            write_atomically(name, source.read_bytes())
            return
        os.replace(temporary, name)
        sync_folder(self.folder)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step}.safetensors"

    def _numbered(self) -> list[int]:
        """The steps of the numbered checkpoints, newest first."""
        steps = [path.stem.removeprefix("step-") for path in self.folder.glob("step-*.safetensors")]
        return sorted((int(step) for step in steps if step.isdecimal()), reverse=True)

    def _candidates(self) -> Iterator[Path]:
        last = self.folder / "last.safetensors"
        numbered = [self._path(step) for step in self._numbered()]
        if last.exists() and not (numbered and os.path.samefile(last, numbered[0])):
            yield last
        yield from numbered

    def exists(self) -> bool:
        """Whether there is any checkpoint, valid or not."""
        return any(True for _ in self._candidates())

    def newest(self, limit: int | None = None) -> tuple[Checkpoint | None, list[str]]:
        """The valid checkpoint with most steps, up to `limit` where one is given, None where there is none; and what
        was wrong with newer ones."""
        problems: list[str] = []
        best: Checkpoint | None = None
        for path in self._candidates():
            try:
                found = read_checkpoint(path)
            except CheckpointError as error:
                problems.append(str(error))
                continue
            step = found.document.get("step", 0)
            if limit is not None and step > limit:
                continue
            if best is None or step > best.document.get("step", 0):
                best = found
            if path.name != "last.safetensors":
                break
        return best, problems
