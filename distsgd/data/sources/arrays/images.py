"""Folders of images, one folder a class: bytes (height, width), or (3, height, width) of colour images."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from distsgd.core.device import Array, Shape
from distsgd.core.errors import DataError
from distsgd.core.files import FileStamp, open_regular
from distsgd.data.sources.assemble import assemble, inputs
from distsgd.data.sources.base import ArraySource, DataSource, ReadOptions, Rows, Runs, cut
from distsgd.data.sources.converted import ValuesSource
from distsgd.data.sources.streams import reading, stamps

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp")
_OTHERS = (
    *(".tif", ".tiff", ".gif", ".jfif", ".jp2", ".heic", ".heif", ".avif", ".svg", ".psd", ".tga", ".ico", ".exr"),
    *(".dng", ".cr2", ".nef", ".arw", ".dcm"),
)
"""Endings of images that aren't read."""
_OF_SYSTEMS = ("thumbs.db", "desktop.ini", "icon\r")
"""Files that systems leave in folders, beside hidden ones."""
_FORMATS = ("PNG", "JPEG", "BMP", "PPM", "WEBP")
_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_MOST_PIXELS, _MOST_BYTES, _MOST_FILES = 1 << 26, 256 << 20, 10**7
_WARNINGS = Lock()
"""What is done with warnings is one state of the process."""


@dataclass(frozen=True)
class ImagesSource(ArraySource):
    """The images of one set, in the order of their names.

    Parameters
    ----------
    folder : str
        Whose files, and no others, are read.
    names : tuple of str
        The images' paths in it.
    stamps : tuple of FileStamp
        Their folders as they were.
    """

    folder: str
    names: tuple[str, ...]
    stamps: tuple[FileStamp, ...]

    @property
    def chunk(self) -> int:
        """One image."""
        return 1

    def open_rows(self, arrays: Mapping[str, ArraySource]) -> Rows:
        """Reads images."""
        (name,) = arrays
        for stamp in self.stamps:
            stamp.check()
        return _ImageRows(name, self)


class _ImageRows(Rows):
    """Images of a folder, each opened when it is read."""

    def __init__(self, name: str, source: ImagesSource) -> None:
        self._name, self._source = name, source

    def read(self, runs: Runs, out: Mapping[str, Array]) -> None:
        source = self._source
        for row, _, place in cut(runs, 1):
            out[self._name][place] = _pixels(source.folder, source.names[row], source.shape[1:])

    def close(self) -> None:
        """Nothing is open between two images."""


def open_source(where: str, options: ReadOptions) -> DataSource:
    """The data set in a folder of class/name.png, or of train/class/name.png and test/… or validation/…"""
    sets = {_SPLITS[name]: os.path.join(where, name) for name in _folders(where) if name in _SPLITS}
    if not options.targets:
        return _inputs_alone(where)
    if "train" not in sets:
        sets = {"train": where}
    classes = _in_order(_folders(sets["train"]), options.classes, sets["train"])
    if len(classes) < 2:
        raise DataError(
            f"{sets['train']}: expected a folder of images for each class, as class/name.png, got "
            f"{', '.join(classes) or 'none'}; make folders of these names"
        )
    arrays: dict[str, ArraySource] = {}
    skipped = 0
    shape: Shape | None = None
    files: list[str] = []
    for split, folder in sets.items():
        other = set(_folders(folder)) - set(classes)
        if other:
            raise DataError(f"{folder}: the class {min(other)} isn't in {sets['train']}; add or remove it")
        names, (loose, others) = [], _images(folder, "")
        skipped += len(loose) + others
        for label, one in enumerate(classes):
            images, others = _images(folder, one)
            names += [(f"{one}/{name}", label) for name in images]
            skipped += others + _inner(folder, one)
        if not names:
            raise DataError(f"{folder}: expected images ending in {', '.join(ENDINGS)}, found none; check the path")
        shape = shape or _shape(folder, names[0][0])
        marks = stamps(os.path.join(folder, one) for one in classes if os.path.isdir(os.path.join(folder, one)))
        files += [mark.path for mark in marks]
        paths = tuple(name for name, _ in names)
        arrays[f"x_{split}"] = ImagesSource((len(names), *shape), np.dtype(np.uint8), folder, paths, marks)
        arrays[f"y_{split}"] = ValuesSource.of(np.array([label for _, label in names], np.int64))
    found = assemble(where, arrays)
    notes = _notes(where, skipped)
    return DataSource(where, found.arrays, found.scale, class_names=tuple(classes), files=stamps(files), notes=notes)


def _notes(where: str, skipped: int) -> tuple[str, ...]:
    """A sentence where there is something that isn't read."""
    what = "1 other file or folder is" if skipped == 1 else f"{skipped:,} other files or folders are"
    return (f"note: {where}: {what} no image of a class and not read",) if skipped else ()


def _inner(where: str, folder: str) -> int:
    """How many folders there are in one of a class."""
    path = os.path.join(where, folder)
    return len(_folders(path)) if os.path.isdir(path) else 0


