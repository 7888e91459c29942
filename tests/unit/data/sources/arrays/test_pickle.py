"""mnist.pkl.gz: plain arrays of every pickle protocol and of Python 2 are read; nothing else is, and nothing runs."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd.core.device import Array
from distsgd.core.errors import DataError
from distsgd.data.named.datasets import open_dataset, read_array
from distsgd.data.sources.arrays.pickled import open_pickle
from distsgd.data.sources.base import DataSource

X = np.linspace(0, 1, 60, dtype=np.float32).reshape(6, 10)
Y = np.array([0, 1, 2, 250, 254, 255])
PAIRS = ((X, Y), (X[:3] * 2, Y[:3]), (np.asfortranarray(X[1:]), Y[1:].astype(">i4")))


def written(folder: Path, content: bytes, packed: bool = True) -> Path:
    path = folder / ("mnist.pkl.gz" if packed else "mnist.pkl")
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


def check_pairs(source: DataSource) -> None:
    for split, (x, y) in zip(("train", "validation", "test"), PAIRS, strict=True):
        np.testing.assert_array_equal(read_array(source.arrays[f"x_{split}"]), x, strict=True)
        np.testing.assert_array_equal(read_array(source.arrays[f"y_{split}"]), y.astype(np.int64), strict=True)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol(tmp_path: Path, protocol: int) -> None:
    for packed in (True, False):
        path = written(tmp_path, pickle.dumps(PAIRS, protocol), packed)
        source = open_dataset(str(path))
        copy = pickle.dumps(source)
        assert len(copy) < 5_000  # the arrays don't travel
        check_pairs(source)
        check_pairs(source)  # taken twice: read again
        check_pairs(pickle.loads(copy))


def test_older_module_names(tmp_path: Path) -> None:
    content = pickle.dumps(PAIRS, 2)
    assert b"numpy._core.multiarray" in content or b"numpy.core.multiarray" in content
    for module in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        other = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        check_pairs(open_pickle(written(tmp_path, other.replace(b"numpy.core.multiarray", module))))


def python2_binary(array: Array) -> bytes:
    """What Python 2's cPickle wrote for an array with protocol 2: byte strings, not text."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    raw = array.tobytes()
    kind, order = array.dtype.str[1:].encode(), array.dtype.str[:1].encode()
    shape = b"".join(b"J" + struct.pack("<i", n) for n in array.shape)
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        + text(b"b")
        + b"\x87R(K\x01("
        + shape
        + b"t"
        b"cnumpy\ndtype\n"
        + text(kind)
        + b"K\x00K\x01\x87R(K\x03"
        + text(order)
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )


def python2_text(array: Array) -> bytes:
    """The same with protocol 0: strings as Python 2's repr, numbers in decimal."""
    raw = repr(array.tobytes())[1:].encode()
    kind, order = array.dtype.str[1:].encode(), array.dtype.str[:1].encode()
    shape = b"".join(b"I%d\n" % n for n in array.shape)
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(" + shape + b"t"
        b"cnumpy\ndtype\n(S'" + kind + b"'\nI0\nI1\ntR(I3\nS'" + order + b"'\nNNNI-1\nI-1\nI0\ntb"
        b"I00\nS" + raw + b"\ntb"
    )


@pytest.mark.parametrize(
    ("start", "array_bytes"), [(b"\x80\x02", python2_binary), (b"", python2_text)], ids=["protocol 2", "protocol 0"]
)
def test_pickles_of_python_2(tmp_path: Path, start: bytes, array_bytes: Callable[[Array], bytes]) -> None:
    pairs = [(np.ascontiguousarray(x), y) for x, y in PAIRS]
    body = b"".join(b"(" + array_bytes(x) + array_bytes(y) + b"t" for x, y in pairs)
    check_pairs(open_pickle(written(tmp_path, start + b"(" + body + b"t.")))


