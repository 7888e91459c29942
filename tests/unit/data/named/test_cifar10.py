"""CIFAR-10 from generated files of the published forms, whole and damaged; no archive can make it do anything else."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsgd.core.device import Array
from distsgd.core.errors import DataError
from distsgd.core.random import random_words
from distsgd.data.named.cifar10 import BINARY, CIFAR_10, PYTHON, TEST, TRAIN, Form
from distsgd.data.named.datasets import open_dataset, read_array
from distsgd.data.sources.arrays.unpickle import unpickle

COUNTS = dict(zip((*TRAIN, *TEST), (7, 3, 5, 4, 6, 8), strict=True))
RECORD = 3073


def contents() -> dict[str, tuple[Array, Array]]:
    """(images (n, 3072), labels (n,)) of each file."""
    found = {}
    for number, (name, count) in enumerate(COUNTS.items()):
        words = random_words(count * 384, 1, "cifar", number)
        labels = (np.arange(count) * 3 + number) % 10
        found[name] = (words.view(np.uint8).reshape(count, 3072), labels.astype(np.uint8))
    return found


DATA = contents()


def binary(images: Array, labels: Array) -> bytes:
    return np.concatenate([labels[:, np.newaxis], images], axis=1).tobytes()


def text(value: bytes) -> bytes:
    return b"U" + bytes([len(value)]) + value


def python(images: Array, labels: Array) -> bytes:
    """What Python 2's cPickle wrote for a dict of one batch, with protocol 2, without most of its memo."""
    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    names = b"".join(text(b"airplane_s_%06d.png" % i) for i in range(len(labels)))
    raw = images.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        + text(b"b")
        + b"\x87R(K\x01M"
        + struct.pack("<H", len(images))
        + b"M\x00\x0c\x86cnumpy\ndtype\n"
        + text(b"u1")
        + b"K\x00K\x01\x87R(K\x03"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", len(raw))
        + raw
        + b"tb"
    )
    items = (
        text(b"batch_label") + text(b"training batch 1 of 5"),
        text(b"labels") + b"](" + numbers + b"e",
        text(b"data") + array,
        text(b"filenames") + b"](" + names + b"e",
    )
    return b"\x80\x02}q\x01(" + b"".join(items) + b"u."


FORMS = {"binary": (BINARY, binary), "python": (PYTHON, python)}
Write = Callable[[Array, Array], bytes]


def files(form: Form, write: Write) -> dict[str, bytes]:
    """All that is in the published archive's folder, by name."""
    found = {f"{name}{form.suffix}": write(*DATA[name]) for name in DATA}
    meta = "batches.meta.txt" if form is BINARY else "batches.meta"
    return {meta: b"airplane\nautomobile\n", **found, "readme.html": b"<html/>"}


