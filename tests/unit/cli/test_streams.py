"""Standard streams that can't be written, or were closed when the command began."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import distsgd
from tests.unit.project.test_structure import ROOT
from tests.waiting import LIMIT

TRAIN = ("--dataset", "d.npz", "--model", "softmax", "--epochs", "2", "--batch-size", "40")
FULL = Path("/dev/full")
NOISY = """
import os
import distsgd


class Noisy(distsgd.Callback):
    # What a library does that prints past Python.
    def on_step(self, step, loss, examples):
        for descriptor in (1, 2):
            os.write(descriptor, b"noise")
"""

COMMANDS = {
    "train": ("train", *TRAIN, "--out", "new"),
    "evaluate": ("evaluate", "run", "--dataset", "d.npz"),
    "predict": ("predict", "run", "x.npy", "-o", "out.npz"),
    "plot": ("plot", "run", "--only", "curves"),
    "compare": ("compare", "run"),
    "doctor": ("doctor",),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    x = np.random.default_rng(0).normal(size=(80, 3))
    y = (x[:, 0] > 0).astype(int)
    np.savez(folder / "d.npz", x=x, y=y)
    np.save(folder / "x.npy", x)
    (folder / "noisy.py").write_text(NOISY)
    distsgd.fit("softmax", (x, y), epochs=2, batch_size=40, out=str(folder / "run"))
    return folder


def run(folder: Path, arguments: Sequence[str], streams: str) -> subprocess.CompletedProcess[str]:
    """The command with its streams redirected as a shell does it."""
    line = ["sh", "-c", f'exec "$0" "$@" {streams}', sys.executable, "-m", "distsgd", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        COMMANDS["evaluate"],
        COMMANDS["predict"],
        *(
            pytest.param(arguments, marks=pytest.mark.long)
            for arguments in (
                ("--version",),
                ("launch", "--help"),
                COMMANDS["plot"],
                COMMANDS["compare"],
                COMMANDS["doctor"],
            )
        ),
    ],
)
def test_output_to_a_full_disk_fails_with_one_sentence(folder: Path, arguments: Sequence[str]) -> None:
    done = run(folder, arguments, ">/dev/full")
    errors = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert done.returncode == 1
    assert errors == ["distsgd: error: could not write to standard output: No space left on device; all else is done"]


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
def test_training_is_complete_where_its_output_is_not(folder: Path) -> None:
    assert run(folder, ("train", *TRAIN, "--out", "full"), ">/dev/full").returncode == 1
    assert json.loads((folder / "full" / "summary.json").read_text())["status"] == "completed"


@pytest.mark.parametrize(
    ("name", "streams"),
    [
        ("train", "<&- >&- 2>&-"),
        ("evaluate", "2>&-"),
        ("predict", "<&- >&-"),
        *(
            pytest.param(name, streams, marks=pytest.mark.long)
            for name in COMMANDS
            for streams in ("<&-", ">&-", "2>&-", "<&- >&-")
        ),
    ],
)
def test_streams_closed_at_start_work(folder: Path, name: str, streams: str) -> None:
    arguments = COMMANDS[name]
    if name == "train":
        new = f"new{streams.count('-')}{len(streams)}"
        arguments = (*COMMANDS[name][:-1], new, "--callback", "noisy.py:Noisy")
    done = run(folder, arguments, streams)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or name == "doctor"
    if name == "train":
        summary, usual = (json.loads((folder / out / "summary.json").read_text()) for out in (new, "run"))
        assert summary["status"] == "completed"
        for path in (folder / new).rglob("*.*"):
            assert b"noise" not in path.read_bytes()
        assert summary["parameters"] == usual["parameters"]
        assert run(folder, ("evaluate", new, "--dataset", "d.npz"), "").returncode == 0
        lines = (folder / new / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [2, 4]


def test_a_reader_that_has_seen_enough_is_no_error(folder: Path) -> None:
    done = run(folder, COMMANDS["evaluate"], "| head -c 1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "{", "")
