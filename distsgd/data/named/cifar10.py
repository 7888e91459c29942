"""CIFAR-10 as it is published: six files of 10,000 images, in a binary or in a Python form, as an archive or a folder.

The images are read where they are, straight into the array; the labels, which are few, when the data set is opened.

A. Krizhevsky: Learning multiple layers of features from tiny images. University of Toronto, 2009
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import DataError
from distsgd.core.files import cache_folder, open_regular
from distsgd.data.named.download import fetch
from distsgd.data.named.tar import read_members
from distsgd.data.sources.arrays.unpickle import unpickle
from distsgd.data.sources.assemble import assemble
from distsgd.data.sources.base import ArraySource, DataSource, OpenOptions, check_out
from distsgd.data.sources.converted import ValuesSource
from distsgd.data.sources.streams import Stream, expect_end, fill, reading

SHAPE = (3, 32, 32)
CLASSES = 10
TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST = ("test_batch",)

_PIXELS = prod(SHAPE)
UNPACKED_LIMIT = 256 << 20
"""Bytes that an archive may unpack to, and of a file beside others; the published ones have 184 million in all."""
FILE_LIMIT = 64 << 20
"""Bytes of one pickled file, all of which is in memory at once; the published ones have 31 million."""


def read_binary(stream: Stream, size: int, where: str) -> tuple[Array, Array]:
    """Labels (n,) and pixels (n, 3072) uint8 of a file of records, each a label and 3,072 pixels.

    Raises DataError where the file isn't a whole number of records.
    """
    count, rest = divmod(size, 1 + _PIXELS)
    if rest or not count:
        raise DataError(f"{where}: expected records of {1 + _PIXELS} bytes, got {size} bytes in all; get it again")
    records = np.empty((count, 1 + _PIXELS), np.uint8)
    fill(stream, records, where)
    return records[:, 0], records[:, 1:]


def read_python(stream: Stream, size: int, where: str) -> tuple[list[int], Array]:
    """The same of a pickled dict with `data` (n, 3072) uint8 and a list `labels`; what else is in it is not used."""
    columns = unpickle(stream, min(size, FILE_LIMIT), where)
    expect_end(stream, where)
    if not isinstance(columns, dict):
        raise DataError(f"{where}: expected a pickled dict, got a {type(columns).__name__}; get it again")
    data, labels = columns.get("data"), columns.get("labels")
    if not isinstance(data, np.ndarray) or not isinstance(labels, list):
        raise DataError(f"{where}: expected an array data and a list labels, got {', '.join(columns) or 'neither'}")
    if data.dtype != np.uint8 or data.shape != (len(labels), _PIXELS) or not labels:
        raise DataError(
            f"{where}: expected data of bytes, shape ({len(labels)}, {_PIXELS}) for as many labels, "
            f"got {data.dtype} of shape {data.shape}; get it again"
        )
    return labels, data


def _check(labels: Sequence[int] | Array, images: Array | None, where: str) -> None:
    """DataError for another number of images than fit the arrays, and for what is no label."""
    if images is not None and len(images) != len(labels):
        raise DataError(f"{where}: expected {len(images)} images, the file now has {len(labels)}; start again")
    for number, label in enumerate(labels):
        if not 0 <= label < CLASSES:
            raise DataError(
                f"{where}: expected labels from 0 to {CLASSES - 1}, image {number} has {label}; get it again"
            )


@dataclass(frozen=True)
class Form:
    """One of the two published forms: names of archive, folder and files, and how to read one of these."""

    archive: str
    folder: str
    suffix: str
    read: Callable[[Stream, int, str], tuple[Sequence[int] | Array, Array]] = field(repr=False)


BINARY = Form("cifar-10-binary.tar.gz", "cifar-10-batches-bin", ".bin", read_binary)
PYTHON = Form("cifar-10-python.tar.gz", "cifar-10-batches-py", "", read_python)


@dataclass(frozen=True)
class Place:
    """Where the files are: an archive, or a folder."""

    form: Form
    path: Path
    packed: bool

    def read(self, images: Mapping[str, Array | None]) -> dict[str, Array]:
        """The labels of these files, each of whose images go into its array where it has one."""
        labels: dict[str, Array] = {}
        names = {f"{self.form.folder}/{name}{self.form.suffix}": name for name in images}

        def visit(member: str, stream: Stream, size: int) -> None:
            found, pixels = self.form.read(stream, size, self._where(member))
            name, rows = names[member], images[names[member]]
            _check(found, rows, self._where(member))
            if rows is not None:
                rows[...] = pixels
            labels[name] = np.array(found, np.uint8)

        if self.packed:
            read_members(str(self.path), names, visit, UNPACKED_LIMIT)
            return labels
        for member in names:
            with reading(self._where(member)), open_regular(self._where(member)) as stream:
                size = os.fstat(stream.fileno()).st_size
                if size > UNPACKED_LIMIT:
                    where = self._where(member)
                    raise DataError(f"{where}: expected at most {UNPACKED_LIMIT} bytes, it has {size}; get it again")
                visit(member, stream, size)
        return labels

    def _where(self, member: str) -> str:
        """A file's path, or its name inside the archive."""
        return f"{self.path}: {member}" if self.packed else str(self.path / member.rpartition("/")[2])


