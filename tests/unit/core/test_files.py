"""Stamps of mapped files: what is noticed when a file changes while it is in use; the folder of downloads; and folders
in which files are made before they take a place."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distsgd.core.errors import DataError
from distsgd.core.files import FileStamp, cache_folder, folder_beside, mapped_files
from tests.waiting import LIMIT

X = np.arange(4096.0)


def write(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(1000)
        file.write(b"x")


def replace(path: Path) -> None:
    np.save(path.with_name("other.npy"), X)
    os.replace(path.with_name("other.npy"), path)


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (write, "it was written to"),
        (lambda path: os.truncate(path, 1000), "it has 1000 bytes"),
        (replace, "another file has its name"),
        (Path.unlink, "it is gone"),
    ],
)
def test_a_mapped_file_that_changes(tmp_path: Path, change: Callable[[Path], None], reported: str) -> None:
    path = tmp_path / "x.npy"
    np.save(path, X)
    os.utime(path, ns=(0, 0))
    mapped = np.load(path, mmap_mode="r")
    (stamp,) = mapped_files([np.asarray(mapped).reshape(64, 64)[3:], X, None, mapped])
    stamp.check()
    change(path)
    with pytest.raises(DataError, match=reported):
        stamp.check()


def test_arrays_in_memory_have_no_file() -> None:
    assert mapped_files([X, X[3:], None]) == []


def test_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/distsgd")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_folder() == Path("/home/someone/.cache/distsgd")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == Path("/home/someone/Library/Caches/distsgd")
    assert cache_folder("~/data") == Path("/home/someone/data")


def test_a_stamp_that_is_sent_is_of_the_file_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    sent = pickle.dumps(FileStamp.of(str(path)))
    assert pickle.loads(sent) == FileStamp.of(str(path))
    path.write_bytes(b"a copy of other length")
    pickle.loads(sent).check()
    path.unlink()
    with pytest.raises(DataError, match="gone"):
        pickle.loads(sent).check()


HOLDS = """
import sys
from pathlib import Path
from distsgd.core.files import folder_beside

with folder_beside(Path(sys.argv[1])) as part:
    (part / "half").write_text("half")
    print(part, flush=True)
    sys.stdin.read()
"""


def test_folders_that_killed_processes_left_go_and_others_stay(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    line = [sys.executable, "-c", HOLDS, str(out)]
    (tmp_path / ".out.csv.notes").mkdir()
    with (
        subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as killed,
        subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as living,
    ):
        assert killed.stdout is not None
        assert living.stdout is not None
        left, used = (Path(process.stdout.readline().strip()) for process in (killed, living))  # type: ignore[union-attr]
        killed.kill()
        killed.wait(LIMIT)
        assert (left / "half").exists()
        assert (used / "half").exists()
        with folder_beside(out) as part:
            assert part.parent == tmp_path
            assert not any(part.iterdir())
            assert not left.exists()
            assert (used / "half").exists()
        living.communicate(timeout=LIMIT)
    assert [path.name for path in tmp_path.iterdir()] == [".out.csv.notes"]
