"""Reading arrays: npy, npz and IDX against NumPy's own readers, lying headers, and memory."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest

from distsgd.core.device import Array
from distsgd.core.errors import DataError
from distsgd.data.sources.arrays.idx import IdxSource
from distsgd.data.sources.arrays.npy import NpySource, open_npz
from distsgd.data.sources.base import ArraySource, read_array
from distsgd.data.sources.converted import ValuesSource, converted

ARRAYS = {
    "uint8": np.arange(60, dtype=np.uint8).reshape(5, 4, 3),
    "bool": np.array([True, False, True]),
    "int16": np.arange(-5, 5, dtype=np.int16),
    "float16": np.linspace(0, 1, 7, dtype=np.float16),
    "float32": np.linspace(-1, 1, 700_000, dtype=np.float32).reshape(700, 1000),
    "float64": np.linspace(-1, 1, 12).reshape(4, 3),
    "big-endian": np.arange(12, dtype=">f4").reshape(3, 4),
    "fortran": np.asfortranarray(np.linspace(-1, 1, 300_007 * 2).reshape(300_007, 2)),
    "fortran3": np.asfortranarray(np.arange(24, dtype=np.int32).reshape(2, 3, 4)),
    "column": np.arange(6.0).reshape(6, 1),
}


def header_bytes(text: str, version: int = 1) -> bytes:
    body = text.encode("latin-1") + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(body)) + body


def npy_bytes(array: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def idx_bytes(array: Array) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def read_fresh(source: ArraySource) -> Array:
    out = np.full(source.shape, 77).astype(source.dtype)
    source.read_into(out)
    return out


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("kind", ["npy", "stored", "deflated"])
def test_read_into_gives_what_numpy_wrote(tmp_path: Path, name: str, kind: str) -> None:
    array = ARRAYS[name]
    source: ArraySource
    if kind == "npy":
        np.save(tmp_path / "a.npy", array)
        source = NpySource.open(tmp_path / "a.npy")
    else:
        (np.savez if kind == "stored" else np.savez_compressed)(tmp_path / "a.npz", a=array, other=np.zeros(1))
        source = open_npz(tmp_path / "a.npz", ["a"])["a"]
    assert (source.shape, source.dtype) == (array.shape, array.dtype)
    source = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(read_fresh(source), array, strict=True)
    np.testing.assert_array_equal(read_array(source), array, strict=True)


def test_npy_is_mapped_read_only_where_it_can_be(tmp_path: Path) -> None:
    for name, array in ARRAYS.items():
        np.save(tmp_path / f"{name}.npy", array)
        found = NpySource.open(tmp_path / f"{name}.npy").mapped()
        if name in ("big-endian", "fortran", "fortran3"):
            assert found is None
        else:
            assert isinstance(found, np.memmap)
            assert not found.flags.writeable
            np.testing.assert_array_equal(found, array, strict=True)
    np.savez(tmp_path / "a.npz", a=ARRAYS["float32"])
    assert open_npz(tmp_path / "a.npz", ["a"])["a"].mapped() is None


def test_unaligned_npy_is_read_instead_of_mapped(tmp_path: Path) -> None:
    text = "{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }"
    header = header_bytes(text)
    header = header_bytes(text + " " * ((3 - len(header)) % 8))
    assert len(header) % 8 == 3
    (tmp_path / "a.npy").write_bytes(header + np.array([1.5, 2.5], "<f8").tobytes())
    source = NpySource.open(tmp_path / "a.npy")
    assert source.mapped() is None
    np.testing.assert_array_equal(read_array(source), [1.5, 2.5])


def test_version_2_and_python_2_headers(tmp_path: Path) -> None:
    for version, shape in ((2, "(2,)"), (1, "(2L,)")):
        header = header_bytes(f"{{'descr': '<i4', 'fortran_order': False, 'shape': {shape}, }}", version)
        (tmp_path / "a.npy").write_bytes(header + np.array([3, 4], "<i4").tobytes())
        assert read_array(NpySource.open(tmp_path / "a.npy")).tolist() == [3, 4]


def test_read_into_refuses_another_buffer(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 4)))
    source = NpySource.open(tmp_path / "a.npy")
    for out in (np.zeros((4, 3)), np.zeros((3, 4), np.float32), np.zeros((4, 3)).T):
        with pytest.raises(ValueError, match="C-ordered buffer of shape"):
            source.read_into(out)


def good_header(shape: str, descr: str = "'<f8'") -> bytes:
    return header_bytes(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}")


BAD_NPY = {
    "empty": (b"", "header of 8 bytes"),
    "text": (b"1,2,3\n4,5,6\n", "format 1 or 2"),
    "version 3": (b"\x93NUMPY\x03\x00" + bytes(100), "format 1 or 2"),
    "truncated": (npy_bytes(np.zeros(9))[:-1], "the file has"),
    "longer": (npy_bytes(np.zeros(9)) + b"x", "the file has"),
    "no header": (b"\x93NUMPY\x01\x00\x80\x00{", "the file ends after 1"),
    "header of 4 GB": (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "at most 10000 bytes"),
    "huge shape": (good_header("(1000000000, 1000000000)") + bytes(80), "the file has"),
    "negative": (good_header("(-1,)") + bytes(8), "at least 0"),
    "bool length": (good_header("(True,)") + bytes(8), "at least 0"),
    "not a shape": (good_header("'abc'") + bytes(8), "isn't one"),
    "code": (good_header("__import__('os').abort()") + bytes(8), "isn't one"),
    "nested": (header_bytes("(" * 5000), "isn't one"),
    "objects": (good_header("(1,)", "'|O'") + bytes(8), "got dtype object"),
    "complex": (npy_bytes(np.zeros(3, complex)), "got dtype complex128"),
    "strings": (npy_bytes(np.array(["a", "b"])), "got dtype <U1"),
    "records": (npy_bytes(np.zeros(2, [("a", "f4")])), "got dtype"),
    "dates": (npy_bytes(np.zeros(2, "M8[s]")), "got dtype datetime64"),
}


@pytest.mark.parametrize("name", BAD_NPY)
def test_bad_npy_gives_one_sentence(tmp_path: Path, name: str) -> None:
    content, message = BAD_NPY[name]
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        NpySource.open(tmp_path / "a.npy")
    assert str(caught.value).startswith(str(tmp_path / "a.npy"))
    assert "\n" not in str(caught.value)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(DataError, match=r"a\.npz: a\.npy: .*" + message):
        open_npz(tmp_path / "a.npz", ["a"])
    assert open_npz(tmp_path / "a.npz", ["b"]) == {}


def test_missing_and_changed_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found none"):
        NpySource.open(tmp_path / "none.npy")
    with pytest.raises(DataError, match="got a folder"):
        NpySource.open(tmp_path)
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((2, 3)))
    np.savez(tmp_path / "a.npz", a=np.zeros((2, 3)))
    sources = NpySource.open(path), open_npz(tmp_path / "a.npz", ["a"])["a"]
    np.save(path, np.zeros((3, 2)))
    np.savez(tmp_path / "a.npz", a=np.zeros((3, 2)))
    for source in sources:
        with pytest.raises(DataError, match="changed since"):
            read_array(source)
    path.unlink()
    with pytest.raises(DataError, match="found none"):
        read_array(sources[0])


def test_bad_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for content in (b"", b"not a zip", npy_bytes(np.zeros(3))):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"expected a \.npz file"):
            open_npz(path, ["a"])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.npy", npy_bytes(np.zeros(3)))
    with pytest.raises(DataError, match="stored or deflated"):
        open_npz(path, ["a"])


def test_archive_whose_data_is_damaged_fails_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, a=np.zeros(100))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="intact file"):
        read_fresh(open_npz(path, ["a"])["a"])


def test_archive_that_promises_more_than_it_can_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", good_header("(125000000000,)"))
        info = archive.getinfo("a.npy")
        info.file_size = 10**12
    with pytest.raises(DataError, match="can't hold the promised"):
        open_npz(path, ["a"])


@pytest.mark.parametrize("packed", [False, True])
def test_idx(tmp_path: Path, packed: bool) -> None:
    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    content = idx_bytes(images)
    path = tmp_path / "images"  # the content decides, not the name
    path.write_bytes(gzip.compress(content) if packed else content)
    source = pickle.loads(pickle.dumps(IdxSource.open(path, 3)))
    assert (source.shape, source.dtype) == (images.shape, np.uint8)
    np.testing.assert_array_equal(read_fresh(source), images, strict=True)
    found = source.mapped()
    assert (found is None) == packed
    if found is not None:
        np.testing.assert_array_equal(found, images, strict=True)
        assert not found.flags.writeable
    path.write_bytes(idx_bytes(images[:1]))
    with pytest.raises(DataError, match="start again"):
        read_fresh(source)


BAD_IDX = {
    "empty": (b"", "header of 4 bytes"),
    "labels": (idx_bytes(np.zeros(24, np.uint8)), "00000803.*got 00000801"),
    "floats": (b"\0\0\x0d\x03" + bytes(12), "got 00000d03"),
    "text": (b"hello, world", "got 68656c6c"),
    "cut header": (b"\0\0\x08\x03\0\0", "header of 12 bytes"),
    "truncated": (idx_bytes(np.zeros((2, 3, 4), np.uint8))[:-1], "expected 40 bytes"),
    "longer": (idx_bytes(np.zeros((2, 3, 4), np.uint8)) + b"x", "expected 40 bytes"),
    "huge": (b"\0\0\x08\x03" + b"\xff" * 12, "expected 79228162458924105385300197391 bytes"),
}


@pytest.mark.parametrize("name", BAD_IDX)
@pytest.mark.parametrize("packed", [False, True])
def test_bad_idx_gives_one_sentence(tmp_path: Path, name: str, packed: bool) -> None:
    content, message = BAD_IDX[name]
    if packed and name in ("truncated", "longer"):
        message = {"truncated": "24 bytes of data, the file ends after 23", "longer": "the file continues"}[name]
    (tmp_path / "a").write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=message) as caught:
        read_fresh(IdxSource.open(tmp_path / "a", 3))
    assert str(caught.value).startswith(str(tmp_path / "a"))


def test_packed_idx_with_a_damaged_checksum(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(idx_bytes(np.zeros((2, 3, 4), np.uint8))))
    content[-6] ^= 1
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match="CRC"):
        read_fresh(IdxSource.open(tmp_path / "a", 3))


def test_gzip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(gzip.compress(idx_bytes(np.zeros((2, 3, 4), np.uint8)) + bytes(50_000_000), 1))
    source = IdxSource.open(tmp_path / "a", 3)
    asked: list[int] = []
    original = gzip.GzipFile.read

    def count(self: gzip.GzipFile, size: int | None = -1) -> bytes:
        found = original(self, size)
        asked.append(len(found))
        return found

    monkeypatch.setattr(gzip.GzipFile, "read", count)
    with pytest.raises(DataError, match="the file continues"):
        read_fresh(source)
    assert sum(asked) <= 4 + 12 + 24 + 1


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int16, np.int32, np.uint32, np.int64, ">i4", ">i8"])
def test_labels_are_widened_in_place(dtype: str | type[np.generic]) -> None:
    values = (np.arange(300_001) % 120).astype(dtype).reshape(-1, 1)
    source = converted(ValuesSource.of(values), np.int64, (300_001,))
    found = read_fresh(source)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, values.ravel().astype(np.int64))


def test_conversion_that_only_reshapes_keeps_the_map(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(5).reshape(5, 1))
    source = NpySource.open(tmp_path / "a.npy")
    assert converted(source, np.int64) is source
    found = converted(source, np.int64, (5,)).mapped()
    assert found is not None
    assert found.tolist() == [0, 1, 2, 3, 4]
    assert converted(source, ">i8").mapped() is None
    with pytest.raises(ValueError, match="widened"):
        converted(source, np.int32)


MEMORY = """
    import sys, numpy as np
    from distsgd.data.sources.arrays.npy import open_npz, NpySource
    from distsgd.data.checks import check_arrays

    def peak():
        return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024

    check_arrays("warm", np.zeros((2, 2)), np.zeros(2))
    sources = open_npz(sys.argv[1], ["x", "y"])
    x, y = (np.empty(sources[k].shape, sources[k].dtype) for k in "xy")
    x[:], y[:] = 1, 1
    before = peak()
    for key, out in (("x", x), ("y", y)):
        sources[key].read_into(out)
    assert check_arrays("data", x, y) == 7
    print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_reading_and_checking_need_no_second_copy(tmp_path: Path, save: object, order: str) -> None:
    x = np.zeros((16_000, 1000), np.float32, order="F" if order == "F" else "C")  # 64 MB
    assert callable(save)
    save(tmp_path / "a.npz", x=x, y=np.arange(16_000) % 7)
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), str(tmp_path / "a.npz")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(found.stdout) < 30e6


def test_packed_arrays_much_longer_than_their_file(tmp_path: Path) -> None:
    """They are refused before they are read, all of a file together; what isn't used and small files are no matter."""
    path, zeros = tmp_path / "a.npz", np.zeros(5 << 20)  # 40 MiB
    np.savez_compressed(path, x=zeros, y=zeros)
    with pytest.raises(DataError, match=r"a\.npz: expected arrays of at most 100 times .* numpy\.savez"):
        open_npz(path, ["x", "y"])
    assert open_npz(path, ["x"])["x"].shape == zeros.shape
    np.savez(path, x=zeros, y=zeros)
    assert len(open_npz(path, ["x", "y"])) == 2
