"""A run that stops at any step continues with the same bits, on any number of ranks; what doesn't fit is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distsgd.core.checkpoint import Checkpoint, encode
from distsgd.core.checkpoint_folder import find_checkpoint, read_checkpoint
from distsgd.core.errors import CheckpointError, ConfigurationError, DistsgdError, RunFolderError
from distsgd.core.random import normal
from distsgd.optim.registry import OPTIMIZERS
from distsgd.parallel.serial import SerialCommunicator
from distsgd.run.config import TrainConfig
from distsgd.run.files.folder import RunFolder
from distsgd.run.fit import fit
from distsgd.run.lifecycle import opened
from distsgd.run.resume import find_start
from distsgd.run.trained.stored_model import load_model
from distsgd.run.trained.trained_model import Result
from tests.threads import run_on_threads

X = normal((208, 6), 1, "x").astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64) + (X[:, 1] > 0)
BASE: dict[str, Any] = {
    "epochs": 3, "batch_size": 40, "hidden": (7,), "validation_fraction": 0.2, "batch_norm": True, "dropout": 0.2,
}  # fmt: skip
PREFERENCES: tuple[Literal["newest", "best"], ...] = ("newest", "best")
STEPS = 15  # 166 training examples make 5 minibatches an epoch


def train(out: Path | None, size: int = 1, **options: Any) -> Result:
    options = {**BASE, **({} if out is None else {"out": str(out)}), **options}
    return run_on_threads(size, lambda c: fit("mlp", (X, Y), communicator=c, **options))[0]


def bits(result: Result, out: Path) -> tuple[Any, ...]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    records = [{key: value for key, value in line.items() if key != "run"} for line in lines]
    summary = {key: value for key, value in result.summary.items() if key != "run"}
    return summary, records, {name: array.tobytes() for name, array in [*result.params.items(), *result.state.items()]}


SETTINGS: list[dict[str, Any]] = [
    *[{"optimizer": name} for name in OPTIMIZERS],
    {"sampling": "replacement"},
    {"shuffle": False, "validate_every": "4", "log_every": 3},
    {"schedule": "cosine", "warmup_steps": 4, "dtype": "float64"},
    {"drop_last": True, "clip_norm": 0.3, "l1": 1e-3},
    {"early_stopping": "patience", "patience": 9, "monitor": "validation_error"},
    {"patience": 1, "min_delta": 0.02},
]


@pytest.mark.parametrize("options", SETTINGS, ids=lambda options: "-".join(map(str, options.values())))
def test_every_setting(tmp_path: Path, options: dict[str, Any]) -> None:
    whole = bits(train(tmp_path / "whole", **options), tmp_path / "whole")
    out = tmp_path / "run"
    for size, stop in ((2, 3), (4, 8)):
        train(out, size, max_steps=stop, **options)
    assert bits(train(out, 3, **options), out) == whole


@given(st.lists(st.tuples(st.integers(0, STEPS), st.integers(1, 4)), max_size=4))
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_stops(tmp_path_factory: pytest.TempPathFactory, stops: list[tuple[int, int]]) -> None:
    folder = tmp_path_factory.mktemp("stops")
    for stop, size in sorted(stops):
        train(folder / "run", size, max_steps=stop)
    assert bits(train(folder / "run", 2), folder / "run") == whole_run(tmp_path_factory)


_whole: list[Any] = []


def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if not _whole:
        out = tmp_path_factory.mktemp("whole") / "run"
        _whole.append(bits(train(out), out))
    return _whole[0]


def test_stopping_at_every_single_step(tmp_path: Path) -> None:
    whole = bits(train(tmp_path / "whole"), tmp_path / "whole")
    for stop in range(1, STEPS + 1):
        train(tmp_path / "run", 1 + stop % 3, max_steps=stop)
    assert bits(train(tmp_path / "run"), tmp_path / "run") == whole


@pytest.mark.parametrize("given", [{}, {"schedule_epochs": 2.5}])
def test_more_epochs_leave_the_schedule_as_it_was(tmp_path: Path, given: dict[str, Any]) -> None:
    """The horizon is that of the first start, as for the command: η = η₀ (1 + cos(π min(epoch / horizon, 1))) / 2."""
    horizon, options = given.get("schedule_epochs", 3.0), {"schedule": "cosine", "learning_rate": 0.1}
    whole, out = tmp_path / "whole", tmp_path / "run"
    uninterrupted = train(whole, epochs=5, **{**options, "schedule_epochs": horizon})
    train(out, 2, epochs=3, max_steps=7, **options, **given)
    train(out, 3, epochs=4, max_steps=12, **options)
    again = train(out, 1, epochs=5, **options)
    assert bits(again, out) == bits(uninterrupted, whole)
    rates = [record["learning_rate"] for record in again.history]
    steps = [record["step"] - 1 for record in again.history]  # the rate is that of the step before the record
    right = [0.05 * (1 + np.cos(np.pi * min(step / 5 / horizon, 1))) for step in steps]
    np.testing.assert_allclose(rates, right, rtol=1e-12, atol=1e-17)
    assert steps == [record["step"] - 1 for record in uninterrupted.history], "of all attempts"
    assert (
        train(tmp_path / "longer", epochs=5, **options).summary["parameters_sha256"]
        != again.summary["parameters_sha256"]
    )


@pytest.mark.parametrize("resume", [{}, {"resume": "never", "init_from": "old"}])
def test_a_checkpoint_of_the_former_format_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: dict[str, str]
) -> None:
    monkeypatch.setattr("distsgd.core.checkpoint.FORMAT", 1)
    train(tmp_path / "old", max_steps=7)
    monkeypatch.undo()
    options = {key: str(tmp_path / value) if key == "init_from" else value for key, value in resume.items()}
    out = tmp_path / ("new" if resume else "old")
    with pytest.raises(CheckpointError, match="has format 1, this version reads format 2; use the version of distsgd"):
        train(out, 2, **options)
    with pytest.raises(CheckpointError, match="has format 1, this version reads format 2"):
        load_model(SerialCommunicator(), str(tmp_path / "old"), None)


def test_a_single_number_is_a_parameter_too(tmp_path: Path) -> None:
    def line(params: Any, grads: Any, batch: Any) -> tuple[float, int]:
        error = params["slope"] * batch.x[0] + params["shift"][0] - batch.y
        grads["slope"][...], grads["shift"][...] = (error * batch.x[0]).sum(), error.sum()
        return float(np.square(error).sum()) / 2, len(batch)

    def run(out: str, **more: Any) -> bytes:
        start = {"slope": np.array(0.5), "shift": np.zeros(1)}
        result = fit(line, (X, X[:, 1]), params=start, out=str(tmp_path / out), optimizer="adam", epochs=3, **more)
        return result.params["slope"].tobytes() + result.params["shift"].tobytes()

    run("run", max_steps=1)
    assert run("run") == run("whole")


def test_finished_runs_return_what_they_had(tmp_path: Path) -> None:
    first = train(tmp_path / "run")
    again = train(tmp_path / "run", 3)
    assert again.summary["parameters_sha256"] == first.summary["parameters_sha256"]
    assert again.summary["steps"] == STEPS


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    train(tmp_path / "run", max_steps=7)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("options", "reported"),
    [
        ({"hidden": (8,)}, r"hidden is \[7\] there, \[8\] here"),
        ({"seed": 1, "batch_size": 41}, r"batch_size is 40 there, 41 here; seed is 0 there, 1 here"),
        ({"dtype": "float64"}, "dtype"),
        ({"optimizer": "adam"}, "optimizer is 'momentum' there, 'adam' here"),
        ({"learning_rate": 0.1}, r"learning_rate is 0\.05 there, 0\.1 here"),
    ],
)
def test_conflicts_are_named(stopped: Path, options: dict[str, Any], reported: str) -> None:
    with pytest.raises(RunFolderError, match=reported):
        train(stopped, 2, **options)


def test_other_data_are_refused(stopped: Path) -> None:
    for x, y, reported in ((X[:-1], Y[:-1], "examples"), (X[:, :5], Y, "signature"), (X, Y + 1, "signature")):
        with pytest.raises(DistsgdError, match=reported):
            fit("mlp", (x, y), out=str(stopped), **BASE)


def test_another_model_under_the_same_options(stopped: Path) -> None:
    """The user's own file may have changed; then names and shapes say so."""
    path = stopped / "checkpoints" / "step-7.safetensors"
    found = read_checkpoint(path)
    (stopped / "checkpoints" / "last.safetensors").unlink()
    for change, reported in (
        (lambda arrays: arrays.pop("parameters/dense1.weight"), r"dense1\.weight is missing"),
        (lambda arrays: arrays.update({"parameters/dense9.weight": np.zeros(3)}), r"has dense9\.weight"),
        (lambda arrays: arrays.update({"parameters/dense1.weight": np.zeros((7, 6))}), "dtype float64"),
        (lambda arrays: arrays.update({"statistics/batchnorm1.running_mean": np.zeros(9)}), "statistics: "),
        (lambda arrays: arrays.pop("optimizer/velocity/dense1.weight"), "optimizer state velocity"),
    ):
        arrays = dict(found.arrays)
        change(arrays)
        path.write_bytes(encode(Checkpoint(arrays, found.document)))
        with pytest.raises(CheckpointError, match=reported):
            train(stopped, 2)


