"""A damaged best checkpoint of a finished run is named with the remedy, which works; and other files of such a run."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distsgd.cli.evaluate import evaluate
from distsgd.cli.plot import Options, draw
from distsgd.cli.predict import predict
from distsgd.cli.train import Signals, train
from distsgd.core.checkpoint_folder import find_checkpoint
from distsgd.core.errors import CheckpointError
from distsgd.parallel.serial import SerialCommunicator
from distsgd.run.picture_material import read_run

ALONE = SerialCommunicator()
REMEDY = r"best\.safetensors: .*damaged: .*; start the run's training command again: it writes the file anew"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)  # those of the tests' process stay
    x = np.random.default_rng(0).normal(size=(120, 3))
    np.savez("d.npz", x=x, y=(x[:, 0] + x[:, 1] ** 2 > 0.5).astype(int))
    np.save("x.npy", x)
    training("run")
    return Path("run")


def training(out: str, *more: str, epochs: int = 5) -> int:
    options = ["--dataset", "d.npz", "--epochs", str(epochs), "--learning-rate", "9", "--quiet", "--out", out, *more]
    return train(ALONE, options, Signals())


def best(run: Path) -> Path:
    return run / "checkpoints" / "best.safetensors"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)


READERS: dict[str, Callable[[], object]] = {
    "evaluate": lambda: evaluate(ALONE, ["run", "--dataset", "d.npz"]),
    "predict": lambda: predict(ALONE, ["run", "x.npy", "-o", "out.npz"]),
    "plot": lambda: draw(Options(runs=("run",), only=("filters",))),
    "train from it": lambda: training("other", "--init-from", "run"),
}


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_best_of_a_finished_run_is_named_with_the_remedy(run: Path, name: str) -> None:
    flip(best(run))
    with pytest.raises(CheckpointError, match=REMEDY):
        READERS[name]()
    assert not Path("out.npz").exists()


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: path.write_bytes(b"")])
def test_the_remedy_brings_the_same_bytes_back(
    run: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    whole, before = best(run).read_bytes(), {path: path.read_bytes() for path in run.glob("*.*")}
    damage(best(run))
    capsys.readouterr()
    assert training("run") == 0
    assert capsys.readouterr().err.count("it is written again, from the run's last checkpoint\n") == 1
    assert best(run).read_bytes() == whole
    assert {path: path.read_bytes() for path in run.glob("*.*")} == before
    assert training("run") == 0
    assert capsys.readouterr().err == ""


def test_without_best_the_best_parameters_are_found_all_the_same(run: Path) -> None:
    """And not the last ones, which are others."""
    whole, last = (
        find_checkpoint(path, "best").group("parameters") for path in (run, run / "checkpoints/last.safetensors")
    )
    name = next(iter(whole))
    assert not np.array_equal(whole[name], last[name]), "the last parameters are the best ones"
    best(run).unlink()
    found = find_checkpoint(run, "best").group("parameters")
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in whole.items()
    }


def test_where_no_checkpoint_is_whole_the_remedy_is_another(run: Path) -> None:
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="no checkpoint of this run is whole: train it anew"):
        find_checkpoint(run, "best")


def test_a_damaged_summary_is_reported_and_written_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "summary.json"
    whole = json.loads(path.read_text())
    path.write_bytes(path.read_bytes()[:100])
    capsys.readouterr()
    assert training("run") == 0
    assert "warning: run/summary.json is damaged; the run's end writes it again\n" in capsys.readouterr().err
    again = json.loads(path.read_text())
    assert {**again, "run": 0} == {**whole, "run": 0}


def test_damaged_records_of_a_finished_run_are_reported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    capsys.readouterr()
    assert training("run") == 0
    assert (
        capsys.readouterr().err
        == "warning: run/metrics.jsonl is damaged: 1 line at the end is missing; the other records are whole\n"
    )
    assert path.read_bytes() == b"".join(lines[:-1]), "nothing is written into a finished run"


@pytest.mark.parametrize("name", ["config.toml", "validation_rows.npy"])
def test_what_no_command_relies_on_is_written_again(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The configuration and the split are in the checkpoints."""
    capsys.readouterr()
    whole, scores = (run / name).read_bytes(), []
    for text in (whole, b"epochs = 99\nhidden = [1]\n"):
        (run / name).write_bytes(text)
        evaluate(ALONE, ["run", "--dataset", "d.npz", "--split", "validation"])
        scores.append(capsys.readouterr().out)
    assert scores[0] == scores[1] != ""
    assert training("run", epochs=6) == 0
    assert (run / name).read_bytes() == whole.replace(b"epochs = 5", b"epochs = 6")


@pytest.mark.parametrize(
    "damage",
    {
        "a flipped bit": lambda data: data[:-8] + bytes([data[-8] ^ 1]) + data[-7:],
        "cut short": lambda data: data[:-3],
        "empty": lambda data: b"",
        "text at its end": lambda data: data + b"x",
        "another file": lambda data: b"epochs = 99",
    }.items(),
    ids=lambda item: item[0],
)
def test_damaged_validation_rows_of_a_finished_run_are_written_again(
    run: Path, damage: tuple[str, Callable[[bytes], bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "validation_rows.npy"
    whole, records = path.read_bytes(), (run / "metrics.jsonl").read_bytes()
    path.write_bytes(damage[1](whole))
    capsys.readouterr()
    assert training("run") == 0
    assert capsys.readouterr().err.count(f"warning: {path} is damaged; the run's end writes it again\n") == 1
    assert path.read_bytes() == whole
    assert (run / "metrics.jsonl").read_bytes() == records
    assert training("run") == 0
    assert capsys.readouterr().err == ""


def test_text_at_the_end_of_a_finished_runs_records_is_reported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "metrics.jsonl"
    whole = path.read_bytes()
    for damaged in (whole + b"text", whole[:-1]):
        path.write_bytes(damaged)
        capsys.readouterr()
        assert training("run") == 0
        assert f"warning: {path} is damaged: its end is no whole line; the other" in capsys.readouterr().err
        assert path.read_bytes() == damaged
        assert read_run(run).notes == (f"{path} is damaged: its end is no whole line",)
    (run / "summary.json").unlink()
    assert read_run(run).notes == (), "a run that isn't finished may be writing the line"