class Attack:
    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def forbidden(path: Path) -> dict[str, tuple[Any, str]]:
    command = f"touch {path}"
    return {
        "system": (Attack(os.system, command), "posix.system|nt.system"),
        "eval": (Attack(eval, f"open({str(path)!r}, 'w')"), "builtins.eval|__builtin__.eval"),
        "nested": (((X, Attack(os.system, command)), (X, Y), (X, Y)), "system"),
        "in an array": (np.array([Attack(os.system, command)], dtype=object), "system|object|O8"),
        "load": (Attack(np.load, "x.npy"), "numpy.*load"),
        "getattr": (Attack(getattr, np, "load"), "getattr"),
        "dict": ({"x": X}, "another structure"),
        "scalar": (np.float64(1), "scalar"),
    }


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", forbidden(Path("x")))
def test_attacks_are_refused_and_nothing_runs(tmp_path: Path, name: str, protocol: int) -> None:
    witness = tmp_path / "executed"
    value, message = forbidden(witness)[name]
    if name == "getattr":  # modules can't be pickled
        value = Attack(getattr, "text", "upper")
    path = written(tmp_path, pickle.dumps(value, protocol))
    with pytest.raises(DataError, match=message) as caught:
        open_pickle(path)
    assert not witness.exists()
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


RAW_ATTACKS = {
    "old-style instance": b"(S'touch x'\nios\nsystem\n.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent": b"Pname\n.",
    "huge memo index": b"\x80\x02Nr\xff\xff\xff\xff.",
    "huge bytes": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0f.",
    "huge bytearray": b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x0f.",
    "huge frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x0f.",
    "huge text": b"\x80\x02X\xff\xff\xff\xff.",
    "attributes of ours": b"cnumpy\ndtype\n(NNtb.",
    "huge array": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I1000000000000\ntS'b'\ntR.",
    "call of ndarray": b"cnumpy\nndarray\n((I1000000000000\nttR.",
    "dtype of a record": b"cnumpy\ndtype\n(S'f4,O'\nI0\nI1\ntR.",
    "name without end": b"c" + b"a" * 10_000,
    "number of a million digits": b"I" + b"9" * 1_000_000 + b"\n.",
    "empty": b"",
    "only a stop": b".",
    "none": b"N.",
}


@pytest.mark.parametrize("name", RAW_ATTACKS)
def test_raw_attacks(tmp_path: Path, name: str) -> None:
    for packed in (True, False):
        with pytest.raises(DataError) as caught:
            open_pickle(written(tmp_path, RAW_ATTACKS[name], packed))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a pickle"):
        open_pickle(written(tmp_path, b"\x80\x02" + b")" + b"\x85" * 100_000 + b"."))


def test_other_structures_and_damage(tmp_path: Path) -> None:
    for value in ((X, Y), (PAIRS[0], PAIRS[1]), ((X, Y, Y),) * 3, X):
        with pytest.raises(DataError, match="another structure"):
            open_pickle(written(tmp_path, pickle.dumps(value)))
    path = written(tmp_path, pickle.dumps(PAIRS))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(DataError):
        open_pickle(path)
    damaged = bytearray(whole)
    damaged[-6] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="CRC"):
        open_pickle(path)
    with pytest.raises(DataError, match="found none"):
        open_pickle(tmp_path / "none.pkl.gz")


@pytest.mark.parametrize("features", [784, 783])
def test_rows_of_784_numbers_are_images(tmp_path: Path, features: int) -> None:
    x = np.arange(3 * features, dtype=np.float32).reshape(3, features)
    for order in "<>":
        pairs = [(x.astype(f"{order}f4"), Y[:3])] * 3
        source = open_pickle(written(tmp_path, pickle.dumps(pairs)))
        for split in ("train", "validation", "test"):
            shape = (3, 28, 28) if features == 784 else (3, 783)
            np.testing.assert_array_equal(read_array(source.arrays[f"x_{split}"]), x.reshape(shape), strict=True)


def test_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distsgd.data.sources.arrays.pickled.SIZE_LIMIT", 400)
    for protocol in (0, 2, 4, 5):
        with pytest.raises(DataError, match="at most 400 bytes"):
            open_pickle(written(tmp_path, pickle.dumps(PAIRS, protocol)))


def test_file_that_changed(tmp_path: Path) -> None:
    source = pickle.loads(pickle.dumps(open_pickle(written(tmp_path, pickle.dumps(PAIRS)))))
    written(tmp_path, pickle.dumps((PAIRS[1], PAIRS[1], PAIRS[1])))
    with pytest.raises(DataError, match="the file changed"):
        read_array(source.arrays["x_train"])
