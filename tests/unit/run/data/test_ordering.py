"""The order of a run's epochs: by blocks in windows, and without an array of all examples where there are many."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd import ConfigurationError, DataError, fit
from distsgd.core.random import permutation
from distsgd.data.orders import BlockOrder
from distsgd.data.permutation import KeyedPermutation
from tests.cases import first_of

X = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
Y = np.arange(1000) % 3
PARAMS = {"w": np.zeros(1, np.float32)}


def visited(x: Any, y: Any, **options: Any) -> Any:
    """The rows that a run visits, in their order, and its result."""
    seen: dict[int, list[int]] = {}

    def loss(params: Any, grads: Any, batch: Any) -> tuple[float, int]:
        if batch.training:
            seen[batch.step] = batch.indices.tolist()  # the first minibatch is computed more than once
        grads["w"] = np.zeros(1, np.float32)
        return 0.0, len(batch.indices)

    result = fit(loss, x, y, params=PARAMS, microbatches=1, early_stopping="none", **options)
    return [row for step in sorted(seen) for row in seen[step]], result


def test_blocks_in_windows() -> None:
    """A row takes 4 · 4 + 8 bytes, so that half of 40 kB holds 833 rows, a 32nd 26: blocks of 16, windows of 52."""
    seen, _ = visited(X, Y, epochs=2, batch_size=100, shuffle_buffer="40KB", seed=4)
    order = BlockOrder(1000, 16, 52, 4)
    assert seen == np.concatenate([order.indices(epoch, 0, 1000) for epoch in (0, 1)]).tolist()
    seen, _ = visited(X, Y, epochs=1, batch_size=100, shuffle_buffer="40KB", order_block=60, seed=4)
    assert seen == BlockOrder(1000, 60, 13, 4).indices(0, 0, 1000).tolist()
    seen, _ = visited(X, Y, epochs=1, batch_size=100, shuffle_buffer="40KB", shuffle=False)
    assert seen == list(range(1000))
    wide, _ = visited(X, Y, epochs=1, batch_size=100, shuffle_buffer="40KB", dtype="float64", weights=np.ones(1000))
    assert wide == BlockOrder(1000, 8, 52, 0).indices(0, 0, 1000).tolist(), "48 bytes a row"


def test_whole_blocks_are_split_off() -> None:
    options: dict[str, Any] = {"epochs": 1, "batch_size": 50, "shuffle_buffer": "40KB", "order_block": 30}
    seen, result = visited(X, Y, **options, validation_fraction=0.2, split_seed=3)
    blocks = sorted(permutation(34, 3, "validation blocks")[:7])
    expected = [row for row in range(1000) if row // 30 in blocks]
    assert result.validation_rows.tolist() == expected
    assert sorted(seen + expected) == list(range(1000))
    training = np.setdiff1d(np.arange(1000), expected)
    assert seen == training[BlockOrder(len(training), 30, 27, 0).indices(0, 0, len(training))].tolist()
    seen, result = visited(X, Y, **options, validation_last=45)
    assert result.validation_rows.tolist() == list(range(955, 1000))
    assert seen == BlockOrder(955, 30, 27, 0).indices(0, 0, 955).tolist()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"shuffle_buffer": "1KB", "order_block": 100}, r"takes 2.4 kB.*give at least 1MB, or a smaller order_block"),
    ({"shuffle_buffer": "40B"}, r"shuffle_buffer 40B: an example takes"),
    ({"shuffle_buffer": "2KB"}, r"a window has 41 examples, fewer than a minibatch of 50; give at least 1MB"),
    ({"shuffle_buffer": "1MB", "sampling": "replacement"}, "which sampling replacement doesn't; leave one of them out"),
    ({"shuffle_buffer": "1MB", "batch_size": "full"}, "which batch_size full doesn't"),
    ({"shuffle_buffer": "1MB", "expand": "shifts"}, "which expand shifts doesn't"),
    ({"order_block": 5}, "order_block: goes with --shuffle-buffer alone"),
    (
        {"shuffle_buffer": "1MB", "validation_fraction": 0.1},
        "and 1,000 examples are 2 of 512; give a smaller",
    ),
    ({"shuffle_buffer": "1MB", "validation_last": 1000}, "validation_last: expected fewer than the 1000"),
    *(({"shuffle_buffer": text}, "such as 256MB or 1GB") for text in ("12", "0MB", "-1GB", "1EB", "many", "1e3MB")),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        fit("softmax", X, Y, **{"batch_size": 50, "epochs": 1, **options})


def test_a_run_by_blocks_is_resumed_in_the_middle_of_an_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {
        "batch_size": 60, "shuffle_buffer": "10KB", "validation_fraction": 0.2, "standardize": True, "epochs": 3,
    }  # fmt: skip
    whole = fit("mlp", X, Y, **options)
    out = tmp_path / "run"
    fit("mlp", X, Y, **options, max_steps=19, checkpoint_every="4", out=out)
    again = fit("mlp", X, Y, **options, out=out)
    assert again.summary["parameters_sha256"] == whole.summary["parameters_sha256"]
    with pytest.raises(Exception, match="shuffle_buffer"):
        fit("mlp", X, Y, **{**options, "shuffle_buffer": "20KB"}, out=out)


@pytest.mark.parametrize(("count", "keyed"), first_of([(1 << 24, True), ((1 << 24) - 1, False)]))
def test_many_examples_have_a_keyed_order(count: int, keyed: bool) -> None:
    """From 16,777,216 on; below, the order that they always had."""
    x, y = np.zeros((count, 1), np.uint8), np.zeros(count, np.float32)
    seen, _ = visited(x, y, batch_size=1000, max_steps=2, epochs=1, seed=6)
    expected = (
        KeyedPermutation(count, 6, "epoch order, keyed", 0)(np.arange(2000))
        if keyed
        else permutation(count, 6, "epoch order", 0)[:2000]
    )
    assert seen == expected.tolist()


def test_draws_by_weight() -> None:
    """Weights say how often, and no longer multiply losses."""
    weights = np.where(np.arange(1000) < 100, 6.0, 0.5)
    seen, _ = visited(X, Y, weights=weights, epochs=1, batch_size=100, sampling="weighted")
    times = np.bincount(seen, minlength=1000)
    shares = 1000 * weights / weights.sum()
    assert ((np.floor(shares) <= times) & (times <= np.ceil(shares))).all()
    assert seen != sorted(seen)
    options: dict[str, Any] = {"epochs": 2, "batch_size": 100, "sampling": "weighted"}
    one, other = (fit("softmax", X, Y, weights=weights * scale, **options) for scale in (1, 4))
    assert one.summary["parameters_sha256"] == other.summary["parameters_sha256"]
    seen, result = visited(X, Y, weights=weights, epochs=1, batch_size=90, sampling="weighted", fold="1/10")
    assert len(seen) == 900
    assert not set(seen) & set(result.validation_rows.tolist())


def test_draws_by_class() -> None:
    y = np.repeat([0, 1, 2], [900, 90, 10])
    options: dict[str, Any] = {"epochs": 1, "batch_size": 100, "sampling": "balanced"}
    one_hot = np.eye(3, dtype=np.float32)[y]
    labels, probabilities = (fit("softmax", X, one, loss="softmax-cross-entropy", **options) for one in (y, one_hot))
    for name, array in labels.params.items():
        np.testing.assert_allclose(array, probabilities.params[name], atol=1e-6)
    seen, _ = visited(X, y, **options)
    assert sorted(np.bincount(y[seen])) == [333, 333, 334]
    times = np.bincount(seen, minlength=1000)
    assert set(times[y == 2]) <= {33, 34}
    assert (set(times[y == 1]), set(times[y == 0])) == ({3, 4}, {0, 1})


def test_folds_and_groups_of_a_fit() -> None:
    y = np.repeat([0, 1], [600, 400])

    def chosen(**options: Any) -> Any:
        return fit("softmax", X, y, epochs=0, **options).validation_rows

    parts = [chosen(fold=f"{part}/3") for part in (1, 2, 3)]
    assert sorted(np.concatenate(parts)) == list(range(1000))
    assert all(np.bincount(y[rows])[0] == 200 and np.bincount(y[rows])[1] in (133, 134) for rows in parts)
    blocks = [chosen(fold=f"{part}/3", shuffle_buffer="1MB", order_block=7) for part in (1, 2, 3)]
    assert sorted(np.concatenate(blocks)) == list(range(1000))
    assert all(len(set(rows // 7)) in (47, 48) for rows in blocks)
    group = np.array([f"patient {row % 40}" for row in range(1000)])
    rows = chosen(group=group, validation_fraction=0.2)
    assert len(rows) == 200
    assert len(set(group[rows])) == 8
    dealt = [chosen(group=group.tolist(), fold=f"{part}/3") for part in (1, 2, 3)]
    assert [len(set(group[rows])) for rows in dealt] == [14, 13, 13]
    assert sorted(np.concatenate(dealt)) == list(range(1000))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"sampling": "weighted"}, "draws examples by their weights, and these have none"),
    ({"sampling": "balanced", "shuffle": False}, "shuffle: --sampling balanced draws in a new order"),
    ({"sampling": "balanced", "loss": "squared-error"}, "sampling balanced: needs classes, and the targets are values"),
    ({"fold": "2/3", "validation_fraction": 0.2}, "validation_fraction: would change nothing beside fold"),
    ({"fold": "2/3", "validation_last": 3}, "validation_last and fold exclude each other"),
    ({"fold": "2/3", "validation": (X, Y)}, "fold: would change nothing beside validation data"),
    ({"validation_last": 3, "validation": (X, Y)}, "validation_last: would change nothing beside validation data"),
    ({"fold": "1001/1001"}, "fold 1001/1001: expected at most as many parts as examples, 1,000"),
    ({"fold": "1/2", "shuffle_buffer": "1MB", "order_block": 1000}, "1,000 examples are 1 of 1,000"),
    ({"group": Y}, "group: says which examples are split off together, and none are"),
    ({"group": Y, "fold": "1/4"}, "of 3 groups, too few for --fold 1/4"),
    ({"group": Y[:9], "fold": "1/2"}, "group: expected 1000 entries, one an example, got 9"),
    ({"group": Y / 2, "fold": "1/2"}, "group: expected whole numbers or texts"),
    (
        {"group": Y, "fold": "1/2", "shuffle_buffer": "1MB"},
        "whole groups can't be split off with shuffle_buffer",
    ),
    ({"group": Y, "validation_last": 9}, "group: whole groups can't be split off with validation_last"),
    *(
        ({"fold": text}, "fold: expected one of two or more parts")
        for text in ("2", "0/3", "4/3", "1/1", "a/b", "-1/2")
    ),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_splits_and_draws_that_are_refused(options: dict[str, Any], message: str) -> None:
    y = Y.astype(float) if "loss" in options else Y
    with pytest.raises((ConfigurationError, DataError), match=message):
        fit("softmax", X, y, **{"batch_size": 50, "epochs": 1, **options})


def test_the_column_of_groups_of_a_table(tmp_path: Path) -> None:
    lines = [f"{x:.6f},{row % 2},p{row % 20}" for row, x in enumerate(X[:200, 0].tolist())]
    (tmp_path / "d.csv").write_text("\n".join(["a,y,who", *lines]) + "\n")

    def train(*more: str) -> subprocess.CompletedProcess[str]:
        options = ("--dataset", "d.csv", "--y", "y", "--epochs", "0", "--out", "run", "--resume", "never", *more)
        line = [sys.executable, "-m", "distsgd.train", *options]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=100)

    assert (done := train("--group", "who", "--fold", "2/4")).returncode == 0, done.stderr
    rows = np.load(tmp_path / "run" / "validation_rows.npy")
    assert (len(rows), len({row % 20 for row in rows.tolist()})) == (50, 5)
    assert "50 of 200 training examples, 5 of 20 groups: --fold 2/4" in " ".join(done.stdout.split())
    done = train("--group", "who", "--validation-fraction", "0")
    assert done.returncode == 2
    assert "group: says which examples are split off together, and none are" in done.stderr
