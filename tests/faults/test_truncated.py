"""A file that is mapped while it gets shorter: a read behind its end is a signal, and the user gets a sentence."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.parallel.launch import module, run_command

CUT = """
import os
import distsgd

class Cut(distsgd.Callback):
    def on_step(self, step, loss, examples):
        if step == 7:
            os.truncate("x.npy", 5000)
"""
TRAIN = (
    "--dataset", "x.npy", "--model", "softmax", "--epochs", "100000", "--batch-size", "500", "--quiet",
    "--validation-fraction", "0", "--callback", "cut.py:Cut", "--out", "run",
)  # fmt: skip
FIT = (
    CUT
    + """
import signal
import sys
import numpy as np
x = np.load("x.npy", mmap_mode="r")
y = np.load("y.npy")
callbacks = [Cut()] if "cut" in sys.argv else []
result = distsgd.fit("softmax", (x, y), epochs=2, batch_size=500, callbacks=callbacks)
os.kill(os.getpid(), signal.SIGBUS)
"""
)
SENTENCE = "x.npy: expected the 5120128 bytes that were there at the start, it has 5000 bytes now; "


@pytest.fixture
def data(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", random.random((20_000, 64), np.float32))
    np.save(tmp_path / "y.npy", random.integers(0, 10, 20_000))
    (tmp_path / "cut.py").write_text(CUT)
    return tmp_path


@pytest.mark.parametrize("ranks", [None, 3])
def test_a_mapped_file_that_gets_shorter_ends_training_with_a_sentence(data: Path, ranks: int | None) -> None:
    done = module(ranks, "train", data, *TRAIN)
    assert done.status == 2, done.text
    assert "Fatal Python error" not in done.err
    assert done.err.count("distsgd: error: ") == 1
    assert SENTENCE in done.err
    assert (
        not (data / "run" / "summary.json").exists() or "completed" not in (data / "run" / "summary.json").read_text()
    )


def test_the_launcher_does_not_start_it_again(data: Path) -> None:
    done = module(None, "launch", data, "-n", "2", "--", *TRAIN)
    assert done.status == 2, done.text
    assert SENTENCE in done.err
    assert "restart" not in done.err


def test_in_fit_too(data: Path) -> None:
    (data / "fit.py").write_text(FIT)
    cut = run_command(None, [sys.executable, "fit.py", "cut"], data)
    assert (cut.status, cut.err.count("distsgd: error: ")) == (2, 1), cut.text
    assert SENTENCE in cut.err


def test_after_fit_the_signal_is_what_it_was_before(data: Path) -> None:
    (data / "fit.py").write_text(FIT)
    whole = run_command(None, [sys.executable, "fit.py"], data)
    assert whole.status == -signal.SIGBUS, whole.text
    assert "distsgd: error" not in whole.err