def _in_order(found: list[str], asked: tuple[str, ...], where: str) -> list[str]:
    """The classes of folders, in the order that is asked for; words that are names of none of them rename them."""
    if not set(found) & set(asked):
        return found
    if other := next((name for name in found if name not in asked), None):
        raise DataError(f"{where}: the class {other} is none of {', '.join(asked)}; correct --classes, or remove it")
    return list(asked)


def _inputs_alone(where: str) -> DataSource:
    """All images of the folder and of those in it, by their names."""
    names, skipped = _images(where, "")
    for one in _folders(where):
        images, others = _images(where, one)
        names, skipped = [*names, *(f"{one}/{name}" for name in images)], skipped + others + _inner(where, one)
    if not names:
        raise DataError(f"{where}: expected images ending in {', '.join(ENDINGS)}, found none; check the path")
    shape, marks = _shape(where, names[0]), stamps([where])
    x = ImagesSource((len(names), *shape), np.dtype(np.uint8), where, tuple(names), marks)
    return DataSource(where, {"x_train": inputs(where, x, least=0)}, 255.0, files=marks, notes=_notes(where, skipped))


def _folders(where: str) -> list[str]:
    """The names of the folders in a folder, sorted."""
    with reading(where):
        return sorted(
            name for name in os.listdir(where) if name[0] not in "._" and os.path.isdir(os.path.join(where, name))
        )


def _images(where: str, folder: str) -> tuple[list[str], int]:
    """The names of the images in a folder, sorted, and how many other files there are; none where there is no such
    folder. Raises DataError for images of a kind that isn't read."""
    path = os.path.join(where, folder)
    if not os.path.isdir(path):
        return [], 0
    if folder and not os.path.realpath(path).startswith(os.path.realpath(where) + os.sep):
        raise DataError(f"{path}: this is a link out of the folder; copy the images into it")
    with reading(path):
        found = sorted(name for name in os.listdir(path) if name[0] != "." and name.lower() not in _OF_SYSTEMS)
        names = [name for name in found if name.lower().endswith(ENDINGS)]
    others = [name for name in found if not name.lower().endswith(ENDINGS)]
    if unread := [name for name in others if name.lower().endswith(_OTHERS)]:
        what = f"{len(unread):,} other images, such as {unread[0]}"
        raise DataError(f"{path}: expected images ending in {', '.join(ENDINGS)}, got {what}; convert or remove them")
    if len(names) > _MOST_FILES:
        raise DataError(f"{path}: expected at most {_MOST_FILES:,} images, got {len(names):,}; write them as arrays")
    return names, sum(not os.path.isdir(os.path.join(path, name)) for name in others)


def _shape(folder: str, name: str) -> Shape:
    """The shape of an image's pixels."""
    with _opened(folder, name) as image:
        return _shape_of(image)


def _shape_of(image: Any) -> Shape:
    width, height = image.size
    return (height, width) if image.mode in ("L", "1") else (3, height, width)


def _pixels(folder: str, name: str, shape: Shape) -> Array:
    """An image's pixels. Raises DataError where it is damaged, or has another size than the first."""
    with _opened(folder, name) as image:
        if _shape_of(image) != shape:
            raise DataError(
                f"{os.path.join(folder, name)}: expected an image of shape {shape} as the first, got "
                f"{_shape_of(image)}; give all images one size and kind"
            )
        found = np.asarray(image.convert("RGB" if len(shape) == 3 else "L"))
        return np.moveaxis(found, 2, 0) if len(shape) == 3 else found


@contextmanager
def _opened(folder: str, name: str) -> Iterator[Any]:
    """One open image, not yet decoded, whose size is known to be one that may be decoded."""
    from PIL import Image

    path = os.path.join(folder, name)
    if not os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep):
        raise DataError(f"{path}: this is a link out of the folder; copy the file into it")
    with reading(path), open_regular(path) as stream:
        if os.fstat(stream.fileno()).st_size > _MOST_BYTES:
            raise DataError(f"{path}: expected at most {_MOST_BYTES:,} bytes; make the image smaller")
        try:
            with _WARNINGS, warnings.catch_warnings():
                warnings.simplefilter("error")
                image = Image.open(stream, formats=_FORMATS)
        except (Warning, Image.DecompressionBombError):
            raise DataError(f"{path}: expected an image of at most {_MOST_PIXELS:,} pixels; make it smaller") from None
        except Image.UnidentifiedImageError:
            kinds = ", ".join(_FORMATS)
            raise DataError(f"{path}: expected an image ({kinds}), got something else; remove it") from None
        with image:
            if image.size[0] * image.size[1] > _MOST_PIXELS:
                raise DataError(f"{path}: expected an image of at most {_MOST_PIXELS:,} pixels; make it smaller")
            if image.mode not in ("1", "L", "P", "RGB") or "transparency" in image.info:
                raise DataError(
                    f"{path}: expected grey or RGB pixels of 8 bits, got {image.mode}; convert it, or write arrays"
                )
            yield image
