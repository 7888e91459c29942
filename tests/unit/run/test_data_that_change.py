"""Data that change while a run uses them end it; arrays in memory can't be changed while fit has them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd import Callback, fit
from distsgd.core.checkpoint_folder import find_checkpoint
from distsgd.core.errors import DataError, UserCodeError
from distsgd.run.trained.trained_model import Result
from tests.threads import run_on_threads

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


class At(Callback):
    """Does something after a step."""

    def __init__(self, step: int, does: Callable[[], None]) -> None:
        self.step, self.does = step, does

    def on_step(self, step: int, loss: float, examples: int) -> None:
        if step == self.step:
            self.does()


def write(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(1000)
        file.write(b"changed")
    os.utime(path)


def put_another_in_its_place(path: Path) -> None:
    np.save(path.with_name("new.npy"), X + 1)
    path.with_name("new.npy").replace(path)


@pytest.mark.parametrize("validation_fraction", [0.2, 0.0])
@pytest.mark.parametrize("change", [write, put_another_in_its_place])
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_mapped_file_that_changes_ends_the_run(
    tmp_path: Path, ranks: int, change: Callable[[Path], None], validation_fraction: float
) -> None:
    path, out = tmp_path / "x.npy", tmp_path / "run"
    np.save(path, X)
    os.utime(path, ns=(0, 0))
    x = np.load(path, mmap_mode="r")

    def one(communicator: Any) -> Result:
        return fit(
            "mlp", (x, Y), out=str(out), communicator=communicator, callbacks=[At(13, lambda: change(path))], epochs=5,
            batch_size=16, validation_fraction=validation_fraction, checkpoint_every="6",
        )  # fmt: skip

    with pytest.raises(DataError, match=r"x\.npy: .* start again"):
        run_on_threads(ranks, one)
    assert find_checkpoint(out, prefer="newest").document["step"] == 12


def test_a_file_that_is_only_read_is_no_change(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    reads = At(3, lambda: tmp_path.joinpath("x.npy").read_bytes().__len__() and None)
    assert fit("mlp", (x, Y), epochs=2, batch_size=16, callbacks=[reads]).summary["status"] == "completed"


def test_arrays_are_read_only_while_fit_has_them() -> None:
    x, y = X.copy(), Y.copy()

    def change() -> None:
        x[0] = 0

    with pytest.raises((UserCodeError, ValueError), match="read-only"):
        fit("mlp", (x, y), epochs=2, batch_size=16, callbacks=[At(2, change)])
    np.testing.assert_array_equal(x, X)
    x[0], y[0] = 0, 1  # afterwards they are as they were
    part, fixed = x[3:], X.copy()
    fixed.flags.writeable = False
    fit("mlp", (part, y[3:]), validation=(x, y), test=(fixed, y), epochs=1)
    part[0] = 1
    x[0] = 1
    assert not fixed.flags.writeable


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("which", ["x", "y", "weights", "validation x"])
def test_arrays_in_memory_that_change_end_the_run(tmp_path: Path, which: str, ranks: int) -> None:
    """A view can be written to. Of the end no checkpoint is saved."""
    whole = {"x": X.copy(), "y": Y.copy(), "weights": np.ones(80), "validation x": X.copy()}
    given, view = {name: array[:] for name, array in whole.items()}, whole[which][:]

    def change() -> None:
        view[5:50] += 1

    def one(communicator: Any) -> Result:
        return fit(
            "mlp", given["x"], given["y"], weights=given["weights"], validation=(given["validation x"], Y),
            out=str(tmp_path / "run"),
            callbacks=[At(7, change)], epochs=2, batch_size=16, communicator=communicator, checkpoint_every="6",
            loss="softmax-cross-entropy", classes="9",
        )  # fmt: skip

    with pytest.raises(DataError, match=r"the arrays were changed while it trained.* begin anew"):
        run_on_threads(ranks, one)
    assert find_checkpoint(tmp_path / "run", prefer="newest").document["step"] == 6
    if ranks == 1:  # among threads, the first that fails takes the barrier from the others
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"


def test_arrays_in_memory_beside_a_mapped_one_are_looked_at(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    x, whole = np.load(tmp_path / "x.npy", mmap_mode="r"), Y.copy()
    y, view = whole[:], whole[:]
    assert fit("mlp", (x, y), epochs=1, batch_size=16).summary["status"] == "completed"

    def change() -> None:
        view[:] = 1 - view

    with pytest.raises(DataError, match="the arrays were changed"):
        fit("mlp", (x, y), epochs=1, batch_size=16, callbacks=[At(2, change)])
