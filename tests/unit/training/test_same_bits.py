"""The promise in many settings: parameters, losses and metrics have the same bits on any number of (thread) ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd.core.device import Device
from distsgd.core.random import normal, uniform
from distsgd.optim.registry import OPTIMIZERS
from distsgd.parallel import Communicator
from distsgd.parallel.reduction import BLOCK
from distsgd.run.fit import fit
from distsgd.run.trained.trained_model import Result
from tests.cases import first_of
from tests.threads import run_on_threads

EXAMPLES, FEATURES, CLASSES = 301, 24, 5
HIDDEN = (300, 70)  # 29,000 parameters: two blocks, so that two ranks own something and others nothing
SIZES = {4: (1, 2, 3, 4), 8: (1, 2, 3, 5, 8)}

X = normal((EXAMPLES, FEATURES), 1, "x").astype(np.float32)
LABELS = np.argmax(X[:, :CLASSES], axis=1).astype(np.int64)
VALUES = (X[:, :3] * 0.5 + np.square(X[:, 3:6])).astype(np.float32)


def same(results: Sequence[Result]) -> None:
    """All results have the same bits, and training has done something."""
    first = results[0]
    for other in results[1:]:
        for name in first.params:
            assert other.params[name].tobytes() == first.params[name].tobytes(), name
        for name in first.state:
            assert other.state[name].tobytes() == first.state[name].tobytes(), name
        assert without_run(other.summary) == without_run(first.summary)
    assert np.isfinite(first.summary["train_loss"])


def without_run(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "run"}


def train(size: int, train: Any = (X, LABELS), model: Any = "mlp", hosts: Any = None, **options: Any) -> list[Result]:
    """fit on `size` thread ranks."""
    options = {"epochs": 2, "batch_size": 100, "hidden": HIDDEN, "validation_fraction": 0.0, **options}

    def rank(communicator: Communicator) -> Result:
        return fit(model, train, communicator=communicator, **options)

    return run_on_threads(size, rank, hosts)


def check(microbatches: int = 4, **options: Any) -> Result:
    """Trains on every number of ranks of this number of microbatches, once with messages, and compares each rank of
    each.
    """
    found = [train(size, microbatches=microbatches, **options) for size in SIZES[microbatches]]
    found.append(train(3, microbatches=microbatches, communication="mpi", **options))
    histories = [[without_run(record) for record in results[0].history] for results in found]
    assert all(history == histories[0] for history in histories)
    same([result for results in found for result in results])
    return found[0][0]


@pytest.mark.parametrize("microbatches", first_of([4, 8]))
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_every_optimizer(optimizer: str, microbatches: int) -> None:
    result = check(microbatches, optimizer=optimizer, weight_decay=0.01)
    assert sum(array.size for array in result.params.values()) > BLOCK


SETTINGS: dict[str, dict[str, Any]] = {
    "float64": {"dtype": "float64"},
    "validation": {"validation_fraction": 0.3, "train_metrics": "full", "top_k": 2},
    "validation in mid-epoch": {"validation_fraction": 0.3, "validate_every": "2", "log_every": 1},
    "validation on rank 0": {"validation_fraction": 0.3, "validation_on": "rank0"},
    "penalties": {"l1": 1e-4, "l2": 1e-3, "weight_decay": 0.01, "penalize": ("*",)},
    "clipping": {"clip_norm": 0.05, "l2": 1e-3, "log_every": 1},
    "frozen": {"freeze": ("dense1.*",), "clip_norm": 0.1},
    "batch normalization": {"batch_norm": True, "activation": "gelu"},
    "batch normalization, float64": {"batch_norm": True, "dtype": "float64", "activation": "tanh"},
    "dropout": {"dropout": 0.4, "activation": "softplus"},
    "everything": {
        "batch_norm": True, "dropout": 0.2, "l1": 1e-4, "l2": 1e-4, "clip_norm": 0.5, "optimizer": "adamw",
        "schedule": "cosine", "warmup_steps": 3, "validation_fraction": 0.2, "label_smoothing": 0.1,
    },
    "full batch": {"batch_size": "full", "epochs": 4},
    "more than there are": {"batch_size": 1000, "epochs": 3},
    "replacement": {"sampling": "replacement", "batch_size": 37},
    "no shuffle": {"shuffle": False, "batch_size": 64},
    "drop last": {"drop_last": True, "batch_size": 64},
    "sigmoid": {"activation": "sigmoid", "weight_initializer": "glorot(4)", "bias": False},
    "leaky": {"activation": "leaky-relu", "class_weights": (1.0, 2.0, 0.5, 1.0, 0.0)},
    "early stopping": {"validation_fraction": 0.3, "epochs": 6, "patience": 1, "min_delta": 0.5},
    "patience rule": {
        "validation_fraction": 0.3, "early_stopping": "patience", "patience": 6, "monitor": "validation_error",
        "epochs": 20,
    },
    "target": {"validation_fraction": 0.3, "target": "validation_accuracy=0.3", "epochs": 10},
    "softmax": {"model": "softmax", "hidden": (128, 128), "learning_rate": 0.5},
    "seven steps": {"max_steps": 7, "validate_every": "2", "validation_fraction": 0.2},
}  # fmt: skip


@pytest.mark.parametrize("setting", list(SETTINGS))
def test_settings(setting: str) -> None:
    check(4, **SETTINGS[setting])


@pytest.mark.parametrize("setting", first_of(["everything", "batch normalization", "clipping", "validation"]))
def test_settings_on_eight_microbatches(setting: str) -> None:
    check(8, **SETTINGS[setting])


@pytest.mark.parametrize("batch_size", [1, 3, 7, 150, 300])
@pytest.mark.parametrize("microbatches", first_of([4, 8]))
def test_batch_sizes_that_nothing_divides(batch_size: int, microbatches: int) -> None:
    result = check(microbatches, batch_size=batch_size, epochs=1, max_steps=30, batch_norm=batch_size >= 150)
    assert result.summary["steps"] == min(30, -(-EXAMPLES // batch_size))


@pytest.mark.parametrize("microbatches", first_of([4, 8]))
def test_last_minibatch_of_one_example(microbatches: int) -> None:
    assert EXAMPLES % 100 == 1
    result = check(microbatches, batch_size=100, epochs=2, batch_norm=True, dropout=0.2)
    assert result.summary["steps"] == 8


@pytest.mark.parametrize("output", ["linear", "sigmoid"])
def test_regression(output: str) -> None:
    values = VALUES if output == "linear" else (VALUES > 0).astype(np.float32)
    result = check(4, train=(X, values), output_activation=output, validation_fraction=0.3, learning_rate=0.001)
    assert "validation_r2" in result.summary


def test_several_yes_or_no_targets() -> None:
    check(4, train=(X, (VALUES > 0).astype(np.float32)), loss="binary-cross-entropy")


def test_sample_weights() -> None:
    weights = uniform((EXAMPLES,), 3, "weights").astype(np.float32)
    weighted = check(4, train=(X, LABELS, weights), validation_fraction=0.3)
    assert weighted.summary["train_loss"] != check(4, validation_fraction=0.3).summary["train_loss"]


def test_images_of_bytes() -> None:
    images = (uniform((EXAMPLES, 6, 4), 4, "images") * 256).astype(np.uint8)
    result = check(4, train=(images, LABELS), validation_fraction=0.2)
    assert np.abs(result.predict(images)).max() <= 1.0


IMAGES = normal((EXAMPLES, 2, 9, 8), 5, "images").astype(np.float32)
LISTED = (
    "conv 6 3x3, pool 2, relu, batch-norm, channel-dropout 0.2, conv 8 3x2 same stride 2, batch-norm, tanh, "
    "average-pool 2 stride 1, dropout 0.3, dense"
)
DEFAULTS: dict[str, Any] = {"hidden": (128, 128), "batch_size": 75}


@pytest.mark.parametrize(
    "model", [LISTED, "network3: conv 3 3x3, pool 2, sigmoid, dense 9, sigmoid, dense", "resnet20"]
)
def test_images(model: str) -> None:
    steps = {"max_steps": 3, "validation_fraction": 0.2} if model == "resnet20" else {"l2": 1e-4, "clip_norm": 0.5}
    result = check(4, train=(IMAGES, LABELS), model=model, **DEFAULTS, **steps)
    assert ("batchnorm" in str(list(result.state))) == (not model.startswith("network3"))


@pytest.mark.long
def test_images_on_eight_microbatches_and_in_threads() -> None:
    check(8, train=(IMAGES, LABELS), model=LISTED, validation_fraction=0.3, **DEFAULTS)
    data, options = (IMAGES, LABELS), {"model": LISTED, "microbatches": 8, **DEFAULTS}
    runs = [(1, 1, "auto"), (1, 3, "auto"), (2, 2, "shared"), (3, 2, "mpi")]
    same([
        result
        for size, threads, kind in runs
        for result in train(size, data, threads=threads, communication=kind, **options)
    ])  # fmt: skip


@pytest.mark.parametrize("batch_size", [1, 5, 150])
def test_images_in_microbatches_of_any_length(batch_size: int) -> None:
    model = LISTED if batch_size >= 4 * 8 else LISTED.replace("batch-norm, ", "")
    check(4, train=(IMAGES, LABELS), model=model, hidden=(128, 128), batch_size=batch_size, epochs=1, max_steps=8)


AUGMENTED: dict[str, dict[str, Any]] = {
    "augmented": {"augment": ("shift 1", "flip"), "validation_fraction": 0.2},
    "expanded": {"expand": "shifts", "validation_fraction": 0.2, "train_metrics": "full"},
    "both": {"augment": ("crop 2",), "expand": "shifts", "sampling": "replacement"},
}


@pytest.mark.parametrize("kind", first_of(["bytes", "floats"]))
@pytest.mark.parametrize("setting", list(AUGMENTED))
def test_augmented_images(setting: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = uniform((EXAMPLES, 2, 6, 4), 4, "images") * 256
    data = (images.astype(np.uint8 if kind == "bytes" else np.float32), LABELS)
    options = {"hidden": (20,), **AUGMENTED[setting]}
    together = check(4, train=data, **options)
    assert together.summary["parameters_sha256"] != check(4, train=data, hidden=(20,)).summary["parameters_sha256"]
    monkeypatch.setattr(Device, "gather_limit", 0)  # every microbatch alone, as with large images
    same([together, *train(2, data, threads=2, **options)])


@pytest.mark.parametrize("threads", first_of([3, 2, 8]))
@pytest.mark.parametrize("setting", ["everything", "clipping", "batch normalization", "replacement"])
def test_threads_of_a_rank(setting: str, threads: int) -> None:
    options = SETTINGS[setting]
    runs = [(1, 1, "auto"), (1, threads, "auto"), (3, threads, "shared"), (3, threads, "mpi")]
    results = [
        train(size, microbatches=8, threads=count, communication=kind, **options)[0] for size, count, kind in runs
    ]
    same(results)
    assert [result.summary["run"]["threads"] for result in results] == [1, threads, *[min(threads, 2)] * 2]


@pytest.mark.parametrize("communication", ["shared", "mpi"])
@pytest.mark.parametrize("microbatches", first_of([7, 3, 5, 6, 11]))
def test_more_microbatches_than_examples(microbatches: int, communication: str) -> None:
    """Empty microbatches, in trees that aren't full, cut anywhere between ranks and threads."""
    options: dict[str, Any] = {"microbatches": microbatches, "epochs": 1, "hidden": (6,)}
    data = (X[:13], LABELS[:13])
    for batch_size in (1, 2, 4, 5, 9):
        runs = [(1, 1), (1, 3), *((size, threads) for size in (2, 3, microbatches) for threads in (1, 2))]
        results = [
            train(size, data, batch_size=batch_size, threads=threads, communication=communication, **options)
            for size, threads in runs
        ]
        same([result for ranks in results for result in ranks])


