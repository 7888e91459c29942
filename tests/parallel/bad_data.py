"""The part of tests/parallel/bad_inputs.py that is about data files."""

from __future__ import annotations

import gzip
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.parallel.bad_files import (
    IMAGES,
    LABELS,
    Case,
    Make,
    X,
    Y,
    attack,
    cifar,
    cifar_part,
    every,
    file,
    forbidden,
    idx,
    link,
    mnist,
    npy,
    npy_bytes,
    npz,
    npz_bytes,
    patched,
    pickled,
    pipe,
    sparse,
    sub_folder,
    tar_entries,
    unreadable,
)

QUICK = "--model softmax --epochs 1 --quiet"
DATA = f"--dataset data.npz {QUICK}"
NPY = f"--dataset x.npy {QUICK}"
MNIST = f"--dataset mnist --data-dir data {QUICK}"
PICKLE = f"--dataset mnist.pkl.gz {QUICK}"
CIFAR = f"--dataset cifar-10 --data-dir . {QUICK}"


def folder_of(**arrays: Any) -> Make:
    """A folder `data` of .npy files."""
    return every(sub_folder("data"), *(file(f"data/{name}.npy", npy_bytes(a)) for name, a in arrays.items()))


WHOLE = npz_bytes(x=X, y=Y)
PACKED = npz_bytes(np.savez_compressed, x=X, y=Y)
NPY_X = npy_bytes(X)
CIFAR_NAME = "cifar-10-binary.tar.gz"
MB = 1 << 20
PARTS_OF_CIFAR = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


