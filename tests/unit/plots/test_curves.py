"""What curves show and what runs are called in them, from hand-made records."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd.core.errors import ConfigurationError, RunFolderError
from distsgd.plots.curves import (
    CurveOptions,
    RunCurves,
    common_axis,
    is_logarithmic,
    labels,
    loss_label,
    run_curves,
    training_label,
    training_losses,
)
from distsgd.plots.runs import Run, differences, names, steps_per_epoch
from distsgd.run.config import TrainConfig, resolved
from distsgd.run.config_file import to_toml
from distsgd.run.picture_material import read_records, read_run, run_of

RECORDS: list[dict[str, Any]] = [
    {"step": 5, "epoch": 1, "train_loss": 2.0, "validation_loss": 1.5, "validation_accuracy": 0.5, "best": True,
     "test_accuracy": 0.4},
    {"step": 10, "epoch": 2, "train_loss": None, "validation_loss": 1.0, "validation_accuracy": 0.75, "best": True,
     "test_accuracy": 0.7},
    {"step": 15, "epoch": 3, "train_loss": 0.5, "validation_loss": 1.25, "validation_accuracy": 0.75},
]  # fmt: skip


def write_run(folder: Path, records: list[dict[str, Any]], config: TrainConfig | None = None) -> Run:
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(to_toml(resolved(config or TrainConfig())))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_run(folder)


def curves_of(run: Run, axis: str = "epochs", score: str = "accuracy") -> RunCurves:
    return run_curves(run, run.name, CurveOptions(axis, score=score), axis)


def test_curves_of_a_run(tmp_path: Path) -> None:
    found = curves_of(write_run(tmp_path / "run", RECORDS))
    assert found.best == 2.0
    assert found.scored_by == "accuracy"
    assert {key: curve.x for key, curve in found.curves.items()} == {
        ("loss", "training"): (1, 2, 3), ("loss", "validation"): (1, 2, 3), ("accuracy", "validation"): (1, 2, 3),
        ("accuracy", "test"): (1, 2),
    }  # fmt: skip
    training = found.curves["loss", "training"].y
    assert training[::2] == (2.0, 0.5)
    assert math.isnan(training[1])
    assert found.curves["accuracy", "test"].y == (0.4, 0.7)
    assert found.curves["loss", "validation"].at(2.0) == 1.0
    assert found.curves["loss", "validation"].at(2.5) is None


def test_curves_by_step_and_of_other_scores(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [{**record, "validation_error": 0.25} for record in RECORDS])
    found = curves_of(run, "steps", "error")
    assert (found.best, found.scored_by) == (10, "error")
    assert found.curves["error", "validation"].x == (5, 10, 15)
    regression = write_run(tmp_path / "other", [{"step": 5, "epoch": 1, "train_loss": 1.0, "validation_r2": 0.5}])
    assert curves_of(regression).scored_by == "r2"


def test_scores_of_the_whole_training_set_go_first(tmp_path: Path) -> None:
    records = [{**record, "train_full_loss": 0.25, "train_full_accuracy": 0.9} for record in RECORDS]
    run = write_run(tmp_path / "run", records)
    found = curves_of(run)
    assert found.curves["loss", "training"].y == (0.25,) * 3
    assert found.curves["accuracy", "training"].y == (0.9,) * 3
    assert training_label(run.records) == "training"


def test_the_summary_has_the_test_score_where_no_record_has(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [{"step": 5, "epoch": 1, "train_loss": 1.0, "validation_accuracy": 0.5}])
    assert ("accuracy", "test") not in curves_of(run).curves
    run = replace(run, summary={"best_step": 5, "test_accuracy": 0.625})
    assert curves_of(run).curves["accuracy", "test"].y == (0.625,)


@pytest.mark.parametrize("penalty", [0.0, 0.125])
def test_training_losses_between_records(penalty: float) -> None:
    """Records hold means since the epoch began; a curve shows those since the record before, from the losses here."""
    per_epoch, epochs = 10, 3
    losses = np.random.default_rng(0).uniform(0.1, 3.0, per_epoch * epochs)
    records, expected, last = [], [], 0
    for step in range(1, per_epoch * epochs + 1):
        if step % 4 == 0 or step % per_epoch == 0:
            began = (step - 1) // per_epoch * per_epoch
            mean = float(losses[began:step].mean()) + penalty
            reported = {"penalty": penalty} if penalty else {}
            records.append({"step": step, "epoch": step // per_epoch, "train_loss": mean, **reported})
            expected.append((step, float(losses[max(began, last) : step].mean()) + penalty))
            last = step
    found = training_losses(records)
    assert [step for step, _ in found] == [step for step, _ in expected]
    np.testing.assert_allclose([y for _, y in found], [y for _, y in expected], rtol=1e-12)
    assert "since the point before" in training_label(records)
    assert ("with penalty" in training_label(records)) == bool(penalty)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(7, 1), (14, 2)], 7), ([(3, 0), (7, 1), (9, 1), (14, 2)], 7), ([(14, 2), (21, 3)], 7), ([(3, 0)], None),
        ([], None), ([(7, 2)], None), ([(7, 1), (13, 2)], None), ([(0, 1)], None),
    ],
)  # fmt: skip
def test_steps_per_epoch(points: list[tuple[int, int]], expected: int | None) -> None:
    assert steps_per_epoch([{"step": step, "epoch": epoch} for step, epoch in points]) == expected


def test_axis_is_steps_where_no_epoch_has_ended(tmp_path: Path) -> None:
    whole = write_run(tmp_path / "a", RECORDS)
    short = write_run(tmp_path / "b", [{"step": 3, "epoch": 0, "train_loss": 1.0}])
    assert common_axis([whole], "epochs") == "epochs"
    assert common_axis([whole, short], "epochs") == "steps"


def test_logarithmic_scale(tmp_path: Path) -> None:
    def run(*losses: float) -> list[RunCurves]:
        records = [{"step": 5 * n, "epoch": n, "train_loss": loss} for n, loss in enumerate(losses, 1)]
        return [curves_of(run_of(tmp_path, TrainConfig(), records, None))]

    assert is_logarithmic(run(10.0, 0.05), "auto")
    assert not is_logarithmic(run(10.0, 0.2), "auto")
    assert is_logarithmic(run(10.0, 0.2), "log")
    assert not is_logarithmic(run(10.0, 0.05), "linear")
    assert not is_logarithmic(run(10.0, 0.0), "auto")


def test_loss_has_its_unit(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", RECORDS)
    own = write_run(tmp_path / "own", [{"step": 1, "epoch": 1, "train_loss": 1.0}])
    assert loss_label([run], [curves_of(run)]) == "cross-entropy (nats per example)"
    assert loss_label([own], [curves_of(own)]) == "loss (mean per example)"
    squared = replace(own, options={**own.options, "loss": "squared-error"})
    assert "squared error" in loss_label([squared], [curves_of(squared)])
    assert loss_label([run, squared], [curves_of(run), curves_of(squared)]) == "loss (mean per example)"


def test_labels_show_what_differs(tmp_path: Path) -> None:
    configs = [TrainConfig(), TrainConfig(optimizer="adam", hidden=(64,), epochs=3, batch_norm=True, data_dir="x")]
    runs = [write_run(tmp_path / name, RECORDS, config) for name, config in zip("ab", configs, strict=True)]
    assert labels(runs) == [
        "a: hidden 128 128, no batch norm, optimizer momentum, learning rate 0.05, epochs 20",
        "b: hidden 64, batch norm, optimizer adam, learning rate 0.001, epochs 3",
    ]
    assert labels(runs[:1]) == ["a"]
    configs = [resolved(TrainConfig(optimizer="adam", beta2=0.9)), resolved(TrainConfig())]
    found = differences([run_of(tmp_path, config, RECORDS, None) for config in configs])
    assert found[0].endswith("learning rate 0.001, beta2 0.9")


def test_names_of_runs(tmp_path: Path) -> None:
    paths = [tmp_path / "one" / "run", tmp_path / "two" / "run", tmp_path / "two" / "other"]
    runs = [write_run(path, RECORDS) for path in paths]
    assert names(runs) == ["one/run", "two/run", "two/other"]
    assert names(runs[1:]) == ["run", "other"]
    assert names([runs[0], runs[0]]) == ["run", "run"]


@pytest.mark.parametrize("line", ["garbage", "[]", "null", '{"step": 1}', '{"step": "1", "epoch": 0}', '{"epoch": 1'])
def test_a_damaged_record_is_reported(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "epoch": 0}}\n{line}\n{{"step": 2, "epoch": 0}}\n')
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl: line 2 is no record"):
        read_records(path)
    path.write_text(f'{{"step": 1, "epoch": 0}}\n{line}')
    assert read_records(path) == ([{"step": 1, "epoch": 0}], ""), "the line that is being written is left out"


def test_folders_that_hold_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is no run folder"):
        read_run(tmp_path / "none")
    with pytest.raises(RunFolderError, match=r"there is no config\.toml"):
        read_run(tmp_path)
    (tmp_path / "config.toml").write_text("epochs = 1\n")
    assert read_run(tmp_path).records == []
    (tmp_path / "config.toml").write_text("epochs = [")
    with pytest.raises(ConfigurationError, match="is not a TOML file"):
        read_run(tmp_path)
