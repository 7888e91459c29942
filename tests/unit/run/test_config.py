"""What a configuration may hold, what it is called, and that it comes back from its own TOML file."""

from __future__ import annotations

import json
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsgd.core.errors import ConfigurationError
from distsgd.optim.registry import OPTIMIZERS
from distsgd.run.config import NOT_WRITTEN, OPERATIONAL, OPTIONS, STOP_CONDITIONS, TrainConfig, resolved
from distsgd.run.config_file import from_mapping, read_toml, to_toml
from distsgd.training.intervals import Interval, parse_duration, parse_interval, parse_target

NAN, INF = float("nan"), float("inf")

BAD: list[tuple[str, Any]] = [
    *[(name, value) for name in ("learning_rate", "weight_decay", "l1", "l2", "min_delta") for value in (-1, NAN, INF)],
    *[(name, value) for name in ("scale", "clip_norm", "schedule_epochs") for value in (0, -1, NAN, INF)],
    *[(name, 0) for name in ("microbatches", "keep", "log_every", "threads", "top_k", "validation_last")],
    *[("improvement_threshold", value) for value in (-0.1, 1.1, NAN, INF)],
    *[(name, -1) for name in ("epochs", "max_steps", "patience", "warmup_steps", "seed", "microbatches")],
    *[("validation_fraction", value) for value in (-0.1, 1.0, 1.5, NAN)],
    ("batch_size", 0),
    ("batch_size", -5),
    ("seed", 2**63),
    ("seed", 10**400),
    ("sampling", "bootstrap"),
    ("dtype", "float16"),
    ("validation_on", "rank1"),
    ("train_metrics", "all"),
    ("early_stopping", "never"),
    ("communication", "tcp"),
    ("loss", "hinge"),
    *[("validate_every", text) for text in ("", "0", "epoch", "30s", "-1", "1.5epoch", "2 weeks")],
    *[("checkpoint_every", text) for text in ("", "0epoch", "0s", "never", "1.5h", "5 m")],
    *[("max_time", text) for text in ("", " ", "soon", "10x", "-5s", "1h2d", "1.5h")],
    *[("target", text) for text in ("", "validation_accuracy", "=0.5", "validation_accuracy=", "a=nan", "a=high")],
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_values_are_refused_in_one_sentence(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        TrainConfig(**{name: value})
    text = str(caught.value)
    assert text.startswith(f"{name}: expected ")
    assert "\n" not in text
    assert "got" in text


def test_the_patience_rule_counts_minibatches() -> None:
    assert TrainConfig(patience=0).patience == 0
    with pytest.raises(ConfigurationError, match="patience: the patience rule expects at least 1 minibatch, got 0"):
        TrainConfig(early_stopping="patience", patience=0)


def test_two_kinds_of_validation_exclude_each_other() -> None:
    with pytest.raises(ConfigurationError, match="exclude each other"):
        TrainConfig(validation="a.npz", validation_last=5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("500", Interval(500, "steps")), ("1step", Interval(1, "steps")), ("20 steps", Interval(20, "steps")),
        ("1epoch", Interval(1, "epochs")), ("2epochs", Interval(2, "epochs")), (" 30s ", Interval(30, "seconds")),
        ("5m", Interval(300, "seconds")), ("1h30", Interval(5400, "seconds")), ("0.5s", Interval(0.5, "seconds")),
    ],
)  # fmt: skip
def test_every(text: str, expected: Interval) -> None:
    assert parse_interval(text, "checkpoint_every") == expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("10m", 600),
        ("3h50m", 13800),
        ("1d", 86400),
        ("1d2h3m4.5s", 93784.5),
        ("0.25s", 0.25),
        ("4h30", 16200),
        ("2m30", 150),
        ("1d12", 129600),
    ],
)
def test_duration(text: str, seconds: float) -> None:
    assert parse_duration(text, "max_time") == seconds


def test_target() -> None:
    assert parse_target("validation_accuracy=0.98") == ("validation_accuracy", 0.98)
    assert parse_target("validation_r2=-1e-3") == ("validation_r2", -1e-3)


def test_every_option_is_described() -> None:
    assert all(one.help.endswith(".") and one.group for one in OPTIONS.values())


def test_what_is_part_of_a_runs_name() -> None:
    """Another option in these sets gives runs new names, and their folders no longer resume by themselves."""
    assert STOP_CONDITIONS == ("epochs", "max_steps", "max_time", "target")
    assert set(OPERATIONAL) == {
        "out", "resume", "checkpoint_every", "keep", "log_every", "quiet", "dry_run", "check_gradient", "device",
        "threads", "communication", "data_dir", "validation_on", "test_at_best", "callback", "plot", "on_non_finite",
        "check_replicas", "stall_timeout", "stall_stacks", "cuda_graphs", "kernels", "stream", "readers",
        "profile", "trace", "shares",
    }  # fmt: skip
    assert set(NOT_WRITTEN) == {"out", "resume", "dry_run", "check_gradient", "quiet", "plot", "profile", "trace"}
    assert TrainConfig().name() == "digits-mlp-44136fa3"  # sha256 of "{}": nothing differs from the defaults
    assert (
        resolved(TrainConfig()).name()
        == resolved(TrainConfig(epochs=3, out="elsewhere")).name()
        != TrainConfig(seed=1).name()
    )


