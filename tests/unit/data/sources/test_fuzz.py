"""Damaged files give a DataError or an array of the promised shape: no other exception, no big allocation."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distsgd.core.errors import DataError
from distsgd.data.sources.arrays.idx import IdxSource
from distsgd.data.sources.base import ArraySource, read_array
from distsgd.data.sources.registry import open_path

X = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def npz(save: Callable[..., None]) -> bytes:
    stream = io.BytesIO()
    save(stream, x=X, y=np.array([0, 1]))
    return stream.getvalue()


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, X)
    return stream.getvalue()


def pairs(protocol: int) -> bytes:
    pair = (np.zeros((2, 3), np.float32), np.array([0, 1]))
    return pickle.dumps((pair, pair, pair), protocol=protocol)


IDX = b"\0\0\x08\x03" + struct.pack(">3I", 2, 3, 4) + X.tobytes()
FILES = {
    "idx": IDX,
    "idx.gz": gzip.compress(IDX, mtime=0),
    "npz": npz(np.savez),
    "deflated.npz": npz(np.savez_compressed),
    "x.npy": npy(),
    "0.pkl": pairs(0),
    "2.pkl": pairs(2),
    "4.pkl": pairs(4),
    "5.pkl": pairs(5),
    "pkl.gz": gzip.compress(pairs(4), mtime=0),
}


def sources(folder: Path, name: str, content: bytes) -> list[ArraySource]:
    path = folder / (name if name == "x.npy" else f"data.{name}")
    path.write_bytes(content)
    if name.startswith("idx"):
        return [IdxSource.open(path, 3)]
    if name == "x.npy":
        np.save(folder / "y.npy", [0, 1])
    return list(open_path(path).arrays.values())


def check(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, suppress(DataError):
        for source in sources(Path(folder), name, content):
            assert source.nbytes < 1_000_000
            assert read_array(source).shape == source.shape
            out = np.empty(source.shape, source.dtype)
            source.read_into(out)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_truncation_and_flipped_bits(name: str, data: st.DataObject) -> None:
    content = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    check(name, bytes(content[:end]))


@pytest.mark.parametrize("name", ["idx", "npz", "x.npy", "2.pkl", "4.pkl"])
def test_every_byte_set_to_extremes(name: str) -> None:
    content = FILES[name]
    step = max(1, len(content) // 60)
    for position in range(0, len(content), step):
        for value in (0, 255):
            check(name, content[:position] + bytes([value]) + content[position + 1 :])


def test_the_untouched_files_are_read() -> None:
    for name, content in FILES.items():
        with tempfile.TemporaryDirectory() as folder:
            assert sources(Path(folder), name, content)