@pytest.mark.parametrize(
    "options",
    [
        {"batch_norm": True, "batch_size": 70},
        {"clip_norm": 0.1, "optimizer": "adam", "l2": 1e-3, "dropout": 0.2},
        {"dtype": "float64", "threads": 2, "validation_fraction": 0.3},
    ],
    ids=["batch norm", "clipping", "threads"],
)
def test_ranks_on_several_hosts(options: dict[str, Any]) -> None:
    alone = train(1, microbatches=8, **options)
    for hosts in ("aab", "abbb", "aaabbcc", "aaaabbbb"):
        same([*alone, *train(len(hosts), hosts=tuple(hosts), microbatches=8, **options)])


def test_going_on_with_other_hosts(tmp_path: Path) -> None:
    options: dict[str, Any] = {"microbatches": 8, "optimizer": "adam", "batch_norm": True}
    whole = train(1, **options)[0]
    for steps, hosts in ((3, "aabbb"), (5, "a"), (7, "aaabcccc"), (None, "abb")):
        last = train(len(hosts), hosts=tuple(hosts), out=str(tmp_path / "run"), max_steps=steps, **options)
    assert last[0].summary["parameters_sha256"] == whole.summary["parameters_sha256"]


def test_microbatches_are_what_results_depend_on() -> None:
    hashes = {
        microbatches: train(1, microbatches=microbatches)[0].summary["parameters_sha256"] for microbatches in (1, 4, 8)
    }
    assert len(set(hashes.values())) == 3


def test_seeds_are_what_results_depend_on() -> None:
    hashes = {seed: train(1, seed=seed)[0].summary["parameters_sha256"] for seed in (0, 1)}
    assert len(set(hashes.values())) == 2
