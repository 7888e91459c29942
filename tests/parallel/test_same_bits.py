"""The same bits from real processes, in a few settings; unit/training/test_same_bits.py has the wide table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cases import first_of
from tests.parallel.launch import records, result, summary, train

QUICK = ("--epochs", 2, "--batch-size", 100, "--hidden", 64, 32)
EVERYTHING = (
    *("--batch-norm", "--dropout", 0.2, "--l1", 1e-5, "--l2", 1e-4, "--clip-norm", 1, "--optimizer", "adamw"),
    *("--schedule", "cosine", "--warmup-steps", 5, "--top-k", 3, "--train-metrics", "full"),
)


def compare(tmp_path: Path, ranks: tuple[int | None, ...], *options: object) -> tuple[dict[str, Any], Any]:
    """Trains once on each number of ranks (None: without mpirun), and returns what is the same of all."""
    found = {}
    for number in ranks:
        train(number, tmp_path / f"ranks-{number}", "--quiet", *options)
        found[number] = result(tmp_path / f"ranks-{number}")
    first = found[ranks[0]]
    for number in ranks[1:]:
        assert found[number] == first, f"{number} ranks differ from {ranks[0]}"
    return first


@pytest.fixture(scope="module")
def values_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A regression with several targets, and parts of odd lengths."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((763, 9)).astype(np.float32)
    y = np.stack([x @ rng.standard_normal(9), np.sin(x[:, 0])], 1).astype(np.float32)
    path = tmp_path_factory.mktemp("data") / "values.npz"
    np.savez(path, x_train=x[:501], y_train=y[:501], x_validation=x[501:600], y_validation=y[501:600],
             x_test=x[600:], y_test=y[600:])  # fmt: skip
    return path


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on three ranks."""
    out = tmp_path_factory.mktemp("three") / "run"
    train(3, out, *QUICK, "--quiet", "--communication", "shared")
    return out


def test_four_microbatches(tmp_path: Path, three: Path) -> None:
    """The promise itself: one to four ranks."""
    reported, metrics = compare(tmp_path, (1, 2, 4), *QUICK)
    assert (reported, metrics) == result(three)
    assert reported["status"] == "completed"
    assert [record["step"] for record in metrics] == [17, 34]
    assert reported["steps"] == 34


def test_messages_and_shared_memory(tmp_path: Path, three: Path) -> None:
    assert compare(tmp_path, (3,), *QUICK, "--communication", "mpi") == result(three)


@pytest.mark.parametrize(
    ("optimizer", "hidden"), first_of([("lamb", (200, 60)), ("lars", (200, 60)), ("nesterov", (100,)), ("adam", (60,))])
)
def test_norms_of_blocks_that_ranks_share(tmp_path: Path, optimizer: str, hidden: tuple[int, ...]) -> None:
    """Three ranks share a block, in networks of two blocks and of one: each gradient norm, and what norms scale."""
    options = ("--hidden", *hidden, "--optimizer", optimizer, "--clip-norm", 0.5, "--l1", 1e-5, "--l2", 1e-4)
    train(3, tmp_path / "messages", *QUICK[:4], *options, "--log-every", 1, "--quiet", "--communication", "mpi")
    ran = compare(tmp_path, (None, 2, 3), *QUICK[:4], *options, "--log-every", 1)
    assert ran == result(tmp_path / "messages")
    assert {record["gradient_norm"] > 0 for record in ran[1]} == {True}


@pytest.mark.long
def test_eight_microbatches(tmp_path: Path) -> None:
    compare(tmp_path, (1, 2, 3, 5, 8), *QUICK, "--microbatches", 8)


@pytest.mark.long
@pytest.mark.parametrize("threads", [2, 1])
def test_everything_at_once(tmp_path: Path, threads: int) -> None:
    compare(tmp_path, (None, 3), *QUICK, *EVERYTHING, "--threads", threads, "--microbatches", 8)


def test_threads_and_ranks(tmp_path: Path) -> None:
    for ranks, threads in ((None, 1), (2, 2)):
        train(ranks, tmp_path / f"{ranks}-{threads}", *QUICK, *EVERYTHING, "--threads", threads, "--quiet")
    assert result(tmp_path / "None-1") == result(tmp_path / "2-2")


def test_rounded_sums_and_parameters(tmp_path: Path) -> None:
    """In shared memory, and in messages where each rank has whole groups; stopped, and gone on with elsewhere."""
    options = (*QUICK, "--optimizer", "adam", "--wire", "bfloat16", "--wire-groups")
    found = compare(tmp_path, (None, 1, 2, 4), *options, 2)
    train(2, tmp_path / "messages", "--quiet", *options, 2, "--communication", "mpi")
    assert result(tmp_path / "messages") == found
    train(2, tmp_path / "stopped", "--quiet", *options, 2, "--max-steps", 5, "--communication", "mpi")
    train(4, tmp_path / "stopped", "--quiet", *options, 2)
    assert summary(tmp_path / "stopped")["parameters_sha256"] == found[0]["parameters_sha256"]
    printed = train(4, tmp_path / "finer", *options, 4, "--communication", "mpi").out
    assert "the sums of 4 groups of microbatches and the parameters rounded to bfloat16" in " ".join(printed.split())
    train(None, tmp_path / "alone", "--quiet", *options, 4)
    assert result(tmp_path / "finer") == result(tmp_path / "alone") != found


