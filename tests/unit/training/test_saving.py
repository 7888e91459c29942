"""When checkpoints are made and what of them is written, on thread ranks."""

from __future__ import annotations

import errno
import functools
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd.core.checkpoint import Checkpoint
from distsgd.core.checkpoint_folder import CheckpointFolder
from distsgd.core.errors import CheckpointError
from distsgd.core.random import normal
from distsgd.run.files import folder_writer
from distsgd.run.files.background import BackgroundWriter
from distsgd.run.files.folder import RunFolder
from distsgd.run.files.folder_writer import FolderWriter
from distsgd.run.fit import fit
from distsgd.run.trained.trained_model import Result
from distsgd.training.callbacks import Callback
from tests.threads import run_on_threads

X = normal((64, 6), 1, "x").astype(np.float32)
LABELS = np.arange(64) % 3


def train(size: int = 1, **options: Any) -> Result:
    settings = {"epochs": 3, "batch_size": 8, "validation_fraction": 0.0, **options}
    return run_on_threads(
        size, lambda communicator: fit("softmax", (X, LABELS), communicator=communicator, **settings)
    )[0]


class Saving(Callback):
    """A store that keeps nothing, and is busy for so many looks after each checkpoint."""

    def __init__(self, looks: int = 0) -> None:
        self.looks, self.left = looks, 0
        self.steps: list[int] = []

    def busy(self, patience: float) -> bool:
        if patience:
            self.left = 0  # waited for
        self.left -= 1
        return self.left >= 0

    def save(self, checkpoint: Checkpoint, best: Checkpoint, step: int, final: bool) -> None:
        self.steps.append(step)
        self.left = self.looks

    def go_back(self, step: int) -> Checkpoint | None:
        return None


def train_into(store: Saving, folder: Path, monkeypatch: pytest.MonkeyPatch, size: int = 1, **options: Any) -> Result:
    """With this store in place of the writer of the folder."""
    monkeypatch.setattr(folder_writer, "FolderWriter", lambda folder: store)
    return train(size, out=str(folder), **options)


@pytest.mark.parametrize("size", [1, 3])
def test_by_the_clock_no_rank_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """One that is due is made in the first step after which the one before is written."""
    saving = Saving(looks=3)
    train_into(saving, tmp_path, monkeypatch, size, max_steps=13, checkpoint_every="0.000000001s")
    assert saving.steps == [1, 5, 9, 13, 13]


@pytest.mark.parametrize("size", [1, 3])
def test_by_steps_each_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    saving = Saving(looks=1000)
    train_into(saving, tmp_path, monkeypatch, size, max_steps=13, checkpoint_every="4")
    assert saving.steps == [4, 8, 12, 13]


@pytest.mark.parametrize("method", ["busy", "save"])
def test_a_store_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    def broken(self: Saving, *arguments: Any) -> None:
        raise IndexError("in the store")

    monkeypatch.setattr(Saving, method, broken)
    with pytest.raises(IndexError, match=r"(?s)in the store.*saving a checkpoint failed at step 3"):
        train_into(Saving(), tmp_path, monkeypatch, 2, checkpoint_every="3")


def test_what_a_store_gets_holds_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Keep(Saving):
        def __init__(self) -> None:
            super().__init__()
            self.kept: list[tuple[Checkpoint, dict[str, bytes]]] = []

        def save(self, checkpoint: Checkpoint, best: Checkpoint, step: int, final: bool) -> None:
            both = {**checkpoint.arrays, **{f"best: {name}": array for name, array in best.arrays.items()}}
            self.kept.append((Checkpoint(both), {name: array.tobytes() for name, array in both.items()}))

    for size in (1, 3):
        keep = Keep()
        options = {"checkpoint_every": "1", "validation_fraction": 0.2, "validate_every": "2", "optimizer": "adam"}
        train_into(keep, tmp_path / str(size), monkeypatch, size, **options)
        assert len(keep.kept) > 10
        for checkpoint, before in keep.kept:
            assert {name: array.tobytes() for name, array in checkpoint.arrays.items()} == before


