"""A ~ that no shell has replaced, as in quotes, in a file or in Python: it stands for the home in every path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distsgd import fit

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


def run(home: Path, module: str, *arguments: str) -> str:
    folder = home / "elsewhere"
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", f"distsgd.{module}", *arguments], cwd=folder, env={**os.environ, "HOME": str(home)},
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert list(folder.iterdir()) == [], "nothing is written into a folder that is called ~"
    return done.stdout


def test_every_command_takes_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    (tmp_path / "run.toml").write_text('dataset = "~/d.npz"\nmodel = "softmax"\nepochs = 1\nquiet = true\n')
    run(tmp_path, "train", "--config", "~/run.toml", "--out", "~/run")
    scores = json.loads(run(tmp_path, "evaluate", "~/run", "--dataset", "~/d.npz", "--split", "all"))
    assert scores["examples"] == 60
    run(tmp_path, "predict", "~/run", "~/d.npz", "-o", "~/o.npz")
    assert (tmp_path / "o.npz").is_file()
    more = ("--epochs", "2", "--resume", "~/run")
    run(tmp_path, "train", "--config", "~/run.toml", "--out", "~/more", *more)
    assert json.loads((tmp_path / "more" / "summary.json").read_text())["epochs"] == 2


def test_a_program_may_give_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    first = fit("softmax", (X, Y), epochs=2, out="~/a")
    still = fit("softmax", (X, Y), epochs=1, learning_rate=0.0, init_from="~/a")
    assert np.array_equal(first.params["dense1.weight"], still.params["dense1.weight"])


def test_pictures_are_drawn_into_it(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    run(tmp_path, "train", "--dataset", "~/d.npz", "--epochs", "1", "--quiet", "--out", "~/run")
    run(tmp_path, "plot", "~/run", "--only", "curves", "--out", "~/plots")
    assert (tmp_path / "plots" / "curves.png").is_file()