@pytest.mark.parametrize("optimizer", ["lars", "lamb"])
def test_norms_of_layers(tmp_path: Path, optimizer: str) -> None:
    """Each rank sees a part of a layer, which is as wide as three blocks, and the norm is that of all."""
    options = (
        *("--optimizer", optimizer, "--epochs", 1, "--batch-size", 200, "--hidden", 600, "--weight-decay", 0.01),
        *("--clip-norm", 0.5),
    )
    found = compare(tmp_path, (None, 1, 2, 3, 4), *options)
    for ranks, threads in ((3, 1), (2, 2)):
        out = tmp_path / f"messages-{ranks}"
        train(ranks, out, "--quiet", *options, "--communication", "mpi", "--threads", threads)
        assert result(out) == found
    train(3, tmp_path / "stopped", "--quiet", *options, "--max-steps", 5)
    train(2, tmp_path / "stopped", "--quiet", *options)
    assert summary(tmp_path / "stopped")["parameters_sha256"] == found[0]["parameters_sha256"]


@pytest.mark.long
def test_images(tmp_path: Path) -> None:
    listed = "conv 6 3x3, pool 2, relu, batch-norm, channel-dropout 0.2, conv 8 3x3 same stride 2, relu, dense 10"
    options = ("--model", listed, "--epochs", 2, "--batch-size", 100, "--l2", 1e-4)
    reported, _ = compare(tmp_path, (None, 1, 2, 3, 4), *options)
    assert reported["validation_accuracy"] > 0.3
    train(2, tmp_path / "threads", "--quiet", *options, "--threads", 2)
    assert result(tmp_path / "threads")[0] == reported


@pytest.mark.long
def test_float64_and_replacement(tmp_path: Path) -> None:
    compare(tmp_path, (None, 4), *QUICK, "--dtype", "float64", "--sampling", "replacement", "--optimizer", "rmsprop")


@pytest.mark.long
def test_last_minibatch_of_one_example(tmp_path: Path) -> None:
    """1,617 training examples: 16 minibatches of 101, and one example left over."""
    reported, _ = compare(
        tmp_path, (2, 3), "--epochs", 1, "--batch-size", 101, "--batch-norm", "--optimizer", "nesterov"
    )
    assert reported["steps"] == 17


@pytest.mark.long
def test_batches_of_one(tmp_path: Path) -> None:
    compare(tmp_path, (None, 4), "--max-steps", 60, "--batch-size", 1, "--lr", 0.01, "--no-shuffle")


@pytest.mark.long
def test_full_batch(tmp_path: Path) -> None:
    reported, _ = compare(tmp_path, (None, 3), "--epochs", 5, "--batch-size", "full", "--optimizer", "adagrad")
    assert reported["steps"] == 5


AUGMENTED = ("--augment", "shift", 1, "flip", "--expand", "shifts", "--epochs", 2, "--batch-size", 200, "--hidden", 30)


@pytest.mark.long
def test_augmented_images(tmp_path: Path) -> None:
    reported, _ = compare(tmp_path, (1, 2, 4), *AUGMENTED)
    assert reported["steps"] == 2 * -(-5 * 1617 // 200)
    assert reported["validation_accuracy"] > 0.4  # mirrored digits are hard to read


@pytest.mark.long
def test_augmented_images_after_a_stop(tmp_path: Path) -> None:
    """Stopped in mid-epoch and gone on with on other ranks, every example comes out as if nothing had happened."""
    for ranks, out in ((4, "whole"), (2, "run")):
        more = () if out == "whole" else ("--max-steps", 53)
        train(ranks, tmp_path / out, *AUGMENTED, *more)
    assert summary(tmp_path / "run")["steps"] == 53
    done = train(1, tmp_path / "run", *AUGMENTED)
    assert "from step 53" in done.out
    assert result(tmp_path / "run") == result(tmp_path / "whole")


@pytest.mark.long
def test_drop_last(tmp_path: Path) -> None:
    reported, _ = compare(tmp_path, (None, 4), "--epochs", 1, "--batch-size", 100, "--drop-last")
    assert reported["steps"] == 16


@pytest.mark.long
def test_regression_with_its_own_test_set(tmp_path: Path, values_npz: Path) -> None:
    reported, metrics = compare(
        tmp_path, (None, 2, 3), "--dataset", values_npz, "--epochs", 3, "--batch-size", 50, "--optimizer", "adam"
    )
    assert reported["test_r2"] == metrics[reported["best_epoch"] - 1]["test_r2"]
    assert 0 < reported["test_loss"] < metrics[0]["test_loss"]


@pytest.mark.long
def test_generated_data_without_validation(tmp_path: Path) -> None:
    options = ("--dataset", "xor", "--validation-fraction", 0, "--epochs", 50, "--output-activation", "sigmoid")
    reported, metrics = compare(tmp_path, (None, 4), *options, "--activation", "sigmoid", "--hidden", 4, "--lr", 1)
    assert reported["validation_loss"] is None
    assert reported["best_epoch"] is None
    assert len(metrics) == 50


def test_what_may_differ_is_in_run_alone(three: Path) -> None:
    lines = (three / "metrics.jsonl").read_text()
    assert "examples_per_second" in lines
    assert not any("seconds" in key or "ranks" in key for record in records(three) for key in record)
    assert not {"wall_seconds", "examples_per_second", "ranks", "hosts", "versions"} & set(summary(three))