def tar(members: dict[str, bytes], format: int = tarfile.GNU_FORMAT, folder: str = "") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as archive:
        if folder:
            entry = tarfile.TarInfo(folder)
            entry.type = tarfile.DIRTYPE
            archive.addfile(entry)
        for name, content in members.items():
            entry = tarfile.TarInfo(f"{folder}/{name}" if folder else name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def archive_of(form: Form, write: Write, **options: int) -> bytes:
    return gzip.compress(tar(files(form, write), folder=form.folder, **options), mtime=0)


def put(folder: Path, name: str, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def unpack(folder: Path, form: Form, write: Write) -> None:
    for name, content in files(form, write).items():
        put(folder, name, content)


def check(data_dir: Path) -> None:
    source = open_dataset("cifar-10", data_dir=str(data_dir), download=False)
    assert (source.scale, source.num_classes) == (255.0, 10)
    copy = pickle.loads(pickle.dumps(source))
    for split, names in (("train", TRAIN), ("test", TEST)):
        images = np.concatenate([DATA[name][0] for name in names])
        labels = np.concatenate([DATA[name][1] for name in names]).astype(np.int64)
        for one in (source, copy):
            found = read_array(one.arrays[f"x_{split}"])
            np.testing.assert_array_equal(found, images.reshape(-1, 3, 32, 32), strict=True)
            np.testing.assert_array_equal(read_array(one.arrays[f"y_{split}"]), labels, strict=True)


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("place", ["archive", "archive in the root", "folder", "folder in the root", "files", "root"])
def test_both_forms_wherever_they_are(tmp_path: Path, kind: str, place: str) -> None:
    form, write = FORMS[kind]
    inside = tmp_path if "root" in place else tmp_path / "cifar-10"
    if place.startswith("archive"):
        put(inside, form.archive, archive_of(form, write))
    else:
        unpack(inside / form.folder if place.startswith("folder") else inside, form, write)
    check(tmp_path)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_tar(tmp_path: Path, format: int) -> None:
    put(tmp_path, BINARY.archive, archive_of(BINARY, binary, format=format))
    check(tmp_path)
    members = {f"./{BINARY.folder}/{name}": content for name, content in files(BINARY, binary).items()}
    long = {"x" * 300 + "/data_batch_1.bin": b"long names have headers of their own"}
    put(tmp_path, BINARY.archive, tar({**long, **members}, tarfile.PAX_FORMAT))  # not packed, too
    check(tmp_path)


def test_files_go_before_archives_and_the_own_folder_before_the_root(tmp_path: Path) -> None:
    put(tmp_path / "cifar-10", BINARY.archive, b"not read")
    put(tmp_path, PYTHON.archive, b"not read")
    unpack(tmp_path / "cifar-10" / BINARY.folder, BINARY, binary)
    check(tmp_path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("keys", [str, str.encode])
def test_python_form_of_every_protocol(tmp_path: Path, protocol: int, keys: Callable[[str], str | bytes]) -> None:
    for name, (images, labels) in DATA.items():
        columns = {"data": images, "labels": labels.tolist(), "batch_label": "one", "filenames": ["a.png", "b.png"]}
        put(tmp_path, name, pickle.dumps({keys(key): value for key, value in columns.items()}, protocol))
    check(tmp_path)


def opened(folder: Path) -> None:
    """Opens and reads everything."""
    for source in open_dataset("cifar-10", data_dir=str(folder), download=False).arrays.values():
        read_array(source)


def refused(folder: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        opened(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


IMAGES, LABELS = DATA["data_batch_2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (binary(IMAGES, LABELS)[:-1], "expected records of 3073 bytes, got 9218 bytes"),
        (b"", "expected records of 3073 bytes, got 0"),
        (binary(IMAGES, np.array([9, 10, 255], np.uint8)), "labels from 0 to 9, image 1 has 10"),
    ],
)
def test_damaged_binary_files(tmp_path: Path, content: bytes, message: str) -> None:
    unpack(tmp_path, BINARY, binary)
    put(tmp_path, "data_batch_2.bin", content)
    refused(tmp_path, f"data_batch_2.bin: .*{message}")
    members = {**files(BINARY, binary), "data_batch_2.bin": content}
    (tmp_path / "packed").mkdir()
    put(tmp_path / "packed", BINARY.archive, gzip.compress(tar(members, folder=BINARY.folder)))
    refused(tmp_path / "packed", f"{BINARY.archive}: {BINARY.folder}/data_batch_2.bin: .*{message}")


COLUMNS = {"data": IMAGES, "labels": LABELS.tolist()}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"data": IMAGES}, "an array data and a list labels, got data"),
        ({**COLUMNS, "labels": LABELS}, "an array data and a list labels, got data, labels"),
        ({**COLUMNS, "labels": [1, 2]}, r"shape \(2, 3072\) .*got uint8 of shape \(3, 3072\)"),
        ({**COLUMNS, "data": IMAGES.astype(np.int16)}, "got int16"),
        ({**COLUMNS, "data": IMAGES.reshape(3, 3, 32, 32)}, r"got uint8 of shape \(3, 3, 32, 32\)"),
        ({"data": IMAGES[:0], "labels": []}, r"got uint8 of shape \(0, 3072\)|bytes"),
        ({**COLUMNS, "labels": [1, 2, -1]}, "labels from 0 to 9, image 2 has -1"),
        ({**COLUMNS, "labels": [1, 2, 10**30]}, "image 2 has 1000"),
        ({**COLUMNS, "labels": [1, True, 2]}, "a (list|int) where an array or a list of numbers"),
        ({**COLUMNS, "more": {"x": 1}}, "a dict where an array or a list"),
        ({**COLUMNS, "more": None}, "a NoneType where an array or a list"),
        ({**COLUMNS, 5: IMAGES}, "a int where a name was expected"),
        ((IMAGES, LABELS), "expected a pickled dict, got a tuple"),
        ({**COLUMNS, "more": {1, 2}}, "other objects|calls for '(__builtin__|builtins).set'"),
        ({**COLUMNS, "more": np.float64(1)}, "calls for .*scalar"),
    ],
)
def test_damaged_python_files(tmp_path: Path, value: object, message: str) -> None:
    unpack(tmp_path, PYTHON, python)
    for protocol in (2, 4):
        put(tmp_path, "data_batch_2", pickle.dumps(value, protocol))
        refused(tmp_path, f"data_batch_2: .*{message}")


