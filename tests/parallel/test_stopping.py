"""When runs end, on all ranks at the same step, and that the best parameters are what they return."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cases import first_of
from tests.parallel.launch import module, records, result, summary, train

QUICK = ("--hidden", 24, "--batch-size", 200)


def evaluation(run: Path, ranks: int | None = None, split: str = "validation", data: str = "data.npz") -> dict:
    done = module(ranks, "evaluate", run.parent, run, "--dataset", data, "--split", split)
    assert done.status == 0, done.text
    return json.loads(done.out)


@pytest.fixture(scope="module")
def split_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits with parts of their own, as a file, so that evaluate can score each."""
    import numpy as np

    from distsgd.data.named.datasets import open_dataset, read_array

    digits = open_dataset("digits").arrays
    x, y = read_array(digits["x_train"]), read_array(digits["y_train"])
    path = tmp_path_factory.mktemp("digits") / "data.npz"
    parts = {"train": slice(0, 1201), "validation": slice(1201, 1500), "test": slice(1500, None)}
    arrays = {f"{kind}_{name}": data[part] for name, part in parts.items() for kind, data in (("x", x), ("y", y))}
    np.savez(path, **arrays)
    return path


@pytest.mark.long
def test_epochs_rule(tmp_path: Path) -> None:
    """A learning rate so high that validation gets worse early."""
    options = (*QUICK, "--optimizer", "adam", "--lr", 0.3, "--epochs", 40, "--patience", 2)
    options = (*options, "--monitor", "validation_loss")
    done = train(3, tmp_path / "three", *options)
    reported, metrics = summary(tmp_path / "three"), records(tmp_path / "three")
    assert done.out.splitlines()[-1].startswith("early_stopped: ")
    assert reported["status"] == "early_stopped"
    losses = [record["validation_loss"] for record in metrics]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert reported["best_epoch"] == best + 1
    assert len(metrics) == best + 1 + 2 == reported["epochs"]
    assert reported["validation_loss"] == losses[best]
    train(1, tmp_path / "one", *options)
    assert result(tmp_path / "one") == result(tmp_path / "three")
    again = train(2, tmp_path / "three", *options)
    assert again.out.splitlines()[-1] == done.out.splitlines()[-1]