def test_one_that_hangs_is_not_waited_for_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    released, save = threading.Event(), CheckpointFolder.save

    def hang(self: CheckpointFolder, checkpoint: Checkpoint, step: int) -> None:
        if step == 2:
            released.wait(10)
        save(self, checkpoint, step)

    class Release(Callback):
        def on_step(self, step: int, loss: float, examples: int) -> None:
            if step == 15:
                released.set()

    monkeypatch.setattr(CheckpointFolder, "save", hang)
    monkeypatch.setattr("distsgd.training.checkpoint_store.PATIENCE", 0.05)
    train(callbacks=[Release()], out=str(tmp_path / "run"), checkpoint_every="2", keep=100)
    printed = capsys.readouterr().err.splitlines()
    assert printed == ["warning: the checkpoint of step 2 is still being written after 0.05 s; others are skipped"]
    steps = sorted(int(path.stem[5:]) for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert steps[0] == 2
    assert not {4, 6, 8, 10, 12, 14} & set(steps)
    assert steps[-1] == 24


def test_the_best_is_written_where_it_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    save_best = CheckpointFolder.save_best

    def watch(self: CheckpointFolder, checkpoint: Checkpoint) -> None:
        written.append(checkpoint.document["step"])
        save_best(self, checkpoint)

    monkeypatch.setattr(CheckpointFolder, "save_best", watch)
    options = {"validation": (X, LABELS), "validate_every": "8", "learning_rate": 0.0, "checkpoint_every": "3"}
    train(out=str(tmp_path / "run"), **options)
    # Until the first validation the newest parameters are what the run would return; then it is always step 8.
    assert written == [3, 6, 8]


def fail(error: Exception) -> None:
    raise error


def job(step: int) -> tuple[Checkpoint, Checkpoint, int]:
    whole = Checkpoint({"w": np.full(3, float(step))}, {"step": step})
    return whole, Checkpoint({"w": whole.arrays["w"]}, {"step": step, "best": None}), step


@pytest.fixture
def writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderWriter:
    monkeypatch.setattr(folder_writer, "BackgroundWriter", functools.partial(BackgroundWriter, first_pause=0.01))
    folder = RunFolder(tmp_path / "run")
    folder.create("")
    return FolderWriter(folder)


def test_records_go_first(writer: FolderWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """No checkpoint while records before it can't be written: a run that continues from it would lack them."""
    open_own = writer.folder.files.open_own

    def full(name: str, *arguments: Any) -> Any:
        if name == "metrics.jsonl":
            raise OSError(errno.ENOSPC, "full")
        return open_own(name, *arguments)

    monkeypatch.setattr(writer.folder.files, "open_own", full)
    writer.on_record({"step": 1})
    with pytest.raises(CheckpointError, match=r"full.*, tried several times; there is no checkpoint yet; put"):
        writer.save(*job(1), final=True)
    assert not writer.folder.checkpoints.exists()
    monkeypatch.undo()
    writer.save(*job(2), final=True)
    assert [record["step"] for record in writer.folder.read_metrics()] == [1]
    assert writer.go_back(5).document["step"] == 2  # type: ignore[union-attr]
    writer.close()


def test_a_record_that_finds_no_space_is_reported_once(
    writer: FolderWriter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as full:
        full.setattr("os.write", lambda *_: fail(OSError(28, "No space left on device")))
        for step in (1, 2, 3):
            writer.on_record({"step": step})
    writer.on_record({"step": 4})
    (printed,) = capsys.readouterr().err.splitlines()
    assert printed.endswith("metrics.jsonl: No space left on device; it is kept, and tried again")
    assert [record["step"] for record in writer.folder.read_metrics()] == [1, 2, 3, 4]
    writer.close()


def test_removed_while_it_runs(writer: FolderWriter) -> None:
    writer.save(*job(1), final=False)
    writer.busy(10)
    shutil.rmtree(writer.folder.path)
    writer.save(*job(2), final=True)
    assert writer.folder.checkpoints.newest()[0].document["step"] == 2  # type: ignore[union-attr]
    writer.close()


def test_going_back_forgets_what_was_written(writer: FolderWriter) -> None:
    for step in (1, 2):
        writer.on_record({"step": step})
        writer.save(*job(step), final=False)
        assert not writer.busy(10)
    assert writer.go_back(1).document["step"] == 1  # type: ignore[union-attr]
    writer.on_rollback(1)
    assert [record["step"] for record in writer.folder.read_metrics()] == [1]
    writer.save(*job(2), final=True)
    assert writer.folder.checkpoints.newest()[0].document["step"] == 2  # type: ignore[union-attr]
    writer.close()
