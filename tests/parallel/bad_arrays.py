"""The part of tests/parallel/bad_inputs.py that is about files of named arrays: HDF5, NetCDF and Zarr."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from tests.parallel.bad_data import QUICK
from tests.parallel.bad_files import Case, Make, X, Y, every, file, link, pipe, sub_folder

H5 = f"--dataset a.h5 {QUICK}"
NC = f"--dataset a.nc {QUICK}"
IMAGES = f"--dataset d {QUICK}"
SVM = f"--dataset a.svm {QUICK}"
ZARR = f"--dataset a.zarr {QUICK}"


def h5(change: Callable[[Any], object] = lambda file: None, name: str = "a.h5", **arrays: Any) -> Make:
    """An HDF5 file: x and y, and in place of them or besides these arrays; None leaves one out. `change` has the rest
    of it."""

    def make(folder: Path) -> None:
        import h5py

        with h5py.File(folder / name, "w") as made:
            for key, array in ({"x": X, "y": Y} | arrays).items():
                if array is not None:
                    made[key] = array
            change(made)

    return make


def changed(name: str, change: Callable[[bytes], bytes]) -> Make:
    """A file that is there, with other content."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def filtered(number: int) -> Callable[[Any], object]:
    """x, in chunks that say they are packed by this filter: the number of gzip's, changed where it is described."""

    def change(made: Any) -> None:
        import h5py

        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((8, 6))
        plan.set_filter(number, h5py.h5z.FLAG_OPTIONAL, (1,))
        space = h5py.h5s.create_simple(X.shape)
        h5py.h5d.create(made.id, b"x", h5py.h5t.IEEE_F32LE, space, plan)

    return change


def virtual(made: Any) -> None:
    """x, which is put together of another file."""
    import h5py

    layout = h5py.VirtualLayout(X.shape, "f4")
    layout[...] = h5py.VirtualSource("b.h5", "x", X.shape)
    made.create_virtual_dataset("x", layout)


def external(made: Any) -> None:
    """x, whose values are in another file."""
    made.create_dataset("x", X.shape, "f4", external=[("/etc/passwd", 0, X.nbytes)])


def records(made: Any) -> None:
    """x as records, and text beside it."""
    made["x"] = np.zeros(40, [("a", "f4"), ("b", "i4")])


def linked(target: Any) -> Callable[[Any], object]:
    """x as a link, which h5py makes of what `target` returns."""

    def change(made: Any) -> None:
        import h5py

        made["x"] = target(h5py)

    return change


def text(made: Any) -> None:
    import h5py

    made.create_dataset("x", (40, 6), h5py.string_dtype())


def nested(made: Any) -> None:
    group = made
    for _ in range(40):
        group = group.create_group("g")


def zarr(version: int = 3, **arrays: Any) -> Make:
    """A Zarr folder: x and y, and in place of them these arrays."""

    def make(folder: Path) -> None:
        import zarr

        group = zarr.open_group(folder / "a.zarr", mode="w", zarr_format=version)  # type: ignore[arg-type]
        for key, array in ({"x": X, "y": Y} | arrays).items():
            group.create_array(key, shape=array.shape, dtype=array.dtype, chunks=array.shape)[...] = array

    return make


def metadata(change: Callable[[dict[str, Any]], object], name: str = "x/zarr.json") -> Make:
    """A Zarr folder whose metadata of x is as `change` leaves it."""

    def make(folder: Path) -> None:
        zarr(3 if name.endswith("zarr.json") else 2)(folder)
        path = folder / "a.zarr" / name
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return make


