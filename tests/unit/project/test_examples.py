"""The examples against the tutorials' own figures, as far as seconds allow, and the table that is made of results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd.cli.command_line import load_config
from distsgd.run.config_file import read_toml
from examples import reproduce, stand_in, tables
from examples.collect import run_result
from examples.rows import FOLDER, ROOT, Row, load_rows
from tests.cases import first_of

ROWS = load_rows()
REAL = ROOT.parent / "shared" / "data"


@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_what_there_is(name: str) -> None:
    row = ROWS[name]
    assert (row.config is None) != (row.script is None)
    assert (FOLDER / (row.config or row.script or "")).is_file()
    assert f"`{name}`" in tables.pages(ROWS, {})[tables.DOCS / f"{row.page}.md"]
    if row.config is not None:
        for short in (False, True):
            load_config(row.command(0, Path("out"), None, short=short)[4:])  # after: python -m distsgd.train --quiet


def test_every_example_is_in_a_row() -> None:
    used = {row.config or row.script for row in ROWS.values()}
    helpers = {
        "__init__.py",
        "rows.py",
        "collect.py",
        "tables.py",
        "reproduce.py",
        "stand_in.py",
        "pictures.py",
        "rows.toml",
    }
    assert {path.name for path in FOLDER.iterdir() if path.suffix in (".py", ".toml")} == used | helpers


@pytest.mark.parametrize(
    ("steps", "batch"),
    first_of(
        [
            (2_000, ["--lr", "8"]),
            (12_000, []),
            (12_000, ["--batch-size", "2", "--lr", "1"]),
            (12_000, ["--batch-size", "1", "--lr", "0.5"]),
        ]
    ),
)
def test_xor_is_learned(steps: int, batch: list[str], tmp_path: Path) -> None:
    config = [
        "--config",
        str(FOLDER / "xor.toml"),
        "--max-steps",
        str(steps),
        *batch,
        "--out",
        str(tmp_path / "run"),
    ]
    subprocess.run([sys.executable, "-m", "distsgd.train", "--quiet", *config], check=True, cwd=ROOT)
    np.savez(tmp_path / "xor.npz", x=np.array([[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]], np.float32))
    asked = [str(tmp_path / "run"), str(tmp_path / "xor.npz"), "-o", str(tmp_path / "said.npz")]
    subprocess.run([sys.executable, "-m", "distsgd.predict", *asked], check=True, cwd=ROOT)
    with np.load(tmp_path / "said.npz") as printed:
        predictions = printed["predictions"][:, 0]
    assert (predictions > 0.5).tolist() == [False, True, True, False]
    assert np.square(predictions - [0, 1, 1, 0]).mean() / 2 < 1e-3


@pytest.mark.long
@pytest.mark.skipif(not (REAL / "mnist").is_dir(), reason="the real MNIST files are not beside this checkout")
def test_theanos_logistic_regression_to_the_digit(tmp_path: Path) -> None:
    row = ROWS["theano-logistic-9600"]
    found = reproduce.run(row, 0, tmp_path, REAL)
    assert found["figures"] == {"validation_error": 0.075, "test_error": pytest.approx(0.07489583), "best_epoch": 73}


def test_the_stand_in_is_read_as_mnist(tmp_path: Path) -> None:
    (x, y), (x_test, y_test) = distsgd.load_mnist(normalize=False, data_dir=str(stand_in.write(tmp_path)))
    assert (x.shape, x_test.shape) == ((1500, 784), (297, 784))
    assert x.max() == 240
    assert set(y.tolist()) == set(y_test.tolist()) == set(range(10))


def test_the_pages_hold_what_was_obtained() -> None:
    for path, text in tables.pages(ROWS, tables.load_results()).items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: python -m examples.reproduce --collect"


def row(**settings: Any) -> Row:
    return Row("try", "xor", "what", "published", ("test_accuracy",), config="xor.toml", **settings)


def write(folder: Path, records: list[dict[str, Any]], summary: dict[str, Any] | None = None) -> None:
    folder.mkdir()
    lines = [json.dumps(record) for record in records]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 4, "ep']))  # it is being written
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))


RECORDS = [
    {"step": 10, "epoch": 1, "validation_accuracy": 0.5, "test_accuracy": 0.4, "best": True, "run": {"seconds": 2.0}},
    {"step": 20, "epoch": 2, "validation_accuracy": 0.7, "test_accuracy": 0.6, "best": True, "run": {"seconds": 3.0}},
    {"step": 30, "epoch": 3, "validation_accuracy": 0.6, "run": {"seconds": 1.5}},
]


def test_an_unfinished_run_is_reported_as_one(tmp_path: Path) -> None:
    assert run_result(row(), tmp_path / "nothing", 0) is None
    write(tmp_path / "run", RECORDS)
    found = run_result(row(reach="validation_accuracy=0.55"), tmp_path / "run", 3)
    assert found is not None
    assert (found["seed"], found["status"], found["epochs"], found["best_epoch"]) == (3, "unfinished", 3, 2)
    assert found["figures"] == {"test_accuracy": 0.6}
    assert found["seconds"] == 4.5  # two attempts
    assert "not finished" in tables.table([row()], {"try": [found]}, links=True)


def test_a_finished_run(tmp_path: Path) -> None:
    summary = {"status": "early_stopped", "epochs": 3, "best_epoch": 2, "test_accuracy": 0.61, "run": {"ranks": 2}}
    write(tmp_path / "run", RECORDS, summary)
    (tmp_path / "run" / "figures.json").write_text('{"test_accuracy": 0.62}')
    found = run_result(row(), tmp_path / "run", 0)
    assert found is not None
    assert (found["status"], found["ranks"], found["figures"]) == ("early_stopped", 2, {"test_accuracy": 0.62})


def test_figures_are_means_and_deviations() -> None:
    runs = [{"figures": {"test_accuracy": value, "steps": 40}} for value in (0.97, 0.98, 0.99)]
    assert tables.figure("test_accuracy", runs) == "test accuracy 98.00 ± 1.00 %"
    assert tables.figure("steps", runs) == "steps 40"
    assert tables.figure("test_error", [{"figures": {"test_error": 0.07489583}}]) == "test error 7.489583 %"
    assert tables.figure("loss", [{"figures": {"loss": None}}]) == "loss none"
    many = [{"figures": {"train_full_accuracy": value / 10}} for value in range(10)]
    assert tables.figure("train_full_accuracy", many) == "train accuracy 45.00 (0.00 to 90.00) %"


def test_a_run_replaces_the_one_with_its_seed() -> None:
    results: tables.Results = {}
    for seed, epochs in ((1, 5), (0, 5), (1, 6)):
        tables.merge(results, "try", {"seed": seed, "epochs": epochs})
    assert results == {"try": [{"seed": 0, "epochs": 5}, {"seed": 1, "epochs": 6}]}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_a_configuration_reads(path: Path) -> None:
    if path.name != "rows.toml":
        assert read_toml(path).microbatches == 2  # so that one rank and two can share it
