"""The part of the training examples that is split off: which rows, that they can be had, and scored later."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd import fit
from distsgd.core.errors import ConfigurationError, DataError

RNG = np.random.default_rng(5)
X = RNG.normal(size=(200, 3)).astype(np.float32)
Y = np.repeat(np.arange(4), [100, 60, 30, 10])


def command(folder: Path, module: str, *arguments: str, status: int = 0) -> str:
    line = [sys.executable, "-m", f"distsgd.{module}", *arguments]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def scores(folder: Path, *arguments: str) -> Any:
    return json.loads(command(folder, "evaluate", "run", *arguments))


def test_each_class_has_its_share_and_the_rows_can_be_had() -> None:
    result = fit("softmax", (X, Y), epochs=1, validation_fraction=0.2)
    assert result.validation_rows is not None
    assert np.bincount(Y[result.validation_rows]).tolist() == [20, 12, 6, 2]
    other = fit("softmax", (X, Y), epochs=1, validation_fraction=0.2, seed=9, split_seed=0)
    assert np.array_equal(other.validation_rows, result.validation_rows)  # type: ignore[arg-type]
    assert fit("softmax", (X, Y), epochs=1, validation_fraction=0).validation_rows is None


@pytest.mark.long
def test_what_was_split_off_is_scored_later(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    command(tmp_path, "train", "--dataset", "d.npz", "--epochs", "3", "--out", "run", "--split-seed", "4")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    rows = np.load(tmp_path / "run" / "validation_rows.npy")
    found = scores(tmp_path, "--dataset", "d.npz", "--split", "validation")
    assert (found["examples"], found["loss"]) == (20, summary["validation_loss"])
    assert scores(tmp_path, "--dataset", "d.npz") == found, "and by default"
    np.savez(tmp_path / "v.npz", x=X[rows], y=Y[rows])
    assert scores(tmp_path, "--dataset", "v.npz")["loss"] == found["loss"], "the same rows by hand"
    trained = scores(tmp_path, "--dataset", "d.npz", "--split", "train")
    whole = scores(tmp_path, "--dataset", "d.npz", "--split", "all")
    assert (trained["examples"], whole["examples"]) == (180, 200)
    assert 180 * trained["loss"] + 20 * found["loss"] == pytest.approx(200 * whole["loss"])
    np.savez(tmp_path / "other.npz", x=X + 1, y=Y)
    assert scores(tmp_path, "--dataset", "other.npz")["split"] == "all"
    text = command(tmp_path, "evaluate", "run", "--dataset", "other.npz", "--split", "validation", status=2)
    assert "was trained on other data" in text


def test_the_last_examples_that_hold_a_whole_class_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="leaves no examples of class 3 to train on"):
        fit("softmax", (X, Y), epochs=1, validation_last=10)


@pytest.mark.parametrize("sizes", [[1, 1, 1, 57], [1, 3, 5, 51], [2, 2, 2, 2], [7, 1, 0, 52]])
@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5])
def test_each_class_keeps_examples_to_train_on(sizes: list[int], fraction: float) -> None:
    y = np.repeat(np.arange(4), sizes)
    rows = fit("softmax", (X[: len(y)], y), epochs=1, validation_fraction=fraction, classes="4").validation_rows
    assert rows is not None
    assert len(rows) == round(len(y) * fraction)
    assert np.isin(y, np.delete(y, rows)).all()


def test_classes_of_single_examples_can_not_be_split() -> None:
    with pytest.raises(
        ConfigurationError, match=r"validation_fraction: leaves no examples of class 0, 1, 2, 3, 4, 5 to"
    ):
        fit("softmax", (X[:60], np.arange(60)), epochs=1, validation_fraction=0.1)


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        ("softmax-cross-entropy", lambda y: np.eye(2)[y]),
        ("binary-cross-entropy", lambda y: y.astype(float)),
        ("binary-cross-entropy", lambda y: y.astype(float)[:, None]),
        ("binary-cross-entropy", lambda y: y),
    ],
)
def test_each_class_has_its_share_whatever_form_it_has(loss: str, targets: Any) -> None:
    y = np.repeat([0, 1], [18, 2])
    result = fit("mlp", (X[:20], targets(y)), loss=loss, epochs=1, batch_size=5, validation_fraction=0.5)
    assert np.bincount(y[result.validation_rows]).tolist() == [9, 1]
    with pytest.raises(ConfigurationError, match="validation_last: leaves no examples of class 1 to train on"):
        fit("mlp", (X[:20], targets(y)), loss=loss, epochs=1, batch_size=5, validation_last=2)


def test_other_data_may_be_smaller_than_the_part_that_was_split_off(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    np.savez(tmp_path / "few.npz", x=X[:4], y=np.arange(4))
    command(tmp_path, "train", "--dataset", "d.npz", "--epochs", "1", "--out", "run", "--validation-fraction", "0.5")
    assert scores(tmp_path, "--dataset", "few.npz")["examples"] == 4


@pytest.mark.parametrize("name", ["weight", "sample_weight", "Weights", "xtest", "test_x", "X_train", "Y", "x_val"])
def test_a_name_that_is_nearly_right_is_refused(tmp_path: Path, name: str) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=Y, **{name: Y})
    assert f"got {name!r}" in command(tmp_path, "train", "--dataset", "d.npz", "--dry-run", status=2)


def test_the_header_says_which_arrays_are_used(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=Y, weights=np.ones(200), patients=Y)
    text = command(tmp_path, "train", "--dataset", "d.npz", "--epochs", "1", "--out", "run")
    header = " ".join(text.split())
    assert "test examples; not used: patients" in header
    assert "example weights: yes, of training and validation examples, from" in header


def test_masked_values_are_refused_and_a_mask_of_none_is_not() -> None:
    masked = np.ma.masked_greater(X, 2.0)
    with pytest.raises(DataError, match=f"train x is an array of which {masked.mask.sum()} values are masked"):
        fit("softmax", (masked, Y), epochs=1)
    none = np.ma.MaskedArray(X, mask=False)
    usual = fit("softmax", (X, Y), epochs=1).summary["parameters_sha256"]
    assert fit("softmax", (none, Y), epochs=1).summary["parameters_sha256"] == usual


def test_a_data_set_that_moved_continues_and_another_of_its_name_does_not(tmp_path: Path) -> None:
    """What a run is compared by is what its data hold: every value of them, wherever they lie."""
    for name in ("here", "there", "other"):
        (tmp_path / name).mkdir()
    x = RNG.normal(size=(9000, 3)).astype(np.float32)  # more rows than a sample would hold
    y = (x[:, 0] > 0).astype(int)
    np.savez(tmp_path / "here" / "d.npz", x=x, y=y)
    command(tmp_path / "here", "train", "--dataset", "d.npz", "--epochs", "1", "--out", "../run")
    (tmp_path / "here" / "d.npz").rename(tmp_path / "there" / "d.npz")
    usual = ["--epochs", "2", "--out", "run"]
    command(tmp_path, "train", "--dataset", "./there/d.npz", *usual)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["epochs"] == 2
    changed = x.copy()
    changed[4321, 1] += 1  # one value, of a row that a sample would miss
    np.savez(tmp_path / "other" / "d.npz", x=changed, y=y)
    usual[1] = "3"
    text = command(tmp_path, "train", "--dataset", "other/d.npz", *usual, status=2)
    assert "is not what the run began with: contents was" in text


def test_the_default_folder_is_named_by_the_file_and_not_by_its_place(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    command(tmp_path, "train", "--dataset", "d.npz", "--epochs", "1")
    command(tmp_path, "train", "--dataset", f"{tmp_path}/./d.npz", "--epochs", "2")
    runs = list((tmp_path / "runs").iterdir())
    assert len(runs) == 1
    assert json.loads((runs[0] / "summary.json").read_text())["epochs"] == 2
