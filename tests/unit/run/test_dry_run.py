"""A dry run refuses what the run itself would refuse, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from distsgd import CheckpointError, ConfigurationError, RunFolderError
from distsgd.cli.command_line import load_config
from distsgd.cli.train import Signals, train
from distsgd.parallel.serial import SerialCommunicator

RUN = ["--dataset", "moons", "--model", "softmax", "--epochs", "1", "--quiet"]


def started(*arguments: str) -> int:
    return train(SerialCommunicator(), [*RUN, *arguments], Signals())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    assert started("--out", str(tmp_path / "run")) == 0
    return tmp_path / "run"


def test_a_checkpoint_that_is_not_there_is_refused(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "new"), "--dry-run"]
    with pytest.raises((CheckpointError, ConfigurationError), match="nope"):
        started(*out, "--resume", str(tmp_path / "nope"))
    with pytest.raises((CheckpointError, ConfigurationError), match="nope"):
        started(*out, "--init-from", str(tmp_path / "nope"))
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_configuration_is_refused(run: Path) -> None:
    with pytest.raises(RunFolderError, match="seed is 0 there, 1 here"):
        started("--out", str(run.parent / "new"), "--dry-run", "--seed", "1", "--resume", str(run))


def test_a_checkpoint_that_is_there_is_accepted(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    for resume in ("auto", "never", str(run), str(run / "checkpoints" / "last.safetensors")):
        assert started("--out", str(run.parent / "new"), "--dry-run", "--resume", resume) == 0
    assert started("--out", str(run), "--dry-run", "--resume", str(run)) == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert [path.name for path in run.parent.iterdir()] == ["run"]
    assert load_config(RUN).resume == "auto"