some_options = st.fixed_dictionaries(
    {},
    optional={
        "hidden": st.lists(st.integers(1, 500), max_size=4).map(tuple),
        "learning_rate": st.floats(0, 10),
        "dropout": st.floats(0, 0.9),
        "l2": st.floats(0, 1),
        "batch_size": st.integers(1, 10**6) | st.just("full"),
        "epochs": st.integers(0, 10**6),
        "dataset": st.sampled_from(["digits", "a b.npz", "ü.npz", 'quote".npz', "back\\slash", "line\nbreak"]),
        "penalize": st.lists(st.sampled_from(["weights", "dense1.*", "*"]), max_size=2).map(tuple),
        "shuffle": st.booleans(),
        "seed": st.integers(0, 2**63 - 1),
        "clip_norm": st.none() | st.floats(1e-9, 1e9),
        "optimizer": st.sampled_from(["sgd", "adagrad"]),
    },
)


@given(some_options)
def test_toml_round_trip(options: dict[str, Any]) -> None:
    config = resolved(TrainConfig(**options))
    document = tomllib.loads(to_toml(config))
    again = from_mapping(document, "config.toml")
    assert again == config
    assert again.name() == config.name()
    assert not set(document) & set(NOT_WRITTEN)


def test_toml_file(tmp_path: Path) -> None:
    config = resolved(TrainConfig(hidden=(3, 4), target="validation_loss=1e-3"))
    (tmp_path / "run.toml").write_text(to_toml(config))
    assert read_toml(tmp_path / "run.toml") == config


def test_name_depends_on_what_decides_bits_alone() -> None:
    base = TrainConfig()
    assert base.name().startswith("digits-mlp-")
    others = {
        "epochs": 7, "max_steps": 3, "max_time": "5s", "target": "validation_loss=1", "out": "x", "resume": "never",
        "checkpoint_every": "5", "keep": 9, "log_every": 4, "quiet": True, "threads": 3, "communication": "mpi",
        "data_dir": "d", "validation_on": "rank0",
    }  # fmt: skip
    for name, value in others.items():
        assert replace(base, **{name: value}).name() == base.name(), name
    changed = {
        "seed": 1, "batch_size": 255, "microbatches": 8, "hidden": (128,), "dtype": "float64", "dropout": 0.1,
        "shuffle": False, "learning_rate": 0.2, "penalize": ("*",), "top_k": 3, "patience": 4, "weight_decay": 0.1,
        "validation_fraction": 0.2, "activation": "tanh", "init_from": "other",
    }  # fmt: skip
    names = {replace(base, **{name: value}).name() for name, value in changed.items()}
    assert len(names | {base.name()}) == len(changed) + 1


@pytest.mark.parametrize(
    ("dataset", "model", "start"),
    [
        ("/data/My Set.npz", "mlp", "My-Set-mlp-"),
        ("folder/", "softmax", "folder-softmax-"),
        ("digits", "my/file.py:net", "digits-net-"),
        ("../..", "mlp", "data-mlp-"),
        ("a" * 300, "mlp", "a" * 40 + "-mlp-"),
    ],
)
def test_names_are_safe_file_names(dataset: str, model: str, start: str) -> None:
    name = TrainConfig(dataset=dataset, model=model).name()
    assert name.startswith(start)
    assert "/" not in name


def test_identity_is_json() -> None:
    config = TrainConfig(hidden=(5, 6))
    identity = config.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert set(identity) == {field.name for field in fields(TrainConfig)} - {*STOP_CONDITIONS, *OPERATIONAL}


def test_horizon_that_is_the_default_changes_nothing() -> None:
    cosine = TrainConfig(schedule="cosine", epochs=7)
    assert replace(cosine, schedule_epochs=7.0).identity() == cosine.identity()
    assert replace(cosine, schedule_epochs=9.0).identity() != cosine.identity()


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_resolved_writes_the_optimizers_defaults_out(name: str) -> None:
    config = resolved(TrainConfig(optimizer=name))
    default = OPTIMIZERS[name]()
    for field in fields(default):
        assert getattr(config, field.name) == getattr(default, field.name)
    assert resolved(config) == config
    assert resolved(TrainConfig(optimizer=name, learning_rate=0.7)).learning_rate == 0.7


def test_resolved_refuses_an_unknown_optimizer() -> None:
    with pytest.raises(ConfigurationError, match=r"optimizer.*sgd, momentum.*'sdg'"):
        resolved(TrainConfig(optimizer="sdg"))
