"""Stopped at any step and gone on with on another number of ranks, a run ends with the bits of one never stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distsgd
from tests.cases import first_of
from tests.parallel.launch import Done, ends_with, records, result, summary, train

OPTIONS = (
    *("--epochs", 3, "--batch-size", 150, "--hidden", 40, 30, "--dropout", 0.1, "--batch-norm", "--optimizer", "adam"),
    *("--schedule", "inverse-time", "--decay-rate", 0.5, "--warmup-steps", 4, "--l2", 1e-4, "--log-every", 4),
)
STEPS_PER_EPOCH = 11

# Imported on every rank, used on rank 0; TEST_SIGNAL is "step rank signal".
CALLBACK = """
import os
import signal
from pathlib import Path

from distsgd import Callback

RANK = os.environ.get("PMI_RANK") or os.environ.get("PMIX_RANK") or os.environ.get("OMPI_COMM_WORLD_RANK") or "0"
Path(f"pid-{RANK}").write_text(str(os.getpid()))
STEP, TARGET, NAME = os.environ["TEST_SIGNAL"].split()


class Kill(Callback):
    def on_step(self, step, loss, examples):
        if step == int(STEP):
            os.kill(int(Path(f"pid-{TARGET}").read_text()), getattr(signal, NAME))
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    train(None, out, *OPTIONS)
    return out


def continue_run(out: Path, ranks: int | None, *more: object, **keywords: Any) -> Done:
    return train(ranks, out, *OPTIONS, *more, **keywords)


@pytest.mark.parametrize(
    ("stops", "ranks"),
    first_of([((7,), (3, 2)), ((1, 12, 32), (4, None, 3, 1)), ((22, 23), (2, None, 4))]),
    ids=lambda value: "-".join(map(str, value)),
)
def test_any_step_any_ranks(tmp_path: Path, undisturbed: Path, stops: tuple[int, ...], ranks: tuple[Any, ...]) -> None:
    out = tmp_path / "run"
    for stop, number in zip(stops, ranks, strict=False):
        continue_run(out, number, "--max-steps", stop)
        assert summary(out)["steps"] == stop
    done = continue_run(out, ranks[len(stops)])
    assert f"from step {stops[-1]}" in done.out
    assert result(out) == result(undisturbed)


@pytest.mark.parametrize(("name", "target"), first_of([("SIGTERM", 2), ("SIGUSR1", 0), ("SIGINT", 1)]))
def test_signal_to_any_rank(tmp_path: Path, undisturbed: Path, name: str, target: int) -> None:
    out = tmp_path / "run"
    (tmp_path / "kill.py").write_text(CALLBACK)
    more = ("--callback", "kill.py:Kill")
    continue_run(out, 3, *more, status=75, extra={"TEST_SIGNAL": f"9 {target} {name}"})
    reported = summary(out)
    assert reported["status"] == "stopped"
    assert 9 <= reported["steps"] < 33
    continue_run(out, 2)
    assert result(out) == result(undisturbed)


