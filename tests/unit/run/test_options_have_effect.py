"""Every option, with every way of giving a model: the result changes, or the option is refused."""

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
from distsgd.metrics import UserMetric
from distsgd.nn import Activation, Dense, FunctionObjective, Sequential, SoftmaxCrossEntropy, Supervised
from distsgd.optim import SGD, Cosine, Step
from distsgd.run.config import OPTIONS
from distsgd.run.fit_arguments import NOT_FOR_FIT
from tests.cases import first_of

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 4)).astype(np.float32)
Y = (X[:, 0] * X[:, 1] > 0).astype(np.int64)
WEIGHTS = {"w": np.full(4, 0.1)}


def layers() -> Sequential:
    return Sequential([Dense(4, 8), Activation("tanh"), Dense(8, 2)])


def hinge(params: Any, grads: Any, batch: Any) -> tuple[float, int]:
    t = 2.0 * batch.y - 1.0
    margin = 1.0 - t * (params["w"] @ batch.x)
    grads["w"] = batch.x @ np.where(margin > 0, -t, 0).astype(batch.x.dtype)
    return float(np.maximum(margin, 0).sum(dtype=np.float64)), len(batch)


MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "mlp": ("mlp", {}),
    "softmax": ("softmax", {}),
    "list": ("dense 8, tanh, dense", {}),
    "layer": (layers(), {}),
    "supervised": (Supervised(layers(), SoftmaxCrossEntropy(), (4,)), {}),
    "objective": (FunctionObjective(hinge, WEIGHTS, lambda params, batch: (params["w"] @ batch.x)[None]), {}),
    "function": (hinge, {"params": WEIGHTS}),
}
SLOW: dict[str, Any] = {"patience": 4, "monitor": "validation_loss", "epochs": 12, "learning_rate": 1e-3}
LONG: dict[str, Any] = {"epochs": 60, "learning_rate": 0.1, "validation_fraction": 0.5}
# A value that isn't the default, and what else it takes for the option to matter on these data.
OTHER: dict[str, tuple[Any, dict[str, Any]]] = {
    "scale": (2.0, {}), "standardize": (True, {}), "standardize_targets": (True, {}),
    "validation_fraction": (0.3, {}), "validation_last": (20, {}), "split_seed": (9, {}),
    "classes": (("a", "b"), {}), "missing": ("zero", {}),
    "expand": ("shifts", {}), "augment": (("flip",), {}), "hidden": ((5,), {}), "activation": ("tanh", {}),
    "dropout": (0.3, {}), "batch_norm": (True, {}), "weight_initializer": ("normal(0.3)", {}),
    "bias_initializer": ("normal(0.1)", {}), "bias": (False, {}), "output_activation": ("sigmoid", {}),
    "loss": ("squared-error", {}), "label_smoothing": (0.1, {}), "class_weights": ((1.0, 2.0), {}),
    "pos_weight": ((3.0,), {}), "huber_delta": (0.1, {}),
    "quantiles": ((0.3, 0.5), {}), "focal_gamma": (1.0, {}),
    "focal_alpha": (0.25, {}),
    "optimizer": ("adam", {}), "learning_rate": (0.02, {}), "momentum": (0.5, {}), "dampening": (0.5, {}),
    "beta1": (0.5, {"optimizer": "adam"}), "beta2": (0.5, {"optimizer": "adam"}),
    "trust_coefficient": (0.5, {"optimizer": "lars"}),
    "alpha": (0.5, {"optimizer": "rmsprop"}), "epsilon": (0.1, {"optimizer": "adam"}), "weight_decay": (0.1, {}),
    "l1": (0.01, {}), "l2": (0.01, {}), "penalize": (("*",), {}), "freeze": (("*",), {}), "clip_norm": (0.01, {}),
    "schedule": ("cosine", {}), "warmup_steps": (3, {}), "schedule_epochs": (3.0, {}),
    "decay_rate": (0.5, {"schedule": "inverse-time", "decay_epochs": 1.0}),
    "decay_epochs": (2.0, {"schedule": "inverse-time", "decay_rate": 0.5}),
    "decay_factor": (0.5, {"schedule": "exponential", "decay_epochs": 2.0}),
    "staircase": (True, {"schedule": "exponential", "decay_epochs": 2.0, "decay_factor": 0.5}),
    "batch_size": (7, {}), "sampling": ("replacement", {}), "shuffle": (False, {}),
    "shuffle_buffer": ("1KB", {}), "order_block": (4, {"shuffle_buffer": "1KB"}),
    "fold": ("2/4", {}),
    "drop_last": (True, {"batch_size": 7}), "microbatches": (2, {}), "seed": (3, {}), "dtype": ("float64", {}),
    "precision": ("tf32", {}), "loss_scale": (2, {}),
    "wire": ("bfloat16", {}), "wire_groups": (4, {"wire": "bfloat16"}),
    "validate_every": ("2", {}), "train_metrics": ("full", {}),
    "top_k": (1, {}), "metric": (("top_5_accuracy",), {}), "early_stopping": ("patience", {"patience": 12}),
    "patience": (1, {}), "min_delta": (0.5, SLOW), "monitor": ("validation_loss", LONG), "ties": ("first", LONG),
    "patience_increase": (3.0, {}), "improvement_threshold": (0.5, {}),
}  # fmt: skip
USUAL: dict[str, Any] = {"epochs": 6, "batch_size": 8, "learning_rate": 0.05, "validation_fraction": 0.1}
CHANGES_NOTHING_HERE = {
    *((linear, "min_delta") for linear in ("softmax", "objective", "function")),  # whose loss only gets worse here
    ("function", "monitor"), ("function", "ties"),  # there is one value to go by
    *((flat, "trust_coefficient") for flat in ("objective", "function")),  # lars is refused: w has one dimension
    *((model, "missing") for model in MODELS),  # the examples lack no value
}  # fmt: skip


