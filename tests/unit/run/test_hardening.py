"""What must not pass silently: numbers that aren't finite, other data, other arrays, arguments without effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd.core.errors import (
    ConfigurationError,
    DataError,
    DistsgdError,
    NonFiniteError,
    RunFolderError,
)
from distsgd.core.layout import Views
from distsgd.core.random import normal
from distsgd.nn.batch import Batch
from distsgd.parallel import Communicator
from distsgd.run.config import TrainConfig, resolved
from distsgd.run.data import placement
from distsgd.run.data.loading import load_data
from distsgd.run.fit import fit
from distsgd.training.metrics import UserMetric
from tests.threads import run_on_threads

X = normal((120, 6), 1, "x").astype(np.float32)
LABELS = (X[:, 0] > 0).astype(np.int64)
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 30}


def bad_gradient(step: int) -> Any:
    def function(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        grads["w"][...] = np.nan if batch.step == step and batch.microbatch == 3 else 0.0
        return 1.0, len(batch)

    return function


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("step", [0, 2, 7])  # the first, one in the middle, the very last
def test_a_gradient_that_is_not_finite_ends_the_run_and_saves_nothing(tmp_path: Path, ranks: int, step: int) -> None:
    def run(communicator: Communicator) -> str:
        with pytest.raises(NonFiniteError) as reported:
            fit(
                bad_gradient(step), (X, LABELS), params={"w": np.zeros(4)}, communicator=communicator,
                out=str(tmp_path / "run"), optimizer="sgd", checkpoint_every="1", **QUICK,
            )  # fmt: skip
        return str(reported.value)

    (text,) = set(run_on_threads(ranks, run))
    # The microbatch's gradient is added to that of microbatch 2 where one rank has both.
    microbatches = "microbatches 2 to 3" if ranks == 1 else "microbatch 3"
    assert text.startswith(f"the gradient is not finite at step {step + 1}, {microbatches} (examples ")
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert saved == [f"step-{number}.safetensors" for number in range(max(1, step - 2), step + 1)]


def test_a_model_may_read_the_parameters_only() -> None:
    def writes(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        params["w"][...] += 1.0
        return 1.0, len(batch)

    with pytest.raises(ValueError, match="read-only"):
        fit(writes, (X, LABELS), params={"w": np.zeros(4)}, **QUICK)


def test_sys_exit_on_one_microbatch_reaches_all_ranks() -> None:
    def leaves(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        if batch.microbatch == 2:
            raise SystemExit(3)
        grads["w"][...] = 0.0
        return 1.0, len(batch)

    def run(communicator: Communicator) -> int:
        with pytest.raises(SystemExit, match=r"(?s)3.*microbatch 2$") as reported:
            fit(leaves, (X, LABELS), params={"w": np.zeros(4)}, communicator=communicator, **QUICK)
        return int(reported.value.code)

    assert run_on_threads(3, run) == [3, 3, 3]


def test_other_contents_of_the_same_shape_are_not_the_same_run(tmp_path: Path) -> None:
    options = {"out": str(tmp_path / "run"), **QUICK}
    fit("softmax", (X, LABELS), **{**options, "max_steps": 2})
    with pytest.raises(RunFolderError, match="not what the run began with: contents"):
        fit("softmax", (X[::-1].copy(), LABELS), **options)
    with pytest.raises(RunFolderError, match="not what the run began with: contents"):
        fit("softmax", (X, 1 - LABELS), **options)
    assert fit("softmax", (X, LABELS), **options).summary["status"] == "completed"


def test_ranks_with_other_arrays_get_a_message() -> None:
    def run(communicator: Communicator) -> str:
        x = X[:-1] if communicator.rank == 1 else X
        with pytest.raises(DataError) as reported:
            fit("softmax", (x, LABELS[: len(x)]), communicator=communicator, **QUICK)
        return str(reported.value)

    reported = run_on_threads(2, run)
    assert reported[0] == reported[1]
    assert reported[0].startswith("fit: train x differs between ranks: float32 (120, 6), contents ")


def test_hosts_with_other_files_get_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each host reads its own files: here the second has another label, as from an older copy."""

    def reads(communicator: Communicator, sources: Any, **options: Any) -> Any:
        arrays = {name: np.array(array) for name, array in place_together(communicator, sources, **options).items()}
        if communicator.hosts[communicator.rank] == "b":
            arrays["y"][7] = 1 - arrays["y"][7] % 2
        return arrays

    config = resolved(TrainConfig(dataset="moons"))
    place_together = placement.place_together
    assert len(run_on_threads(3, lambda c: load_data(c, config).name, ("a", "b", "b"))) == 3
    monkeypatch.setattr(placement, "place_together", reads)

    def run(communicator: Communicator) -> str:
        with pytest.raises(DataError) as reported:
            load_data(communicator, config)
        return str(reported.value)

    assert (
        run_on_threads(3, run, ("a", "b", "b"))
        == ["moons: b has other contents than a; give all hosts the same files"] * 3
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"optimizer": distsgd.Zeros}, "optimizer must be an instance of distsgd's Optimizer"),
        ({"schedule": 3}, "schedule must be an instance of distsgd's Schedule"),
        ({"optimizer": distsgd.Adam(1e-3), "learning_rate": 0.5}, r"learning_rate is the optimizer's.*Adam"),
        ({"callbacks": [3]}, "callbacks must be an instance of distsgd's Callback"),
        ({"metrics": [3]}, "metrics must be an instance of distsgd's Metric"),
        ({"dry_run": True}, "unknown option 'dry_run'"),
        (
            {"monitor": "validation_beauty", "validation_fraction": 0.1},
            "monitor: expected one of validation_loss, .*, got 'validation_beauty'",
        ),
        ({"target": "train_loss=1", "validation_fraction": 0.1}, "target: expected one of validation_loss"),
    ],
)
def test_arguments_without_sense(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        fit("softmax", (X, LABELS), **arguments, **QUICK)


def test_numpy_numbers_are_numbers() -> None:
    assert fit("softmax", (X, LABELS), epochs=np.int64(1), learning_rate=np.float32(0.5)).summary["epochs"] == 1


def test_targets_that_are_no_probabilities() -> None:
    model = distsgd.Sequential([distsgd.Dense(6, 2)])
    with pytest.raises(DataError, match="must add up to 1"):
        fit(model, (X, np.full((120, 2), 0.7)), loss="softmax-cross-entropy", **QUICK)
    with pytest.raises(DataError, match="must be probabilities from 0 to 1"):
        fit(model, (X, np.full((120, 2), 1.5)), loss="binary-cross-entropy", **QUICK)


def test_an_own_metric_says_by_its_name_which_way_is_better() -> None:
    def sure(outputs: Any, y: Any) -> Any:
        return np.abs(outputs).max(axis=0)

    rising = fit(
        "softmax", (X, LABELS), metrics=[UserMetric("top_accuracy", sure)], monitor="validation_top_accuracy",
        epochs=5, batch_size=30, validation_fraction=0.1,
    )  # fmt: skip
    assert rising.summary["best_epoch"] == 5
    with pytest.raises(ConfigurationError, match="validation_beauty"):
        fit(
            "softmax",
            (X, LABELS),
            metrics=[UserMetric("beauty", sure)],
            monitor="validation_beauty",
            validation_fraction=0.1,
            **QUICK,
        )


def test_a_folder_with_a_run_of_its_own_is_not_overwritten_by_another_checkpoint(tmp_path: Path) -> None:
    for name, rate in (("a", 0.1), ("b", 0.2)):
        fit("softmax", (X, LABELS), out=str(tmp_path / name), learning_rate=rate, **QUICK)
    with pytest.raises(RunFolderError, match="holds a run of its own"):
        fit("softmax", (X, LABELS), out=str(tmp_path / "b"), resume=str(tmp_path / "a"), learning_rate=0.1, **QUICK)


def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    class Second(distsgd.Callback):
        def on_start(self, run: Any) -> None:
            with pytest.raises(DistsgdError, match="another process is training in"):
                fit("softmax", (X, LABELS), out=str(tmp_path / "run"), **QUICK)

    fit("softmax", (X, LABELS), out=str(tmp_path / "run"), callbacks=[Second()], **QUICK)
    assert fit("softmax", (X, LABELS), out=str(tmp_path / "run"), epochs=3, batch_size=30).summary["epochs"] == 3