def test_python_file_that_continues(tmp_path: Path) -> None:
    unpack(tmp_path, PYTHON, python)
    put(tmp_path, "test_batch", python(*DATA["test_batch"]) + b"more")
    refused(tmp_path, "the file continues")


# Python's own machine lets BUILD set attributes of anything, given dicts: here of a function that later files meet.
ON_A_FUNCTION = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nN}U\x0c__defaults__)s\x86b."
ON_A_DICT = b"\x80\x02}}U\x01aK\x01sb."


@pytest.mark.parametrize("content", [ON_A_FUNCTION, ON_A_DICT, b"\x80\x02Nb.", b"\x80\x02b."])
def test_no_attribute_of_anything_is_set(content: bytes) -> None:
    with pytest.raises(DataError, match=r"a state of something that isn't an array|pop from empty list|out of range"):
        unpickle(io.BytesIO(content), 100, "here")


def test_file_missing_from_folder_or_archive(tmp_path: Path) -> None:
    unpack(tmp_path / "folder", BINARY, binary)
    (tmp_path / "folder" / "data_batch_3.bin").unlink()
    refused(tmp_path / "folder", "data_batch_3.bin: expected a file, found none")
    members = files(BINARY, binary)
    del members["data_batch_3.bin"], members["test_batch.bin"]
    put(tmp_path / "archive", BINARY.archive, gzip.compress(tar(members, folder=BINARY.folder)))
    refused(tmp_path / "archive", "data_batch_3.bin, cifar-10-batches-bin/test_batch.bin in the archive, not found")