def outcome(model: str, options: dict[str, Any]) -> str:
    """Everything that a run gives, but what may differ between equal runs."""
    given, more = MODELS[model]
    result = fit(given, (X, Y), **{**USUAL, **more, **options})
    records = [{key: value for key, value in one.items() if key != "run"} for one in (*result.history, result.summary)]
    return json.dumps([records, str(result.task)], sort_keys=True)


def test_every_option_is_tried() -> None:
    """But those that change nothing by design, and those that say when to stop or where data are."""
    by_design = {name for name, one in OPTIONS.items() if one.operational or not one.written}
    elsewhere = {name for name, one in OPTIONS.items() if one.group == "When to stop"} | {"init_from"}
    assert set(OPTIONS) - by_design - elsewhere - NOT_FOR_FIT - {"out", "resume"} == set(OTHER)


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize(
    "model", first_of(["mlp", "objective", "supervised", "softmax", "list", "layer", "function"], 2)
)
def test_it_changes_the_result_or_is_refused(model: str, name: str) -> None:
    value, more = OTHER[name]
    if (model, name) in CHANGES_NOTHING_HERE:
        return
    without = outcome(model, more)
    try:
        found = outcome(model, more | {name: value})
    except ConfigurationError as error:
        found = str(error)
        words = {name, "top_1_accuracy"} if name == "top_k" else {name, *(value if name == "metric" else ())}
    else:
        words = {""}
    assert found != without
    assert any(word.replace("_", " ") in found.replace("_", " ") for word in words)