def test_best_checkpoint_alone_is_no_run_to_continue(stopped: Path) -> None:
    best = stopped / "checkpoints" / "best.safetensors"
    with pytest.raises(CheckpointError):
        train(stopped.with_name("other"), resume=str(best))


def test_another_cpu_is_reported(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("distsgd.run.lifecycle.cpu_probe", lambda: "another")
    train(stopped)
    assert "this CPU computes other bits" in capfd.readouterr().err


def test_find_checkpoint(stopped: Path) -> None:
    assert find_checkpoint(stopped, "best").document["step"] == 5, "the best validation's"
    assert find_checkpoint(stopped, "newest").document["step"] == 7
    whole = stopped / "checkpoints" / "step-7.safetensors"
    assert {find_checkpoint(whole, prefer).document["step"] for prefer in PREFERENCES} == {7}
    (stopped / "checkpoints" / "best.safetensors").unlink()
    assert find_checkpoint(stopped, "best").document["step"] == 7
    for path in (stopped / "nothing", stopped / "checkpoints", stopped / ("long" * 100)):
        with pytest.raises(CheckpointError, match="neither a checkpoint nor a run folder"):
            find_checkpoint(path, "best")
    for path in (stopped / "nothing", stopped / ("long" * 100)):
        with pytest.raises(ConfigurationError, match="there is no checkpoint and no run folder"):
            find_checkpoint(path, "newest")
    with pytest.raises(CheckpointError, match="holds no checkpoint to resume from"):
        find_checkpoint(stopped / "checkpoints", "newest")


def test_where_an_attempt_starts(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    for resume in ("auto", "never"):
        start = find_start(TrainConfig(resume=resume), folder)
        assert (start.has_checkpoint, start.finished, start.notes) == (False, None, [])
    (tmp_path / "run").mkdir()
    assert not find_start(TrainConfig(), folder).has_checkpoint
    (tmp_path / "run" / "thesis.tex").write_text("")
    with pytest.raises(RunFolderError, match="not empty and holds no run"):
        find_start(TrainConfig(), folder)
    with pytest.raises(ConfigurationError, match=r"no checkpoint and no run folder missing\.safetensors"):
        find_start(TrainConfig(resume="missing.safetensors"), folder)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        find_start(TrainConfig(resume=str(tmp_path / "run")), folder)
    with opened(SerialCommunicator(), TrainConfig(dry_run=True), folder) as start:
        assert not start.has_checkpoint


def test_a_run_that_continues_from_elsewhere_continues_where_it_came_to(tmp_path: Path) -> None:
    """The same command again, as after any stop; it doesn't need the other run any more."""
    whole = train(tmp_path / "whole")
    train(tmp_path / "a", max_steps=4)
    options = {"resume": str(tmp_path / "a")}
    train(tmp_path / "b", max_steps=9, **options)
    shutil.rmtree(tmp_path / "a")
    last = train(tmp_path / "b", **options)
    assert last.summary["parameters_sha256"] == whole.summary["parameters_sha256"]
    assert json.loads((tmp_path / "b" / "metrics.jsonl").read_text().splitlines()[0])["step"] > 4


def test_a_folder_without_a_checkpoint_is_no_run_of_its_own(tmp_path: Path) -> None:
    train(tmp_path / "a", max_steps=4)
    (tmp_path / "b" / "checkpoints").mkdir(parents=True)  # of a start that was killed
    (tmp_path / "b" / "config.toml").touch()
    assert train(tmp_path / "b", resume=str(tmp_path / "a")).summary["steps"] == STEPS


def test_another_configuration_elsewhere_is_named_there(tmp_path: Path) -> None:
    train(tmp_path / "a", max_steps=4)
    with pytest.raises(RunFolderError, match=r"a holds a run with another configuration: seed is 0 there, 1 here"):
        train(tmp_path / "b", resume=str(tmp_path / "a"), seed=1)
