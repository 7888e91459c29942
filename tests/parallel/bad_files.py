"""What a case of bad input is, and its files: each function returns what puts one thing into the case's folder."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distsgd.core.checkpoint import Checkpoint, decode, encode
from tests.waiting import LIMIT

Make = Callable[[Path], object]
"""Puts something into a folder."""


@dataclass(frozen=True)
class Case:
    """Bad input.

    reported words of the sentence
    line     the command line after `python -m distsgd.COMMAND`, as typed into a shell
    make     puts the files into the folder that the command runs in
    status   the exit status that every rank leaves with
    trace    the user's own code raises, and its traceback is reported, once
    leaves   what the command may leave in the folder, where a run had begun
    least    how many ranks it takes
    """

    reported: str
    line: str
    make: Make = lambda folder: None
    status: int = 2
    command: str = "train"
    trace: bool = False
    leaves: tuple[str, ...] = ()
    least: int = 1


TEMPLATE = "template"
"""The folder beside the cases' own that holds a whole run, stopped after 3 steps."""

X = (np.arange(40 * 6).reshape(40, 6) % 11).astype(np.float32)
Y = np.arange(40) % 4


class Unavailable(Exception):
    """What a case needs can't be had here, and why."""


def file(name: str, content: bytes | str) -> Make:
    """A file with this content."""

    def make(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def every(*makes: Make) -> Make:
    """All of these, in this order."""

    def make(folder: Path) -> None:
        for one in makes:
            one(folder)

    return make


def link(name: str, target: str) -> Make:
    """A symbolic link."""
    return lambda folder: (folder / name).symlink_to(target)


def pipe(name: str) -> Make:
    """A named pipe that no one writes into."""
    return lambda folder: os.mkfifo(folder / name)


def sub_folder(name: str) -> Make:
    """An empty folder."""
    return lambda folder: (folder / name).mkdir(parents=True)


def sparse(name: str, size: int, start: bytes = b"") -> Make:
    """A file that has `size` bytes and takes next to no space."""

    def make(folder: Path) -> None:
        with open(folder / name, "wb") as stream:
            stream.write(start)
            stream.truncate(size)

    return make


def npz_bytes(save: Callable[..., None] = np.savez, **arrays: Any) -> bytes:
    """A .npz file of these arrays."""
    stream = io.BytesIO()
    save(stream, **arrays)
    return stream.getvalue()


def npz(**arrays: Any) -> Make:
    """data.npz: x and y, and in place of them or besides these arrays; None leaves one out."""
    there = {name: array for name, array in ({"x": X, "y": Y} | arrays).items() if array is not None}
    return file("data.npz", npz_bytes(**there))


def npy_bytes(array: Any) -> bytes:
    """A .npy file of this array."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npy(x: bytes) -> Make:
    """x.npy of these bytes, and a y.npy that is well."""
    return every(file("x.npy", x), file("y.npy", npy_bytes(Y)))


def patched(content: bytes, offset: int, new: bytes) -> bytes:
    """Other bytes from `offset` (negative: from the end) on."""
    offset %= len(content)
    return content[:offset] + new + content[offset + len(new) :]


def idx(array: Any, *, shape: tuple[int, ...] | None = None, kind: int = 8) -> bytes:
    """An IDX file; its header may say another shape, and another kind of numbers."""
    array = np.asarray(array, np.uint8)
    shape = array.shape if shape is None else shape
    return bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + array.tobytes()


IMAGES = idx(np.arange(20 * 28 * 28).reshape(20, 28, 28) % 251)
LABELS = idx(np.arange(20) % 10)


def mnist(images: bytes = IMAGES, labels: bytes = LABELS, *, suffix: str = "") -> Make:
    """data/mnist with its four files, of which the training images and labels may be others."""
    contents = {"train-images-idx3": images, "train-labels-idx1": labels, "t10k-images-idx3": IMAGES}
    contents |= {"t10k-labels-idx1": LABELS}
    train = ("train-images-idx3", "train-labels-idx1")
    return every(
        *(file(f"data/mnist/{name}-ubyte{suffix if name in train else ''}", it) for name, it in contents.items())
    )


def pickled(*pieces: bytes) -> Make:
    """mnist.pkl.gz, gzipped piece by piece: a long row of equal pieces is made in no time."""
    packed: dict[bytes, bytes] = {}
    for piece in pieces:
        if piece not in packed:
            packed[piece] = gzip.compress(piece, 9, mtime=0)
    return file("mnist.pkl.gz", b"".join(packed[piece] for piece in pieces))


class Attack:
    """Pickles as a call."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def attack(function: Callable[..., Any], *arguments: Any) -> bytes:
    """A pickle that calls the function where it is loaded."""
    return pickle.dumps(Attack(function, *arguments))


def cifar_part(labels: Any) -> bytes:
    """A file of CIFAR-10's binary form, with black images."""
    return b"".join(bytes([label]) + bytes(3072) for label in labels)


def cifar(**parts: bytes | None) -> bytes:
    """An archive of CIFAR-10's binary form; each part may be another, or missing."""
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive:
        for name in names:
            content = parts.get(name, cifar_part(range(10)))
            if content is not None:
                entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def tar_entries(count: int) -> bytes:
    """A gzipped archive of so many empty files."""
    return b"".join([gzip.compress(tarfile.TarInfo("empty").tobuf() * 1000, mtime=0)] * (count // 1000))


def run(*changes: Make) -> Make:
    """The template's run as `run`, and then these changes, made in it."""

    def make(folder: Path) -> None:
        shutil.copytree(folder.parent / TEMPLATE, folder / "run", symlinks=True)
        for change in changes:
            change(folder / "run")

    return make


def checkpoints(change: Callable[[bytes], bytes | None]) -> Make:
    """Changes every checkpoint of a run, or removes it."""

    def make(folder: Path) -> None:
        for path in (folder / "checkpoints").iterdir():
            new = change(path.read_bytes())
            path.unlink()  # `last` and the newest are one file
            if new is not None:
                path.write_bytes(new)

    return make


def flipped(offset: int) -> Make:
    """Every checkpoint with one bit another."""
    return checkpoints(lambda data: patched(data, offset, bytes([data[offset] ^ 4])))


def rewritten(changes: Mapping[str, Any]) -> Make:
    """Every checkpoint with another document, and a digest that is right."""

    def change(data: bytes) -> bytes:
        found = decode(data)
        return bytes(encode(Checkpoint(found.arrays, {**found.document, **changes})))

    return checkpoints(change)


def sealed(data: bytes, old: bytes, new: bytes) -> bytes:
    """The checkpoint with other bytes in it, as many, and a digest that is right."""
    assert len(old) == len(new)
    assert old in data
    return seal(data.replace(old, new, 1))


def seal(data: bytes) -> bytes:
    """The checkpoint with the digest of these bytes."""
    start = data.index(b'\\"sha256\\":\\"') + len(b'\\"sha256\\":\\"')
    zeroed = patched(data, start, b"0" * 64)
    return patched(zeroed, start, hashlib.sha256(zeroed).hexdigest().encode())


def disk(*makes: Make, size: str = "64k", full: bool = False, read_only: bool = False) -> Make:
    """A file system of its own at `disk`, with these things in it; full, or read-only."""

    def make(folder: Path) -> None:
        place = folder / "disk"
        place.mkdir()
        _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place))
        for one in makes:
            one(place)
        if full:
            _fill(place / "ballast")
        if read_only:
            _mount("-o", "remount,ro", str(place))

    return make


def disk_with_run(**how: Any) -> Make:
    """The same with the template's run in it."""

    def make(folder: Path) -> None:
        template = folder.parent / TEMPLATE
        disk(lambda place: shutil.copytree(template, place / "run"), size="1m", **how)(folder)

    return make


def _fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as stream:
        try:
            while stream.write(bytes(4096)):
                pass
        except OSError:
            pass


def _mount(*arguments: str) -> None:
    if shutil.which("mount") is None or os.geteuid() != 0:
        raise Unavailable("only root can mount a file system")
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, timeout=LIMIT, check=False)
    if done.returncode:
        raise Unavailable(f"a file system can't be mounted here: {done.stderr.strip()}")


def unmount(folder: Path) -> None:
    """Takes away what `disk` mounted in a case's folder."""
    if (folder / "disk").is_mount():
        subprocess.run(["umount", "-l", str(folder / "disk")], check=True, timeout=LIMIT)


def unreadable(name: str) -> Make:
    """A regular file that no one can read, root neither: this process's memory, from its first, unmapped byte."""

    def make(folder: Path) -> None:
        if not os.path.exists("/proc/self/mem"):
            raise Unavailable("there is no /proc here")
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to("/proc/self/mem")

    return make


def forbidden(make: Make, name: str) -> Make:
    """A file without the permission to read it."""

    def all_of_it(folder: Path) -> None:
        if os.geteuid() == 0:
            raise Unavailable("root may read everything")
        make(folder)
        (folder / name).chmod(0)

    return all_of_it