def with_entry(entry: tarfile.TarInfo, content: bytes = b"") -> bytes:
    """The archive with one entry more, in front."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    rest = tar(files(BINARY, binary), folder=BINARY.folder)
    return stream.getvalue()[: 512 + -(-len(content) // 512) * 512] + rest


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_not_looked_at(tmp_path: Path, kind: bytes) -> None:
    """Neither written nor followed, not even under a name that is expected."""
    entry = tarfile.TarInfo(f"{BINARY.folder}/data_batch_1.bin")
    entry.type, entry.linkname = kind, "/etc/passwd"
    put(tmp_path, BINARY.archive, gzip.compress(with_entry(entry)))
    check(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [BINARY.archive]


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "cifar-10-batches-bin/../data_batch_1.bin"])
def test_other_names_are_passed_over(tmp_path: Path, name: str) -> None:
    put(tmp_path / "inside", BINARY.archive, gzip.compress(with_entry(tarfile.TarInfo(name), b"x" * 5000)))
    check(tmp_path / "inside")
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


def test_the_same_file_twice(tmp_path: Path) -> None:
    entry = tarfile.TarInfo(f"{BINARY.folder}/data_batch_1.bin")
    put(tmp_path, BINARY.archive, gzip.compress(with_entry(entry, binary(IMAGES, LABELS))))
    refused(tmp_path, "data_batch_1.bin once in the archive, it is there twice")


def test_gzip_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 1 << 20
    monkeypatch.setattr("distsgd.data.named.cifar10.UNPACKED_LIMIT", limit)
    zeros = bytes(4 * limit)
    whole = tar(files(BINARY, binary), folder=BINARY.folder)
    bombs = {
        "behind the end": whole + zeros,
        "in another file": with_entry(tarfile.TarInfo("other"), zeros),
        "in an expected file": with_entry(tarfile.TarInfo(f"{BINARY.folder}/test_batch.bin"), zeros),
        "many small files": tar({f"file {i}": b"" for i in range(3000)}) + whole,
    }
    for content in bombs.values():
        put(tmp_path, BINARY.archive, gzip.compress(content))
        refused(tmp_path, "at most 1048576 bytes unpacked")
    put(tmp_path, BINARY.archive, gzip.compress(whole))
    check(tmp_path)


def test_pickles_that_are_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpack(tmp_path, PYTHON, python)
    monkeypatch.setattr("distsgd.data.named.cifar10.FILE_LIMIT", 1000)
    refused(tmp_path, "at most 1000 bytes, it says more")


def relabelled(content: bytes, start: int, value: bytes) -> bytes:
    """A tar whose first header has other bytes at `start`, and a checksum that fits them."""
    header = bytearray(content[:512])
    header[start : start + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content[512:]


PLAIN = tar({f"{BINARY.folder}/{name}": content for name, content in files(BINARY, binary).items()})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (relabelled(PLAIN, 124, b"00000001001\0"), "damaged"),  # what follows is no header then
        (relabelled(PLAIN, 124, b"77777777777\0"), "at most 268435456 bytes unpacked"),
        (relabelled(PLAIN, 124, b"\x80" + b"\xff" * 11), "at most 268435456"),  # GNU's way to say more than 8 GiB
        (relabelled(PLAIN, 124, b"\xff" * 12), "damaged"),  # and to say less than nothing
        (relabelled(PLAIN, 124, b"-0000000001\0"), "damaged"),
        (relabelled(PLAIN, 124, b"00000000 01\0"), "damaged"),
        (PLAIN[:100] + b"8" + PLAIN[101:], "damaged"),
        (PLAIN[:700], "unexpected end of data"),
        (PLAIN[: -(-len(PLAIN.rstrip(b"\0")) // 512) * 512], "damaged"),
        (b"", "damaged"),
        (gzip.compress(PLAIN)[:-9], "failed"),
        (gzip.compress(PLAIN)[:-8] + b"\0\0\0\0" + gzip.compress(PLAIN)[-4:], "CRC"),
    ],
)
def test_damaged_archives(tmp_path: Path, content: bytes, message: str) -> None:
    put(tmp_path, BINARY.archive, content)
    refused(tmp_path, message)


@pytest.mark.parametrize("kind", FORMS)
@given(data=st.data())
def test_flipped_bits_and_cuts(tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject) -> None:
    """A DataError, or arrays of the sizes that the files have: no other exception."""
    form, write = FORMS[kind]
    content = bytearray(tar(files(form, write), folder=form.folder))
    for _ in range(data.draw(st.integers(0, 3))):
        unit = data.draw(st.integers(0, len(content) // 512 - 1))
        content[unit * 512 + data.draw(st.integers(0, 511))] ^= 1 << data.draw(st.integers(0, 7))
    content = content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))]
    folder = tmp_path_factory.mktemp("fuzz")
    put(folder, form.archive, bytes(content))
    with suppress(DataError):
        opened(folder)


def test_files_that_changed(tmp_path: Path) -> None:
    for form, write in FORMS.values():
        unpack(tmp_path / form.folder, form, write)
        source = open_dataset("cifar-10", data_dir=str(tmp_path / form.folder), download=False)
        put(tmp_path / form.folder, f"test_batch{form.suffix}", write(IMAGES, LABELS))
        with pytest.raises(DataError, match="expected 8 images, the file now has 3; start again"):
            read_array(source.arrays["x_test"])


def test_missing(tmp_path: Path) -> None:
    refused(tmp_path, "cifar-10-binary.tar.gz or cifar-10-python.tar.gz, packed or unpacked, in .*cifar-10, not found")


def test_published_addresses_and_checksums() -> None:
    assert CIFAR_10.checksums == ("c32a1d4ab5d03f1284b67883e8d87530",)
    assert f"{CIFAR_10.url}/{BINARY.archive}" == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