@pytest.mark.long
def test_killed_rank(tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "run"
    (tmp_path / "kill.py").write_text(CALLBACK)
    train_killed(out, tmp_path)
    assert not (out / "summary.json").exists()
    assert [path.name for path in (out / "checkpoints").glob("*.tmp")] == []
    continue_run(out, 2)
    assert result(out) == result(undisturbed)


def train_killed(out: Path, folder: Path) -> None:
    from tests.parallel.launch import module

    more = ("--checkpoint-every", 5, "--callback", "kill.py:Kill")
    done = module(3, "train", folder, "--out", out, *OPTIONS, *more, extra={"TEST_SIGNAL": "18 1 SIGKILL"})
    assert done.status != 0


@pytest.mark.long
def test_time_limit(tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "run"
    done = continue_run(out, 2, "--max-time", "0.0001s", status=75)
    assert done.out.splitlines()[-1].startswith("stopped: ")
    assert summary(out)["status"] == "stopped"
    assert 1 <= summary(out)["steps"] < 33
    continue_run(out, None)
    assert result(out) == result(undisturbed)


@pytest.mark.parametrize("damage", first_of(["flipped", "cut", "empty"]))
def test_damaged_newest_checkpoint(tmp_path: Path, undisturbed: Path, damage: str) -> None:
    out = tmp_path / "run"
    continue_run(out, 2, "--checkpoint-every", 5, "--max-steps", 18)
    newest = out / "checkpoints" / "step-18.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes({"flipped": data, "cut": data[: len(data) // 2], "empty": b""}[damage])
    done = continue_run(out, None)
    assert "step-18.safetensors: " in done.err
    assert "continuing from an older one" in done.err
    assert "from step 15" in done.out
    assert result(out) == result(undisturbed)


@pytest.mark.long
def test_no_whole_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"
    continue_run(out, None, "--max-steps", 3)
    for path in (out / "checkpoints").iterdir():
        path.write_bytes(b"damaged")
    ends_with(continue_run(out, 2, status=1), "--resume never")


@pytest.mark.parametrize(
    ("options", "field"),
    first_of(
        [
            (("--hidden", 41), "hidden"),
            (("--optimizer", "sgd"), "optimizer"),
            (("--dataset", "moons"), "dataset"),
            (("--microbatches", 8), "microbatches"),
            (("--seed", 1), "seed"),
        ]
    ),
)
def test_another_configuration_is_refused(tmp_path: Path, undisturbed: Path, options: tuple[Any], field: str) -> None:
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    ranks = 2 if field == "hidden" else None
    ends_with(continue_run(out, ranks, *options, status=2), f"{field} is ")
    assert result(out) == result(undisturbed)


def test_finished_run_says_its_last_line_again(tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "run"
    first = continue_run(out, 2)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = continue_run(out, None)
    assert again.out.splitlines()[-1].startswith("completed: 3 epochs, 33 steps")
    assert first.out.endswith("\n" + again.out)
    assert again.err == ""
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert result(out) == result(undisturbed)


@pytest.mark.long
def test_never_moves_the_run_aside(tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "run"
    continue_run(out, None, "--max-steps", 3)
    continue_run(out, None, "--max-steps", 2, "--resume", "never")
    done = continue_run(out, 3, "--resume", "never")
    assert "run.2" in done.err
    assert summary(tmp_path / "run.1")["steps"] == 3
    assert summary(tmp_path / "run.2")["steps"] == 2
    assert result(out) == result(undisturbed)


@pytest.mark.long
def test_more_epochs_continue(tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "run"
    continue_run(out, 2, "--epochs", 2)
    assert summary(out)["epochs"] == 2
    continue_run(out, 3)
    assert result(out) == result(undisturbed)


@pytest.mark.long
def test_horizon_of_a_schedule_stays_that_of_the_first_start(tmp_path: Path) -> None:
    cosine = ("--schedule", "cosine", "--hidden", 20, "--batch-size", 400)
    whole, out = tmp_path / "whole", tmp_path / "run"
    train(None, whole, *cosine, "--epochs", 6, "--schedule-epochs", 4)
    train(None, out, *cosine, "--epochs", 4, "--max-steps", 7)
    for stop in (12, 21):
        train(None, out, *cosine, "--epochs", 6, "--max-steps", stop)
    train(2, out, *cosine, "--epochs", 6)
    assert result(out) == result(whole)


@pytest.mark.long
def test_fit_continues_as_the_command_does(tmp_path: Path) -> None:
    """With more epochs, and a schedule that depends on how many there are."""
    x = np.random.default_rng(0).normal(size=(130, 6)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    cosine = ("--dataset", "data.npz", "--schedule", "cosine", "--hidden", 7, "--batch-size", 25)
    options: dict[str, Any] = {"hidden": (7,), "schedule": "cosine", "batch_size": 25, "out": str(tmp_path / "fit")}
    options["validation_fraction"] = 0.1  # the command's default
    for epochs, steps in ((3, 7), (5, 1000)):
        train(None, tmp_path / "command", *cosine, "--epochs", epochs, "--max-steps", steps)
        distsgd.fit("mlp", (x, y), epochs=epochs, max_steps=steps, **options)
        assert result(tmp_path / "fit") == result(tmp_path / "command")
    train(None, tmp_path / "whole", *cosine, "--epochs", 5, "--schedule-epochs", 3)
    assert result(tmp_path / "whole") == result(tmp_path / "fit")


@pytest.mark.long
def test_from_a_named_checkpoint(tmp_path: Path, undisturbed: Path) -> None:
    first, out = tmp_path / "first", tmp_path / "run"
    continue_run(first, None, "--checkpoint-every", 5, "--max-steps", 16)
    continue_run(out, 2, "--resume", first / "checkpoints" / "step-10.safetensors")
    assert summary(out)["parameters_sha256"] == summary(undisturbed)["parameters_sha256"]
    assert records(out) == [record for record in records(undisturbed) if record["step"] > 10]


@pytest.mark.long
def test_going_back_in_the_same_folder(tmp_path: Path, undisturbed: Path) -> None:
    """What was after the checkpoint that one goes back to doesn't come back when the run stops again."""
    out = tmp_path / "run"
    continue_run(out, None, "--checkpoint-every", 5, "--max-steps", 20, "--keep", 5)
    continue_run(out, None, "--resume", out / "checkpoints" / "step-5.safetensors", "--max-steps", 7)
    assert [record["step"] for record in records(out)] == [4]
    done = continue_run(out, 2)
    assert "from step 7" in done.out
    assert result(out) == result(undisturbed)


@pytest.mark.long
def test_best_parameters_are_in_the_checkpoint(tmp_path: Path) -> None:
    """The best validation comes first, and later attempts only make it worse: it is still what the run returns."""
    worse = ("--lr", 2.2, "--optimizer", "sgd", "--hidden", 20, "--epochs", 4, "--batch-size", 500)
    whole, out = tmp_path / "whole", tmp_path / "run"
    train(None, whole, *worse)
    assert summary(whole)["best_epoch"] < 4
    for stop in (5, 14):
        train(None, out, *worse, "--max-steps", stop)
    train(3, out, *worse)
    assert result(out) == result(whole)


def test_torn_last_record(tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "run"
    continue_run(out, None, "--max-steps", 13)
    with open(out / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 16, "train_loss": 1.0}) + '\n{"step": 20, "trai')
    continue_run(out, 2)
    assert result(out) == result(undisturbed)