NO_VALIDATION = {"validation_fraction": 0.0}
TOGETHER: list[tuple[str, dict[str, Any], str]] = [
    ("mlp", {"optimizer": "adam", "momentum": 0.5}, "adam: has no momentum"),
    ("mlp", {"optimizer": "nesterov", "dampening": 0.5}, "nesterov: has no dampening"),
    ("mlp", {"decay_epochs": 3.0}, "schedule constant: has no decay_epochs"),
    ("mlp", {"schedule": "cosine", "decay_rate": 0.5}, "schedule cosine: has no decay_rate"),
    ("mlp", {"schedule": "cosine", "staircase": True}, "schedule cosine: has no staircase"),
    ("mlp", {"schedule": Step(0.5, 1.0), "warmup_steps": 3}, r"warmup_steps is the schedule's; .* Step\(…\)"),
    ("mlp", {"schedule": Step(0.5, 1.0), "staircase": True}, "staircase is the schedule's"),
    ("mlp", {"schedule": Cosine(3.0), "schedule_epochs": 3.0}, "schedule_epochs is the schedule's"),
    ("mlp", {"optimizer": SGD(0.1), "lr": 0.2}, r"learning_rate is the optimizer's; .* SGD\(…\)"),
    ("mlp", {**NO_VALIDATION, "patience": 3}, "patience: would change nothing, for nothing is validated"),
    ("mlp", {**NO_VALIDATION, "validate_every": "2"}, "validate_every: would change nothing"),
    ("mlp", {**NO_VALIDATION, "split_seed": 3}, "split_seed: would change nothing"),
    ("mlp", {"validation": (X, Y), "split_seed": 3}, "split_seed: would change nothing"),
    ("mlp", {"validation_last": 20, "split_seed": 3}, "split_seed: would change nothing"),
    ("mlp", {"validation_last": 20, "validation_fraction": 0.3}, "validation_fraction: would change nothing"),
    ("mlp", {"validation": (X, Y), "validation_fraction": 0.3}, "validation_fraction: would change nothing"),
    ("mlp", {"validation_fraction": 0.001}, "validation_fraction 0.001: is none of 80 examples"),
    ("mlp", {**NO_VALIDATION, "target": "validation_loss=0.1"}, "target: there is nothing to measure"),
    ("mlp", {"sampling": "replacement", "shuffle": False}, "shuffle: would change nothing, for replacement"),
    ("mlp", {"sampling": "replacement", "drop_last": True}, "drop_last: would change nothing, for replacement"),
    ("mlp", {"plot": True}, "plot draws into the run's folder"),
    ("mlp", {"keep": 5}, "keep: would change nothing without a run folder"),
    ("mlp", {"checkpoint_every": "30s"}, "checkpoint_every: would change nothing without a run folder"),
    ("mlp", {"resume": "somewhere"}, "resume: would change nothing without a run folder"),
    ("mlp", {"data_dir": "somewhere"}, "has no data_dir|no 'data_dir'|data_dir"),
    ("mlp", {"augment": ("flip",)}, "images"),
    ("mlp", {"expand": "shifts"}, "images"),
    ("mlp", {"loss": "squared-error", "class_weights": (1.0, 2.0)}, "needs softmax-cross-entropy"),
    ("mlp", {"loss": "squared-error", "label_smoothing": 0.1}, "needs softmax-cross-entropy"),
    ("mlp", {"class_weights": (1.0, 2.0, 3.0)}, "class weights: expected 2 numbers"),
    ("mlp", {"monitor": "validation_loss", "ties": "first"}, "ties: would change nothing"),
    ("mlp", {"top_k": 3}, "top_k: expected"),
    ("mlp", {"metric": ("top_5_accuracy",)}, "top_5_accuracy"),
    ("mlp", {"penalize": ("*",)}, "penalize: would change nothing"),
    ("mlp", {"schedule_epochs": 3.0}, "schedule_epochs: would change nothing"),
    ("mlp", {"patience_increase": 3.0}, "patience_increase: would change nothing"),
    ("mlp", {"monitor": "validation_r2"}, "monitor: expected one of"),
    ("mlp", {"communication": "nccl"}, "nccl"),
    ("softmax", {"hidden": (3,)}, "hidden: would change nothing"),
    ("function", {"metrics": [UserMetric("own", lambda outputs, y: y * 1.0)]}, "gives no outputs to measure"),
    ("function", {"label_smoothing": 0.1}, "label_smoothing: would change nothing"),
    ("supervised", {"loss": "binary-cross-entropy"}, "loss: would change nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "options", "words"), TOGETHER)
def test_what_is_without_effect_together_is_refused(model: str, options: dict[str, Any], words: str) -> None:
    given, more = MODELS[model]
    split = {} if "validation" in options else {"validation_fraction": 0.1}
    with pytest.raises((ConfigurationError, DataError), match=words):
        fit(given, (X, Y), **{"epochs": 2, "batch_size": 8, **split, **more, **options})


def test_values_have_no_class_weights() -> None:
    for options in ({"class_weights": (1.0, 2.0)}, {"label_smoothing": 0.1}, {"top_k": 2}, {"metric": ("f1",)}):
        with pytest.raises((ConfigurationError, DataError)):
            fit("mlp", (X, X[:, 0]), epochs=1, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    np.savez(folder / "data.npz", x=X, y=Y, weights=np.linspace(1, 2, len(X)))
    (folder / "net.py").write_text("def build(shape, outputs):\n    return None\n")
    fit("mlp", (X, Y), epochs=1, out=str(folder / "run"))
    return folder


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            "evaluate run --dataset data.npz --model net.py:build",
            "model: run was trained with mlp, and not with net.py",
        ),
        ("evaluate run --dataset data.npz --data-dir .", "data_dir: is for named data sets, and data.npz is a path"),
        ("evaluate run --dataset data.npz --top-k 5", "top_k: expected"),
        ("predict run data.npz -o out.npz --model net.py:build", "model: run was trained with mlp"),
        ("train --dataset data.npz --data-dir . --out new", "data_dir: is for named data sets"),
        ("train --dataset data.npz --model net.py:build --dropout 0.1 --out new", "."),
        ("plot run run --only curves --examples 3", "examples: is for misclassified"),
        ("plot run run --model net.py:build", "model: is for filters"),
        ("plot run --only filters --axis steps", "axis: is for curves"),
        ("plot run --only curves --split train", "split: is for confusion"),
    ],
)
def test_an_option_of_a_command_that_is_without_effect(run: Path, command: str, words: str) -> None:
    name, *arguments = command.split()
    started = subprocess.run(
        [sys.executable, "-m", "distsgd", name, *arguments], cwd=run, capture_output=True, text=True, timeout=200
    )
    assert started.returncode == 2, started.stderr
    assert words in started.stderr
    assert len(started.stderr.splitlines()) == 1