BOMB = idx([], shape=(2**20, 2**11, 2**10))
MNIST_FILES: dict[str, Case] = {
    **{
        f"images cut after {cut} bytes": Case(reported, MNIST, mnist(IMAGES[:cut]))
        for cut, reported in (
            (0, "header of 4 bytes"), (3, "ends after 3"), (4, "header of 12 bytes"), (15, "ends after 11"),
            (16, "the file has 16"), (len(IMAGES) - 1, f"expected {len(IMAGES)} bytes"),
        )
    },
    **{
        f"gzipped images cut {cut} bytes before their end": Case(reported, MNIST, mnist(packed[:-cut], suffix=".gz"))
        for packed in [gzip.compress(IMAGES, mtime=0)]
        for cut, reported in (
            (len(packed) - 2, "reading it failed"), (len(packed) - 9, "reading it failed"),
            (len(packed) // 2, "reading it failed"), (8, "reading it failed"), (1, "reading it failed"),
        )
    },
    "images and a byte more": Case("the file has", MNIST, mnist(IMAGES + b"x")),
    "images of another magic number": Case("got 00000804", MNIST, mnist(patched(IMAGES, 3, b"\4"))),
    "images of floats": Case("got 00000d03", MNIST, mnist(patched(IMAGES, 2, b"\x0d"))),
    "a page of a web site": Case("got 3c68746d", MNIST, mnist(b"<html>404</html>")),
    "labels where the images belong": Case("got 00000801", MNIST, mnist(LABELS)),
    "images that say they are more": Case("the file has", MNIST, mnist(patched(IMAGES, 4, b"\0\0\0\x15"))),
    "images of 2**96 pixels": Case("79228162458924105385300197391", MNIST, mnist(patched(IMAGES, 4, b"\xff" * 12))),
    "no images of 2**64 pixels": Case("the shape of an array", MNIST, mnist(
        idx([], shape=(0, 2**32 - 1, 2**32 - 1)), idx([]))),
    "no images": Case("at least one example", MNIST, mnist(idx(np.zeros((0, 28, 28))), idx([]))),
    "images without pixels": Case("at least one example", MNIST, mnist(idx(np.zeros((20, 0, 28))))),
    "a label too few": Case("expected 20 entries, one an example, got 19", MNIST, mnist(labels=idx(range(19)))),
    "a label above 9": Case("example 3 has 10", MNIST, mnist(labels=patched(LABELS, 11, b"\x0a"))),
    "a wrong checksum": Case("CRC", MNIST, mnist(patched(gzip.compress(IMAGES), -8, b"??"), suffix=".gz")),
    "gzip that continues": Case("the file continues", MNIST, mnist(gzip.compress(IMAGES + b"x"), suffix=".gz")),
    "a bomb of 2 TB": Case(
        "takes 2199.0 GB of memory", MNIST, every(
            mnist(b"", gzip.compress(idx(np.zeros(2**20)), 1), suffix=".gz"),
            file("data/mnist/t10k-images-idx3-ubyte", idx(np.zeros((1, 2**11, 2**10)))),
            file("data/mnist/t10k-labels-idx1-ubyte", idx([0])),
            sparse("data/mnist/train-images-idx3-ubyte.gz", 3 << 30, gzip.compress(BOMB, mtime=0))), status=1),
    "images of another size in the test set": Case(
        "x_test has", MNIST, mnist(idx(np.zeros((20, 8, 8))))),
    "images that are a pipe": Case("missing train-images", MNIST, every(
        mnist(), lambda folder: (folder / "data/mnist/train-images-idx3-ubyte").unlink(),
        pipe("data/mnist/train-images-idx3-ubyte"))),
    "a data folder that is a file": Case("missing train-images", MNIST, file("data", "x")),
    "no data folder": Case("missing train-images", MNIST),
}  # fmt: skip

ARRAYS: dict[str, Case] = {
    **{
        f".npz cut after {cut} bytes": Case(reported, DATA, file("data.npz", WHOLE[:cut]))
        for cut, reported in (
            (0, "something else"), (1, "something else"), (30, "something else"), (len(WHOLE) // 2, "something else"),
            (len(WHOLE) - 22, "something else"), (len(WHOLE) - 1, "something else"),
        )
    },
    **{
        f".npy cut after {cut} bytes": Case(reported, NPY, npy(NPY_X[:cut]))
        for cut, reported in (
            (0, "header of 8 bytes"), (7, "ends after 7"), (9, "ends after 1"), (64, "header of 118 bytes"),
            (128, "the file has 128"), (len(NPY_X) - 1, "the file has"),
        )
    },
    "text called .npz": Case("expected a .npz file", DATA, file("data.npz", "x,y\n1,2\n")),
    ".npy called .npz": Case("expected a .npz file", DATA, file("data.npz", NPY_X)),
    ".npz called .npy": Case("expected NumPy's .npy format", NPY, npy(WHOLE)),
    ".npy and a byte more": Case("the file has", NPY, npy(NPY_X + b"x")),
    ".npy with a header of 4 GB": Case(
        "at most 10000 bytes, it says 4294967295", NPY, npy(b"\x93NUMPY\x02\x00\xff\xff\xff\xff{" + bytes(99))),
    ".npy with a header that computes": Case(
        "text that isn't one", NPY, npy(patched(NPY_X, 10, b"{'descr': __import__('os').abort(),   "))),
    ".npy that says it is larger": Case("the file has", NPY, npy(NPY_X.replace(b"(40, 6)", b"(99, 6)"))),
    ".npy of a negative length": Case("at least 0", NPY, npy(NPY_X.replace(b"(40, 6)", b"(-4, 6)"))),
    ".npy that is a pipe": Case("a pipe", NPY, every(npy(NPY_X), lambda f: (f / "x.npy").unlink(), pipe("x.npy"))),
    ".npy without a y.npy": Case("y.npy", NPY, file("x.npy", NPY_X)),
    "a damaged byte in .npz": Case("CRC", DATA, file("data.npz", patched(WHOLE, WHOLE.index(X.tobytes()), b"?"))),
    "a damaged byte in packed .npz": Case("make it again", DATA, file("data.npz", patched(PACKED, 240, b"?"))),
    ".npz whose member promises 4 GB": Case(
        "can't hold the promised", DATA,
        file("data.npz", patched(PACKED, PACKED.index(b"PK\1\2") + 24, b"\xff\xff\xff\xf0"))),
    ".npz that is encrypted": Case(
        "encrypted", DATA, file("data.npz", patched(WHOLE, WHOLE.index(b"PK\1\2") + 8, b"\1"))),
    ".npz packed another way": Case("another compression", DATA, lambda folder: _bzip2(folder / "data.npz")),
    "a folder called .npz": Case("expected the arrays x and y, got none", DATA, sub_folder("data.npz")),
    "a pipe called .npz": Case("a pipe", DATA, pipe("data.npz")),
    "a device called .npz": Case("a device", DATA, link("data.npz", "/dev/zero")),
    "a link to nowhere": Case("there is none", DATA, link("data.npz", "elsewhere.npz")),
    "links in a circle": Case("there is none", DATA, every(link("data.npz", "b.npz"), link("b.npz", "data.npz"))),
    "data that can't be read": Case("reading it failed", DATA, unreadable("data.npz")),
    "data without permission": Case("access is denied", DATA, forbidden(npz(), "data.npz")),
    "an ending that is unknown": Case("or a file ending in .npz", "--dataset ./data.dat", file("data.dat", "")),
    "ragged rows": Case("got dtype object", DATA, npz(x=np.array([[1.0], [1.0, 2.0]], object))),
    "text in place of numbers": Case("got dtype <U", DATA, npz(x=X.astype(str))),
    "complex numbers": Case("got dtype complex128", DATA, npz(x=X.astype(complex))),
    "numbers of 128 bits": Case("float128", DATA, npz(x=X.astype(np.longdouble))),
    "records": Case("got dtype [(", DATA, npz(x=np.zeros((40, 6), [("a", "f4"), ("b", "O")]))),
    "dates": Case("got dtype datetime64", DATA, npz(x=X.astype("datetime64[s]"))),
    "other names": Case("expected the arrays x and y, got a, b", DATA, npz(x=None, y=None, a=X, b=Y)),
    "a name of two lines": Case(r"got a\nb", DATA, npz(x=None, y=None, **{"a\nb": X})),
    "nearly the right names": Case("got 'x_val'", DATA, npz(x_val=X)),
    "x by two names": Case("expected x or x_train, got both", DATA, npz(x_train=X)),
    "no targets": Case("add y_train", DATA, npz(y=None)),
    "a target too few": Case("expected 40 entries, one an example, got 39", DATA, npz(y=Y[1:])),
    "targets of three dimensions": Case("(n,) or (n, outputs)", DATA, npz(y=np.zeros((40, 1, 1)))),
    "a single example": Case("leaves none", f"{DATA} --validation-fraction 0.9", npz(x=X[:1], y=Y[:1])),
    "no example": Case("at least one example", DATA, npz(x=X[:0], y=Y[:0])),
    "no feature": Case("at least one example and one feature", DATA, npz(x=X[:, :0])),
    "examples that are numbers": Case("say to (n, 1)", DATA, npz(x=X[:, 0])),
    "NaN": Case("example 7 holds nan", DATA, npz(x=np.where(np.arange(240).reshape(40, 6) == 44, np.nan, X))),
    "infinity": Case("example 0 holds -inf", DATA, npz(x=np.full((40, 6), -np.inf))),
    "numbers too large for float32": Case(
        "numbers that float32 can hold, example 0 holds 1e+300", DATA, npz(x=np.full((40, 6), 1e300))),
    "targets too large for float32": Case("1e+300", DATA, npz(y=np.full(40, 1e300))),
    "a target that is NaN": Case("targets: expected finite numbers", DATA, npz(y=np.full(40, np.nan))),
    "a label below 0": Case("example 5 has -1", DATA, npz(y=np.where(np.arange(40) == 5, -1, Y))),
    "identifiers in place of labels": Case("number the classes from 0", DATA, npz(y=np.arange(40) + 10**12)),
    "labels as text": Case("got dtype <U", DATA, npz(y=Y.astype(str))),
    "labels as one-hot integers": Case("labels of shape (n,), got (40, 4)", DATA, npz(y=np.eye(4, dtype=int)[Y])),
    "a weight below 0": Case("example 0 has -1", DATA, npz(weights=np.full(40, -1.0))),
    "weights of 0": Case("at least one above 0", DATA, npz(weights=np.zeros(40))),
    "too few weights": Case("expected 40 entries", DATA, npz(weights=np.ones(3))),
    "test data of other features": Case("x_test has (5,)", DATA, npz(x_test=X[:, :5], y_test=Y)),
    "a test label that training hasn't": Case("example 0 has 4", DATA, npz(x_test=X[:1], y_test=np.array([4]))),
    "pixels to test, floats to train": Case("x_test has uint8", DATA, npz(x_test=X.astype(np.uint8), y_test=Y)),
    "other validation data": Case("must be alike", f"--dataset digits --validation data.npz {QUICK}", npz()),
    "targets that are no probabilities": Case(
        "must add up to 1", f"{DATA} --loss softmax-cross-entropy", npz(y=np.full((40, 2), 0.7))),
    "a folder without arrays": Case("got none", f"--dataset data {QUICK}", sub_folder("data")),
    "a folder of other arrays": Case("got images", f"--dataset data {QUICK}", folder_of(images=X)),
    "a folder with a name that is no UTF-8": Case(
        r"got \udcff", f"--dataset data {QUICK}", every(sub_folder("data"), file(os.fsdecode(b"data/\xff.npy"), b""))),
}  # fmt: skip

PICKLES_AND_ARCHIVES: dict[str, Case] = {
    "a pickle that runs a command": Case("calls for 'posix.system'", PICKLE, pickled(attack(os.system, "touch ran"))),
    "a pickle that evaluates": Case("calls for 'builtins.eval'", PICKLE, pickled(attack(eval, "1/0"))),
    "a pickle of something else": Case("another structure", PICKLE, pickled(pickle.dumps({"x": X}))),
    "a pickle of one pair": Case("another structure", PICKLE, pickled(pickle.dumps((X, Y)))),
    "a pickle that is cut": Case("make it again", PICKLE, pickled(pickle.dumps(((X, Y),) * 3)[:-9])),
    "no pickle": Case("make it again", PICKLE, pickled(b"hello")),
    "an empty pickle": Case("make it again", PICKLE, file("mnist.pkl.gz", b"")),
    "a pickle of a billion instructions": Case("at most 250000 instructions", PICKLE, pickled(*[b"N" * MB] * 1000)),
    "the same in one frame": Case(
        "at most 250000 instructions", PICKLE,
        pickled(b"\x80\x04\x95" + (900 * MB).to_bytes(8, "little"), *[b"N" * MB] * 900)),
    "a pickle of 2 GB": Case(
        "bytes, it says more", PICKLE,
        pickled(b"\x80\x04\x8e" + (2 << 30).to_bytes(8, "little"), *[bytes(MB)] * 2048)),
    "a pickle that copies itself": Case(
        "more bytes than are in the file", PICKLE,
        pickled(b"\x80\x02X" + (30 * MB).to_bytes(4, "little"), *[b"a" * MB] * 30,
                b"q\0" + b"c_codecs\nencode\nh\0X\6\0\0\0latin1\x86R" * 100 + b".")),
    "a pickle that is a pipe": Case("a pipe", PICKLE, pipe("mnist.pkl.gz")),
    "an archive that is cut": Case("make it again", CIFAR, file(CIFAR_NAME, cifar()[:300])),
    "an archive with a part missing": Case("data_batch_3", CIFAR, file(CIFAR_NAME, cifar(data_batch_3=None))),
    "an archive with an empty part": Case("got 0 bytes", CIFAR, file(CIFAR_NAME, cifar(data_batch_1=b""))),
    "a part that is no whole number of images": Case(
        "records of 3073 bytes", CIFAR, file(CIFAR_NAME, cifar(test_batch=cifar_part([1])[:-1]))),
    "an image of an eleventh class": Case(
        "image 2 has 10", CIFAR, file(CIFAR_NAME, cifar(test_batch=cifar_part([1, 2, 10])))),
    "an archive of a million files": Case("at most 10000 files", CIFAR, file(CIFAR_NAME, tar_entries(1_000_000))),
    "an archive of 2 GB": Case(
        "the archive holds more", CIFAR, file(CIFAR_NAME, gzip.compress(bytes(MB), mtime=0) * 2048)),
    "an archive that is none": Case("a damaged header", CIFAR, file(CIFAR_NAME, gzip.compress(b"hello" * 999))),
    "a pickled part that calls": Case(
        "calls for 'posix.system'", CIFAR, every(*(
            file(f"cifar-10-batches-py/{name}", attack(os.system, "touch ran"))
            for name in PARTS_OF_CIFAR))),
}  # fmt: skip


def _bzip2(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x.npy", NPY_X)
        archive.writestr("y.npy", npy_bytes(Y))