@dataclass(frozen=True)
class CifarSource(ArraySource):
    """The images of some files, one file after the other; `counts` says how many each has."""

    place: Place
    counts: Mapping[str, int]

    def read_into(self, out: Array) -> None:
        """Overwrites `out`, a block at a time."""
        check_out(self, out)
        ends = np.cumsum(list(self.counts.values()))
        self.place.read(dict(zip(self.counts, np.split(out.reshape(-1, _PIXELS), ends[:-1]), strict=True)))


@dataclass(frozen=True)
class Cifar10:
    """60,000 colour images of ten kinds of things, 32×32.

    url        the folder of the archives; the variable DISTSGD_CIFAR_10_URL of the environment goes before it
    checksums  accepted MD5s of the archive that is downloaded, the binary one
    """

    url: str
    checksums: tuple[str, ...]
    name: str = "cifar-10"

    def open(self, options: OpenOptions) -> DataSource:
        """The data set; where there is none, the binary archive is downloaded into `data_dir`/cifar-10, if `options`
        allow it. Images are (3, 32, 32) bytes: red, green, blue."""
        root = cache_folder(options.data_dir)
        place = self._find(root) or self._fetch(root / self.name, options)
        labels = place.read(dict.fromkeys((*TRAIN, *TEST)))
        arrays: dict[str, ArraySource] = {}
        for split, names in (("train", TRAIN), ("test", TEST)):
            y = np.concatenate([labels[name] for name in names])
            counts = {name: len(labels[name]) for name in names}
            arrays[f"x_{split}"] = CifarSource((len(y), *SHAPE), np.dtype(np.uint8), place, counts)
            arrays[f"y_{split}"] = ValuesSource.of(y)
        return replace(assemble(self.name, arrays), num_classes=CLASSES)

    def _find(self, root: Path) -> Place | None:
        """The files in `root`/cifar-10 or in `root` itself; what is unpacked goes before what is packed."""
        for folder in (root / self.name, root):
            for form in (BINARY, PYTHON):
                for path in (folder / form.folder, folder):
                    if any((path / f"{name}{form.suffix}").is_file() for name in (*TRAIN, *TEST)):
                        return Place(form, path, packed=False)
                if (folder / form.archive).is_file():
                    return Place(form, folder / form.archive, packed=True)
        return None

    def _fetch(self, folder: Path, options: OpenOptions) -> Place:
        wanted = f"{BINARY.archive} or {PYTHON.archive}, packed or unpacked,"
        files = {BINARY.archive: self.checksums}
        fetch(self.name, self.url, files, wanted, folder, options.download, UNPACKED_LIMIT)
        return Place(BINARY, folder / BINARY.archive, packed=True)


CIFAR_10 = Cifar10("https://www.cs.toronto.edu/~kriz", ("c32a1d4ab5d03f1284b67883e8d87530",))