def test_the_header_says_which_weights_are_used(capsys: pytest.CaptureFixture[str]) -> None:
    weights = np.linspace(1, 2, len(X))
    fit("mlp", (X, Y, weights), validation=(X, Y), epochs=1, class_weights=(1.0, 2.5), quiet=False)
    header = " ".join(capsys.readouterr().out.split())
    assert "example weights: yes, of training examples, from the arrays; class weights: 1, 2.5" in header
    fit("mlp", (X, Y), epochs=1, quiet=False)
    assert "weights:" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (Y.astype(float), "the targets are 0.0 and 1.0, and taken as values"),
        (np.eye(2)[Y], "the targets are one-hot rows, and taken as values"),
        (Y + 0.5, ""),
        (Y, ""),
    ],
)
def test_values_that_look_like_classes_are_reported(y: Any, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = fit("mlp", (X, y), epochs=1, loss="auto" if y.dtype.kind == "i" else "squared-error")
    found = capsys.readouterr().err
    assert (words in found) if words else ("taken as" not in found)
    assert result.task.kind == ("classification" if y.dtype.kind == "i" else "regression")


@pytest.mark.parametrize("factor", [1 / 255, 255.0])
def test_validation_and_test_examples_of_another_range_are_reported(
    factor: float, capsys: pytest.CaptureFixture[str]
) -> None:
    fit("mlp", (X, Y), validation=(X * np.float32(factor), Y), test=(X, Y), epochs=1)
    found = [line for line in capsys.readouterr().err.splitlines() if "those of training lay" in line]
    assert len(found) == 1
    assert found[0].startswith("warning: validation: the inputs lie between")


@pytest.mark.parametrize(
    "options",
    [
        {"hidden": (), "dropout": 0.5},
        {"hidden": (), "batch_norm": True},
        {"bias": False, "bias_initializer": "normal(0.1)"},
        {"batch_size": "full", "drop_last": True},
        {"validation_fraction": 0, "metric": ("top_5_accuracy",)},
        {"validation_fraction": 0, "top_k": 1},
    ],
    ids=lambda options: " and ".join(options),
)
def test_what_another_option_leaves_without_effect_is_refused(options: dict[str, Any]) -> None:
    name = next(iter(reversed(options)))
    with pytest.raises(ConfigurationError, match=f"{name}: would change nothing"):
        fit("mlp", (X, Y), **{**USUAL, **options})


def test_the_last_examples_beside_validation_data_are_refused() -> None:
    with pytest.raises(
        ConfigurationError, match="validation_last: would change nothing beside validation data; leave it out"
    ):
        fit("mlp", (X, Y), validation=(X, Y), validation_last=3, epochs=1)


def test_metrics_are_measured_on_test_data_alone_too() -> None:
    result = fit("mlp", (X, Y), test=(X, Y), validation_fraction=0, top_k=1, epochs=1)
    assert result.summary["test_top_1_accuracy"] == result.summary["test_accuracy"]
