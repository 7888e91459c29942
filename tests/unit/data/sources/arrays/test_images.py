"""Folders of images against Pillow's own pixels, and what is none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import distsgd
from distsgd.core.errors import DataError
from distsgd.data.sources.base import read_array
from distsgd.data.sources.converted import open_rows
from distsgd.data.sources.registry import open_inputs, open_path

RNG = np.random.default_rng(2)
GREY = RNG.integers(0, 256, (12, 5, 6), np.uint8)
COLOUR = RNG.integers(0, 256, (12, 5, 6, 3), np.uint8)
LABELS = np.repeat([0, 1, 2], 4)
CLASSES = ("blue", "green", "red")


def save(folder: Path, pixels: Any, ending: str = "png") -> Path:
    """Four images of each class."""
    for number, (label, one) in enumerate(zip(LABELS, pixels, strict=True)):
        path = folder / CLASSES[label] / f"{number:02}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(one).save(path)
    return folder


@pytest.mark.parametrize(("pixels", "ending"), [(GREY, "png"), (GREY, "pgm"), (COLOUR, "png"), (COLOUR, "bmp")])
def test_pixels_and_classes(tmp_path: Path, pixels: Any, ending: str) -> None:
    found = open_path(save(tmp_path / "d", pixels, ending))
    expected = np.moveaxis(pixels, 3, 1) if pixels.ndim == 4 else pixels
    assert (found.scale, found.class_names, len(found.files)) == (255.0, CLASSES, 3)
    x = found.arrays["x_train"]
    np.testing.assert_array_equal(read_array(x), expected, strict=True)
    np.testing.assert_array_equal(read_array(found.arrays["y_train"]), LABELS)
    out = np.empty((5, *x.shape[1:]), x.dtype)
    with open_rows({"x": x}) as rows:
        rows.read([(1, 3), (7, 10)], {"x": out})
    np.testing.assert_array_equal(out, expected[[1, 2, 7, 8, 9]])


def test_other_kinds_of_pixels(tmp_path: Path) -> None:
    save(tmp_path / "jpeg", COLOUR, "jpg")
    first = open_path(tmp_path / "jpeg").arrays["x_train"]
    with Image.open(tmp_path / "jpeg" / "blue" / "00.jpg") as image:
        np.testing.assert_array_equal(read_array(first)[0], np.moveaxis(np.asarray(image), 2, 0))
    for kind in ("P", "1"):
        folder = save(tmp_path / kind, GREY)
        for path in folder.rglob("*.png"):
            with Image.open(path) as image:
                converted = image.convert("RGB").quantize(16) if kind == "P" else image.convert("1")
            converted.save(path)
            path.touch()
        found = read_array(open_path(folder).arrays["x_train"])
        expected = converted.convert("RGB" if kind == "P" else "L")
        assert found.shape[1:] == ((3, 5, 6) if kind == "P" else (5, 6))
        assert any(
            np.array_equal(one, np.asarray(expected).transpose(2, 0, 1) if kind == "P" else expected) for one in found
        )


def test_folders_of_splits_and_training(tmp_path: Path) -> None:
    for split, pixels in (("train", GREY), ("val", GREY[::-1]), ("test", GREY // 2)):
        save(tmp_path / "d" / split, pixels)
    found = open_path(tmp_path / "d")
    np.testing.assert_array_equal(read_array(found.arrays["x_validation"]), GREY[::-1])
    np.testing.assert_array_equal(read_array(found.arrays["x_test"]), GREY // 2)
    np.savez(tmp_path / "a.npz", x=GREY, y=LABELS, x_validation=GREY[::-1], y_validation=LABELS)
    options: Any = {"epochs": 2, "batch_size": 4}
    expected, result = (
        distsgd.fit("softmax", distsgd.open_dataset(tmp_path / name), **options) for name in ("a.npz", "d")
    )
    assert result.summary["parameters_sha256"] == expected.summary["parameters_sha256"]
    assert open_inputs(tmp_path / "d" / "test").shape == GREY.shape


def bad(tmp_path: Path) -> Path:
    return save(tmp_path / "d", GREY) / "red" / "09.png"


def test_what_is_no_image_of_the_set(tmp_path: Path) -> None:
    path = bad(tmp_path)
    whole = path.read_bytes()
    x = open_path(tmp_path / "d").arrays["x_train"]
    for content, message in (
        (b"hello", "got something else; remove it"), (whole[:-30], "expected an intact file"), (b"", "something else"),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"09\.png: .*{message}"):
            read_array(x)
    for image, message in (
        (Image.fromarray(GREY[0, :3]), r"shape \(5, 6\) as the first, got \(3, 6\)"),
        (Image.fromarray(COLOUR[0]), r"got \(3, 5, 6\)"),
        (Image.fromarray(GREY[0]).convert("LA"), "grey or RGB pixels of 8 bits, got LA"),
        (Image.fromarray(GREY[0].astype(np.uint16)), "pixels of 8 bits, got I;16"),
        (Image.new("1", (9000, 9000)), "at most 67,108,864 pixels"),
        (Image.new("1", (9600, 9600)), "at most 67,108,864 pixels"),
    ):
        image.save(path)
        with pytest.raises(DataError, match=message):
            read_array(x)
    path.unlink()
    (tmp_path / "elsewhere.png").write_bytes(whole)
    path.symlink_to(tmp_path / "elsewhere.png")
    found = open_path(tmp_path / "d").arrays["x_train"]
    with pytest.raises(DataError, match=r"09\.png: this is a link out of the folder; copy the file into it"):
        read_array(found)
    path.unlink()
    with pytest.raises(DataError, match="leave the file as it is while it is in use"):
        open_rows({"x": found})


@pytest.mark.skipif(os.name != "posix", reason="makes a pipe")
def test_folders_that_are_none(tmp_path: Path) -> None:
    path = bad(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="a pipe"):
        read_array(open_path(tmp_path / "d").arrays["x_train"])
    with pytest.raises(DataError, match=r"expected a folder of images for each class, as class/name\.png, got none"):
        open_path(tmp_path / "d" / "blue")
    (tmp_path / "d" / "test" / "pink").mkdir(parents=True)
    save(tmp_path / "d" / "train", GREY)
    with pytest.raises(DataError, match=r"the class pink isn't in .*train; add or remove it"):
        open_path(tmp_path / "d")


def test_other_images_are_refused_and_other_files_are_noted(tmp_path: Path) -> None:
    """What looks like an example and isn't read would be lost without a word."""
    for name in ("cat/1.png", "dog/1.PNG", "dog/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / name)
    for hidden in ("Thumbs.db", ".DS_Store"):
        (tmp_path / "cat" / hidden).write_bytes(b"x")
    assert distsgd.open_dataset(str(tmp_path)).notes == ()
    (tmp_path / "cat" / "more").mkdir()
    (tmp_path / "README.txt").write_text("made by hand")
    (note,) = distsgd.open_dataset(str(tmp_path)).notes
    assert "2 other files or folders are no image of a class and not read" in note
    (tmp_path / "cat" / "2.tif").write_bytes(b"II*")
    with pytest.raises(distsgd.DataError, match=r"got 1 other images, such as 2\.tif; convert or remove them"):
        distsgd.open_dataset(str(tmp_path))
