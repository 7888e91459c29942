"""distsgd predict RUN RUN … INPUT: the mean and the spread of several runs, on any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd.cli.predict import predict
from distsgd.core.errors import ConfigurationError
from distsgd.core.random import normal
from distsgd.parallel.serial import SerialCommunicator
from tests.threads import run_on_threads

X = normal((1300, 4), 1, "x").astype(np.float32)
LABELS = (X[:, 0] > 0).astype(np.int64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    np.save(folder / "x.npy", X)
    for seed in (1, 2):
        options: dict[str, Any] = {"seed": seed, "hidden": (8,), "epochs": 1, "classes": ("no", "yes")}
        distsgd.fit("mlp", X, LABELS, out=str(folder / f"run{seed}"), **options)
    distsgd.fit("mlp", X, X[:, :1], epochs=1, out=str(folder / "values"))
    return folder


@pytest.mark.parametrize("size", [1, 3])
def test_mean_and_spread_are_those_of_the_ensemble(folder: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    run_on_threads(size, lambda c: predict(c, ["run1", "run2", "-o", "out.npz", "x.npy"]))
    found, ensemble = np.load("out.npz"), distsgd.load(["run1", "run2"])
    assert set(found) == {"predictions", "spread", "labels", "names"}
    assert found["predictions"].tobytes() == ensemble.predict(X).tobytes()
    assert found["spread"].tobytes() == ensemble.spread(X).tobytes()
    assert (found["names"][found["labels"]] == ensemble.labels(X)).all()


@pytest.mark.parametrize(
    "words", [["run1", "x.npy", "-o", "one"], ["-o", "one", "run1", "x.npy"], ["run1", "-o", "one.npz", "x.npy"]]
)
def test_one_run_gives_what_it_gave(folder: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    predict(SerialCommunicator(), words)
    found = np.load("one.npz")
    assert set(found) == {"predictions", "labels", "names"}
    assert found["predictions"].tobytes() == distsgd.load("run1").predict(X).tobytes()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["run1", "values", "x.npy", "-o", "no"], "run1 has a task classification"),
        (["x.npy", "-o", "no"], "required: INPUT"),
        (["run1", "run2", "x.npy", "-o", "no", "--model", "a.py:f"], "was trained with mlp, and not with a.py:f"),
    ],
)
def test_refused(folder: Path, words: list[str], problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigurationError, match=problem):
        predict(SerialCommunicator(), words)
    assert not Path("no.npz").exists()
