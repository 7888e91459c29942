"""A checkpoint comes back as it was, or is refused: every flipped bit and every cut are found before it is parsed."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from distsgd.core import checkpoint as module
from distsgd.core.checkpoint import Checkpoint, decode, encode
from distsgd.core.checkpoint_folder import CheckpointFolder, read_checkpoint
from distsgd.core.errors import CheckpointError
from distsgd.core.folders import Folder, write_atomically

SMALL = Checkpoint(
    {"parameters/w": np.array([[1.5, -0.0], [np.pi, 3e-42]], np.float32), "optimizer/velocity/w": np.arange(3.0)},
    {"step": 12, "loss_sum": 0.1, "best": {"validation_loss": 1 / 3, "step": 8}, "rule": None, "name": "ü"},
)
DATA = bytes(encode(SMALL))

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(max_size=5),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=4), inside, max_size=3),
    max_leaves=10,
)


KEYS = {"format", "sha256", "step"}
"""Whose values mean something to a reader."""


def same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return a.hex() == b.hex() or (math.isnan(a) and math.isnan(b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) and type(a) is type(b)


@given(
    document=st.dictionaries(st.text(max_size=6).filter(lambda name: name not in KEYS), values),
    shapes=st.dictionaries(st.text("abc/.", min_size=1, max_size=5), st.lists(st.integers(0, 3), max_size=3)),
    dtype=st.sampled_from(["float32", "float64", "int64"]),
)
def test_round_trip(document: dict[str, Any], shapes: dict[str, list[int]], dtype: str) -> None:
    arrays = {name: np.full(shape, 7, dtype) for name, shape in shapes.items()}
    found = decode(encode(Checkpoint(arrays, document)))
    assert same({key: found.document[key] for key in document}, document)
    assert found.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found.arrays[name].dtype == array.dtype
        assert found.arrays[name].shape == array.shape
        assert found.arrays[name].tobytes() == array.tobytes()


def test_bits_and_views() -> None:
    found = decode(DATA)
    assert found.arrays["parameters/w"].tobytes() == SMALL.arrays["parameters/w"].tobytes()
    assert found.group("parameters").keys() == {"w"}
    assert found.group("optimizer/velocity").keys() == {"w"}
    assert found.document["best"] == SMALL.document["best"]
    columns = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    assert np.array_equal(decode(encode(Checkpoint({"w": columns}))).arrays["w"], columns)


def test_equal_checkpoints_are_equal_files() -> None:
    assert bytes(encode(SMALL)) == DATA


def test_every_flipped_bit_is_found() -> None:
    for position in range(len(DATA)):
        for bit in range(8):
            damaged = bytearray(DATA)
            damaged[position] ^= 1 << bit
            with pytest.raises(CheckpointError):
                decode(damaged)


def test_every_cut_is_found() -> None:
    for length in range(len(DATA)):
        with pytest.raises(CheckpointError):
            decode(DATA[:length])


@pytest.mark.parametrize("more", [b"\0", b"\0" * 8, DATA])
def test_more_than_was_written_is_found(more: bytes) -> None:
    with pytest.raises(CheckpointError):
        decode(DATA + more)


@given(st.binary(max_size=300))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError):
        decode(data)


def test_nothing_is_parsed_before_the_digest_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError("parsed a damaged file")

    damaged = bytearray(DATA)
    damaged[-1] ^= 1
    monkeypatch.setattr(module.json, "loads", never)
    with pytest.raises(CheckpointError, match="sha256"):
        decode(damaged)


def test_huge_header_is_refused_at_once() -> None:
    with pytest.raises(CheckpointError, match="shorter than its header says"):
        decode(b"\xff" * 8 + DATA[8:])


def test_foreign_files(tmp_path: Path) -> None:
    save_file({"w": np.zeros(3)}, tmp_path / "foreign.safetensors")
    save_file({"w": np.zeros(3)}, tmp_path / "named.safetensors", metadata={"distsgd": "{}", "format": "pt"})
    for path in tmp_path.iterdir():
        with pytest.raises(CheckpointError, match=rf"{path.name}: not a checkpoint of distsgd"):
            read_checkpoint(path)


def test_another_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FORMAT", 1)
    data = encode(SMALL)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format 1, this version reads format 2"):
        decode(data)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(DATA)
    assert read_checkpoint(path).document["step"] == 12
    with pytest.raises(CheckpointError, match=r"could not read .*missing"):
        read_checkpoint(tmp_path / "missing")


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*arguments: Any, **keywords: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new and longer")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_written_files_have_ordinary_permissions(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"")
    (tmp_path / "ordinary").touch()
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)


def at_step(step: int) -> Checkpoint:
    return Checkpoint({"w": np.full(3, float(step))}, {"step": step})


def names(folder: CheckpointFolder) -> set[str]:
    return {path.name for path in folder.folder.iterdir()}


def newest_step(folder: CheckpointFolder) -> int | None:
    found, _ = folder.newest()
    return None if found is None else found.document["step"]


def test_folder_keeps_the_newest(tmp_path: Path) -> None:
    folder = CheckpointFolder(Folder(tmp_path / "checkpoints"), keep=2)
    assert not folder.exists()
    assert folder.newest() == (None, [])
    for step in (5, 9, 10, 100):
        folder.save(at_step(step), step)
        assert newest_step(folder) == step
        assert read_checkpoint(folder.folder / "last.safetensors").document["step"] == step
    folder.save_best(at_step(9))
    assert names(folder) == {"step-10.safetensors", "step-100.safetensors", "last.safetensors", "best.safetensors"}
    assert folder.exists()


def test_going_back_drops_what_was_ahead(tmp_path: Path) -> None:
    folder = CheckpointFolder(Folder(tmp_path), keep=2)
    for step in (10, 20, 30, 12):
        folder.save(at_step(step), step)
    assert names(folder) == {"step-20.safetensors", "step-12.safetensors", "last.safetensors"} - {"step-20.safetensors"}
    assert newest_step(folder) == 12


def test_saving_the_same_step_again(tmp_path: Path) -> None:
    folder = CheckpointFolder(Folder(tmp_path))
    for value in (1.0, 2.0):
        folder.save(Checkpoint({"w": np.array([value])}, {"step": 4}), 4)
    assert read_checkpoint(tmp_path / "last.safetensors").arrays["w"] == 2.0
    assert read_checkpoint(tmp_path / "step-4.safetensors").arrays["w"] == 2.0


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_damaged_newest(tmp_path: Path) -> None:
    folder = CheckpointFolder(Folder(tmp_path))
    for step in (1, 2, 3):
        folder.save(at_step(step), step)
    damage(tmp_path / "step-3.safetensors")  # and last, the same file
    found, problems = folder.newest()
    assert found is not None
    assert found.document["step"] == 2
    assert len(problems) == 1
    assert "step-3.safetensors: damaged" in problems[0]
    damage(tmp_path / "step-2.safetensors")
    assert newest_step(folder) == 1
    damage(tmp_path / "step-1.safetensors")
    found, problems = folder.newest()
    assert found is None
    assert len(problems) == 3


def test_last_alone(tmp_path: Path) -> None:
    folder = CheckpointFolder(Folder(tmp_path))
    folder.save(at_step(7), 7)
    (tmp_path / "step-7.safetensors").unlink()
    assert newest_step(folder) == 7


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    folder = CheckpointFolder(Folder(tmp_path), keep=1)
    for step in (1, 2):
        folder.save(at_step(step), step)
    assert names(folder) == {"step-2.safetensors", "last.safetensors"}
    damage(tmp_path / "step-2.safetensors")
    assert newest_step(folder) == 2


def test_other_files_in_the_folder_do_not_matter(tmp_path: Path) -> None:
    folder = CheckpointFolder(Folder(tmp_path), keep=1)
    for name in ("step-x.safetensors", "step-.safetensors", "notes.txt", ".step-9.safetensors.tmp"):
        (tmp_path / name).write_text("hello")
    folder.save(at_step(3), 3)
    assert newest_step(folder) == 3
    assert json.dumps(sorted(names(folder))).count("step-x") == 1