def codec(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["codecs"].append({"name": name, "configuration": {}})


def images(*sizes: tuple[int, int]) -> Make:
    """A folder of two classes of images, of these sizes in turn."""

    def make(folder: Path) -> None:
        from PIL import Image

        for number in range(4):
            path = folder / "d" / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            size = sizes[number % len(sizes)] if sizes else (4, 4)
            Image.fromarray(np.full(size, number, np.uint8)).save(path)

    return make


def _checked(data: bytes) -> bytes:
    """The rest of a PNG's header whose size is 100,000 by 100,000, with its checksum, and of the file."""
    rest = data[24:29]
    return rest + crc32(b"IHDR" + b"\0\1\x86\xa0" * 2 + rest).to_bytes(4, "big") + data[33:]


BLOB = "a.zarr/x/c/0/0"
NAMED_ARRAYS: dict[str, Case] = {
    "text called .h5": Case("expected an HDF5 file, got something else", H5, file("a.h5", "x,y\n")),
    "HDF5 cut in the middle": Case("a.h5: expected an intact file", H5, every(
        h5(), changed("a.h5", lambda data: data[: len(data) // 2]))),
    "HDF5 that is a pipe": Case("a pipe", H5, pipe("a.h5")),
    "HDF5 with a link to another file": Case("/x is a link to another file (b.h5)", H5, every(
        h5(name="b.h5"), h5(linked(lambda h5py: h5py.ExternalLink("b.h5", "/x")), x=None))),
    "HDF5 with values in another file": Case("/x is made of other files", H5, h5(external, x=None)),
    "HDF5 that is put together": Case("/x is made of other files", H5, every(h5(name="b.h5"), h5(virtual, x=None))),
    "HDF5 with links in a circle": Case(
        "more than 8 links", H5, h5(linked(lambda h5py: h5py.SoftLink("/x")), x=None)),
    "HDF5 with a link to nothing": Case(
        "/x leads to nothing", H5, h5(linked(lambda h5py: h5py.SoftLink("/no/thing")), x=None)),
    "HDF5 packed by a plugin": Case("packed by the HDF5 filter 32015", H5, h5(filtered(32015), x=None)),
    "HDF5 of records": Case("got dtype [(", H5, h5(records, x=None)),
    "HDF5 of text": Case("got dtype object", H5, h5(text, x=None)),
    "HDF5 of a group for x": Case("expected the arrays x and y", H5, h5(lambda made: made.create_group("x"), x=None,
                                                                       y=None)),
    "HDF5 of 40 groups in each other": Case("groups at most 32 deep", H5, h5(nested)),
    "HDF5 of zeros that were never written": Case("write all of it", H5, h5(
        lambda made: made.create_dataset("x", (40, 10**9), "f4", chunks=(1, 10**6)), x=None)),
    "HDF5 in chunks of 4 GB": Case("chunks of at most 1 GiB", H5, h5(
        lambda made: made.create_dataset("x", (40, 10**8), "f8", chunks=(4, 10**8)), x=None)),
    "HDF5 without examples": Case("at least one example", H5, h5(x=X[:0], y=Y[:0])),
    "HDF5 with a label too few": Case("expected 40 entries, one an example, got 39", H5, h5(y=Y[1:])),
    "HDF5 with a value that is missing": Case(
        "example 7 holds nan", H5, h5(x=np.where(np.arange(240).reshape(40, 6) == 44, np.nan, X))),
    "NetCDF 3": Case("this is NetCDF 3; nccopy -k nc4 IN OUT converts it", NC, file("a.nc", b"CDF\x02" + bytes(99))),
    "NetCDF with a fill value": Case("example 0 holds nan", NC, h5(
        lambda made: made["x"].attrs.update(_FillValue=np.float32(3)), "a.nc")),
    "NetCDF with a scale that is text": Case("expected a finite number as scale_factor", NC, h5(
        lambda made: made["x"].attrs.update(scale_factor="two"), "a.nc")),
    "a Zarr folder that is a file": Case("expected a Zarr folder with arrays", ZARR, file("a.zarr", "x")),
    "a Zarr folder of nothing": Case("expected the arrays x and y", ZARR, sub_folder("a.zarr")),
    "a Zarr folder with metadata of 2 MB": Case("more than 1048576 bytes", ZARR, every(
        zarr(), file("a.zarr/x/zarr.json", " " * 2_000_000))),
    "a Zarr folder with metadata that is a pipe": Case("a pipe", ZARR, every(
        zarr(), lambda folder: (folder / "a.zarr/x/zarr.json").unlink(), pipe("a.zarr/x/zarr.json"))),
    "a Zarr folder with metadata of 100,000 brackets": Case("lists in lists", ZARR, every(
        zarr(), file("a.zarr/x/zarr.json", "[" * 100_000))),
    "a Zarr folder with other metadata": Case("the metadata of a Zarr array", ZARR, metadata(
        lambda document: document.pop("shape"))),
    "a Zarr folder with a negative length": Case("the metadata of a Zarr array", ZARR, metadata(
        lambda document: document.update(shape=[-40, 6]))),
    "a Zarr folder packed by pickle": Case("is packed by 'pickle'", ZARR, metadata(
        lambda document: document.update(filters=[{"id": "pickle"}]), "x/.zarray")),
    "a Zarr folder packed by a codec that is unknown": Case("is packed by 'evil'", ZARR, metadata(codec("evil"))),
    "a Zarr folder of objects": Case("got dtype |O", ZARR, metadata(
        lambda document: document.update(dtype="|O"), "x/.zarray")),
    "a Zarr folder that promises 4 PB": Case("write all of it", ZARR, metadata(
        lambda document: document.update(shape=[40, 10**14]))),
    "a Zarr chunk that is damaged": Case("x: expected an intact array", ZARR, every(zarr(), file(BLOB, b"?" * 40))),
    "a Zarr chunk that is a link out of it": Case("0 is a link out of the folder", ZARR, every(
        zarr(), lambda folder: os.unlink(folder / BLOB), link(BLOB, "/etc/passwd"))),
    "a folder of images with a damaged one": Case("expected an intact file", IMAGES, every(
        images(), changed("d/b/1.png", lambda data: data[:-20]))),
    "a folder of images with a link out of it": Case("1.png: this is a link out of the folder", IMAGES, every(
        images(), lambda folder: (folder / "d/b/1.png").rename(folder / "1.png"), link("d/b/1.png", "../../1.png"))),
    "a folder of images of several sizes": Case("give all images one size", IMAGES, images((4, 4), (4, 5))),
    "a folder of one class of images": Case("a folder of images for each class", "--dataset d/b", images()),
    "an image that promises 10**10 pixels": Case("at most 67,108,864 pixels", IMAGES, every(
        images(), changed("d/b/1.png", lambda data: data[:16] + b"\0\1\x86\xa0" * 2 + _checked(data)))),
    "LIBSVM with an index of 0": Case("index from 1 to 2**24, got '0:1'", SVM, file("a.svm", "1 0:1\n2 1:1\n")),
    "LIBSVM with an index of 2**30": Case("from 1 to 2**24", SVM, file("a.svm", f"1 {2**30}:1\n2 1:1\n")),
    "LIBSVM with words": Case("line 2: expected a value, got 'one'", SVM, file("a.svm", "1 1:1\n2 1:one\n")),
    "files of several formats": Case("expected files of one format", f"--dataset a.h5,b.svm {QUICK}", every(
        h5(), file("b.svm", "1 1:1\n"))),
    "a pattern that nothing matches": Case("no file matches; check the pattern", f"--dataset 'p-*.h5' {QUICK}"),
    "a file that is named twice": Case("would count twice", f"--dataset a.h5,a.h5 {QUICK}", h5()),
    "files that are not alike": Case("write all files alike", f"--dataset a.h5,b.h5 {QUICK}", every(
        h5(), h5(name="b.h5", x=X[:, :2]))),
    "a Zarr array that is a link out of it": Case("x/zarr.json: this is a link out of the folder", ZARR, every(
        zarr(), lambda folder: (folder / "a.zarr/x").rename(folder / "x"), link("a.zarr/x", "../x"))),
    "Zarr's metadata that are a link out of it": Case("zarr.json: this is a link out of the folder", ZARR, every(
        zarr(), lambda folder: (folder / "a.zarr/x/zarr.json").unlink(), link("a.zarr/x/zarr.json", "/etc/passwd"))),
    "a Zarr array with more names than axes": Case("no axis is named 'c'", f"{ZARR} --axis c", metadata(
        lambda document: document.update(dimension_names=["a", "b", "c"]))),
    "a class of images that is a link out of it": Case("d/etc: this is a link out of the folder", IMAGES, every(
        images(), link("d/etc", "/etc"))),
    "LIBSVM that promises 2 GB": Case("of at most 1,100 times its", SVM, file("a.svm", f"1 {2**24}:1\n" * 40)),
    "LIBSVM with a number of Python's": Case("expected a value, got '1_0'", SVM, file("a.svm", "1 1:1_0\n2 1:1\n")),
    "a Zarr chunk that is a pipe": Case("0 is no regular file", ZARR, every(
        zarr(), lambda folder: os.unlink(folder / BLOB), pipe(BLOB))),
}  # fmt: skip