def test_patience_rule(tmp_path: Path) -> None:
    """By the tutorials' rule, computed here from the recorded errors: i counts minibatches from 0."""
    patience, increase, threshold = 12, 2.0, 0.9
    rule = ("--early-stopping", "patience", "--patience", patience, "--patience-increase", increase)
    rule = (*rule, "--improvement-threshold", threshold, "--monitor", "validation_error", "--epochs", 60)
    train(2, tmp_path / "run", *QUICK, *rule, "--lr", 0.2)
    reported, metrics = summary(tmp_path / "run"), records(tmp_path / "run")
    frequency = min(9, patience // 2)  # 1,617 training examples make 9 minibatches of 200
    best, left, step = float("inf"), patience, 0
    errors = {record["step"]: record["validation_error"] for record in metrics if "validation_error" in record}
    while True:
        step += 1
        assert (step in errors) == (step % frequency == 0)
        if step in errors and errors[step] < best:
            if errors[step] < best * threshold:
                left = max(left, (step - 1) * increase)
            best = errors[step]
        if left <= step - 1:
            break
    assert reported["status"] == "early_stopped"
    assert reported["steps"] == step
    assert reported["validation_error"] == best


@pytest.mark.long
def test_patience_rule_continues_where_it_stopped(tmp_path: Path) -> None:
    rule = ("--early-stopping", "patience", "--patience", 12, "--monitor", "validation_error", "--epochs", 60)
    options = (*QUICK, *rule, "--lr", 0.2)
    train(None, tmp_path / "whole", *options)
    for ranks, stop in ((2, 10), (1, 13)):
        train(ranks, tmp_path / "run", *options, "--max-steps", stop)
    train(3, tmp_path / "run", *options)
    assert summary(tmp_path / "whole")["status"] == "early_stopped"
    assert result(tmp_path / "run") == result(tmp_path / "whole")


@pytest.mark.parametrize("target", first_of(["validation_accuracy=0.6", "validation_loss=1.5"]))
def test_target(tmp_path: Path, target: str) -> None:
    train(2, tmp_path / "run", *QUICK, "--target", target)
    reported, metrics = summary(tmp_path / "run"), records(tmp_path / "run")
    name, value = target.split("=")
    assert reported["status"] == "completed"
    assert reported["target_reached"]
    reached = [(record[name] >= 0.6 if "accuracy" in name else record[name] <= float(value)) for record in metrics]
    assert reached == [False] * (len(metrics) - 1) + [True]
    assert train(None, tmp_path / "run", *QUICK, "--target", target, "--epochs", 30, "--quiet").out.count("\n") == 1
    harder = target.replace("0.6", "0.8").replace("1.5", "1.0")
    train(None, tmp_path / "run", *QUICK, "--target", harder)
    train(None, tmp_path / "whole", *QUICK, "--target", harder)
    assert summary(tmp_path / "run")["epochs"] >= reported["epochs"]
    assert result(tmp_path / "run") == result(tmp_path / "whole")


@pytest.mark.long
def test_target_is_remembered_where_the_summary_is_lost(tmp_path: Path) -> None:
    """As after a crash between the last checkpoint and the summary."""
    options = (*QUICK, "--target", "validation_accuracy=0.6")
    train(2, tmp_path / "run", *options)
    whole = result(tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    train(3, tmp_path / "run", *options)
    assert result(tmp_path / "run") == whole


@pytest.mark.long
def test_early_stop_is_remembered_where_the_summary_is_lost(tmp_path: Path) -> None:
    options = (*QUICK, "--optimizer", "adam", "--lr", 0.3, "--epochs", 40, "--patience", 2)
    options = (*options, "--monitor", "validation_loss")
    train(None, tmp_path / "run", *options)
    whole = result(tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    train(2, tmp_path / "run", *options)
    assert result(tmp_path / "run") == whole


@pytest.mark.long
def test_best_parameters_are_what_evaluate_scores(split_digits: Path) -> None:
    out = split_digits.parent / "run"
    options = ("--dataset", "data.npz", *QUICK, "--optimizer", "adam", "--lr", 0.1, "--batch-norm", "--epochs", 6)
    train(2, out, *options, "--patience", 0)
    reported, metrics = summary(out), records(out)
    for split in ("validation", "test"):
        scores = evaluation(out, ranks=3, split=split)
        assert scores == evaluation(out, split=split)
        assert scores["loss"] == reported[f"{split}_loss"]
        assert scores["accuracy"] == reported[f"{split}_accuracy"]
        assert scores["confusion_matrix"] == reported["confusion_matrix"][split]
    best = metrics[reported["best_epoch"] - 1]
    assert best["best"]
    assert best["test_accuracy"] == reported["test_accuracy"]
    assert best is min(metrics, key=lambda record: record["validation_error"])
    assert best["validation_loss"] == reported["validation_loss"]
    assert [record["step"] for record in metrics if "test_loss" in record] == [
        record["step"] for record in metrics if record.get("best")
    ]


@pytest.mark.long
def test_max_time_and_max_steps(tmp_path: Path) -> None:
    train(2, tmp_path / "run", *QUICK, "--epochs", 100000, "--patience", 0, "--max-time", "1s", status=75)
    assert summary(tmp_path / "run")["status"] == "stopped"
    steps = summary(tmp_path / "run")["steps"]
    train(3, tmp_path / "run", *QUICK, "--patience", 0, "--max-steps", steps + 5, "--epochs", 100000)
    assert summary(tmp_path / "run")["steps"] == steps + 5


def test_no_steps_at_all(tmp_path: Path) -> None:
    train(2, tmp_path / "run", *QUICK, "--epochs", 0)
    reported = summary(tmp_path / "run")
    assert (reported["status"], reported["steps"], reported["train_loss"]) == ("completed", 0, None)
    assert 0 < reported["validation_loss"] < 10
