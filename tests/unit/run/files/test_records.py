"""What a run folder holds, and that it survives torn lines, bad bytes and full disks."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsgd.core.errors import OutputError, RunFolderError
from distsgd.run.files.folder import RunFolder
from distsgd.run.files.records import finite

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (NAN, None), (INF, None), (-INF, None), (0.1, 0.1), (3, 3), (True, True), (None, None), ("nan", "nan"),
        ([1.0, NAN], [1.0, None]), ((1, INF), [1, None]), ({"a": {"b": NAN}}, {"a": {"b": None}}),
    ],
)  # fmt: skip
def test_finite(value: Any, expected: Any) -> None:
    assert finite(value) == expected
    json.dumps(finite(value), allow_nan=False)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "deep" / "run")
    folder.create("seed = 3\n")
    return folder


def test_create(folder: RunFolder) -> None:
    assert (folder.path / "config.toml").read_text() == "seed = 3\n"
    assert folder.checkpoints.folder.is_dir()
    folder.write_summary({"status": "completed"})
    folder.create("seed = 4\n")
    folder.cut_metrics(0)
    assert folder.read_summary() is None, "a run that goes on isn't done"
    assert (folder.path / "config.toml").read_text() == "seed = 4\n"


def test_records_come_back(folder: RunFolder) -> None:
    wanted = [{"step": step, "loss": 1 / 3 + step, "name": "ü", "none": None} for step in range(5)]
    for record in wanted:
        folder.add_metrics(record)
    assert folder.read_metrics() == wanted
    assert len((folder.path / "metrics.jsonl").read_text().splitlines()) == 5


def test_not_a_number_is_null(folder: RunFolder) -> None:
    folder.add_metrics({"step": 1, "loss": NAN, "inside": {"norm": INF}})
    assert folder.metrics.read_text() == '{"step": 1, "loss": null, "inside": {"norm": null}}\n'


def test_cut(folder: RunFolder) -> None:
    for step in (3, 6, 6, 9):
        folder.add_metrics({"step": step, "x": 0.1})
    before = folder.metrics.read_bytes()
    folder.cut_metrics(9)
    assert folder.metrics.read_bytes() == before, "what stays keeps its bytes"
    folder.cut_metrics(6)
    assert [record["step"] for record in folder.read_metrics()] == [3, 6, 6]
    folder.cut_metrics(0)
    assert folder.metrics.read_bytes() == b""


@pytest.mark.parametrize(
    "torn",
    [b'{"step": 4, "lo', b"\0\0\0\0", b"\xff\xfe{", b"null\n", b"[1, 2]\n", b"\n\n", b'{"step": 4}{"step": 5}\n'],
)
def test_torn_lines_are_dropped(folder: RunFolder, torn: bytes) -> None:
    folder.add_metrics({"step": 2})
    with folder.metrics.open("ab") as file:
        file.write(torn)
    folder.cut_metrics(10)
    folder.add_metrics({"step": 5})
    assert folder.read_metrics() == [{"step": 2}, {"step": 5}]


@given(st.binary(max_size=60))
def test_any_bytes_can_be_read(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    folder.metrics.write_bytes(data)
    folder.summary.write_bytes(data)
    assert all(isinstance(record, dict) for record in folder.read_metrics())
    assert folder.read_summary() is None or isinstance(folder.read_summary(), dict)


def test_summary(folder: RunFolder) -> None:
    assert folder.read_summary() is None
    folder.write_summary({"status": "completed", "test_loss": NAN, "confusion_matrix": {"test": [[1, 0], [2, 3]]}})
    assert folder.read_summary() == {
        "status": "completed", "test_loss": None, "confusion_matrix": {"test": [[1, 0], [2, 3]]}}  # fmt: skip
    assert not list(folder.path.glob(".*tmp"))
    folder.summary.write_text('{"status": "comp')
    assert folder.read_summary() is None


def test_failure(folder: RunFolder) -> None:
    folder.write_failure("the loss is nan", 17)
    assert folder.read_summary() == {"status": "failed", "steps": 17, "error": "the loss is nan"}
    RunFolder(folder.path / "missing").write_failure("no folder to write to", 0)


def test_moving_aside(folder: RunFolder) -> None:
    (folder.path.with_name("run.1")).mkdir()
    folder.unlock()
    again = RunFolder(folder.path)
    assert again.create("seed = 4\n", anew=True) == folder.path.with_name("run.2")
    again.unlock()
    for name, text in (("run.2", "seed = 3\n"), ("run", "seed = 4\n")):
        assert (folder.path.with_name(name) / "config.toml").read_text() == text
        assert sorted(path.name for path in folder.path.with_name(name).iterdir()) == ["checkpoints", "config.toml"]


def test_nothing_is_moved_aside_where_there_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert RunFolder(tmp_path / "run").create("", anew=True) is None
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="choose another with --out"):
        RunFolder(tmp_path / "file" / "run").create("")
    missing = RunFolder(tmp_path / "missing")
    with pytest.raises(OutputError, match=r"could not write .*metrics\.jsonl"):
        missing.add_metrics({"step": 1})
    with pytest.raises(RunFolderError, match=r"could not write .*metrics\.jsonl"):
        missing.cut_metrics(1)
    with pytest.raises(OutputError, match=r"could not write .*summary\.json.*the same command finishes the run"):
        missing.write_summary({})


class FullDisk:
    """Takes so many bytes and no more, as a disk does: a part of what it is given, and then an error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, buffer: int) -> None:
        self.buffer, self.write = buffer, os.write
        monkeypatch.setattr(os, "write", self)

    def __call__(self, descriptor: int, data: bytes) -> int:
        if self.buffer == 0:
            raise OSError(28, "No space left on device")
        written = self.write(descriptor, data[: self.buffer])
        self.buffer -= written
        return written


@pytest.mark.parametrize("buffer", range(28))
def test_full_disk(folder: RunFolder, monkeypatch: pytest.MonkeyPatch, buffer: int) -> None:
    """What found no room is kept, to the byte, and goes before the next; no record is lost, torn or said twice."""
    disk = FullDisk(monkeypatch, buffer)
    written = buffer // len('{"step": 1}\n')
    for step in range(1, written + 1):
        folder.add_metrics({"step": step})
    for step in range(written + 1, 4):
        with pytest.raises(OutputError, match="No space left"):
            folder.add_metrics({"step": step})
    assert [record["step"] for record in folder.read_metrics()][:written] == list(range(1, written + 1))
    with pytest.raises(OutputError, match="No space left"):
        folder.sync_metrics()
    disk.buffer = 1000
    folder.add_metrics({"step": 4})
    folder.sync_metrics()
    assert [record["step"] for record in folder.read_metrics()] == [1, 2, 3, 4]
    assert len(folder.metrics.read_text().splitlines()) == 4


def test_syncing_nothing(folder: RunFolder) -> None:
    folder.sync_metrics()
    assert not folder.metrics.exists()


def test_a_folder_that_was_removed_is_made_again(folder: RunFolder) -> None:
    folder.add_metrics({"step": 1})
    assert folder.make_again() == "", "it is there"
    assert folder.read_metrics() == [{"step": 1}]
    shutil.rmtree(folder.path)
    assert "was removed; it is made anew" in folder.make_again()
    assert (folder.path / "config.toml").read_text() == "seed = 3\n"
    with pytest.raises(RunFolderError, match="another process is training"):
        RunFolder(folder.path).create("")
    folder.unlock()
