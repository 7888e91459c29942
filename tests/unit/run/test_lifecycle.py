"""A run's life is one sequence, for the command line and for fit: what a RunSpec's functions are called with."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from distsgd.core.errors import ConfigurationError, DistsgdError
from distsgd.parallel import Communicator
from distsgd.parallel.serial import SerialCommunicator
from distsgd.run import devices
from distsgd.run.build import build_objective
from distsgd.run.config import TrainConfig, own_optimizer, resolved
from distsgd.run.data.loading import load_data
from distsgd.run.devices import device_for
from distsgd.run.files.folder import run_folder
from distsgd.run.fit import fit
from distsgd.run.lifecycle import Attempt, RunSpec, run
from distsgd.training.callbacks import Callback
from tests.threads import run_on_threads

OPTIONS: dict[str, Any] = {"epochs": 2, "batch_size": 32, "hidden": (5,), "seed": 3, "validation_fraction": 0.25}


def spec_of(out: Path | None, **changes: Any) -> RunSpec:
    config = resolved(TrainConfig(dataset="moons", out=None if out is None else str(out), **OPTIONS))
    folder = None if out is None else run_folder(config)
    return replace(RunSpec(config, folder, load_data, build_objective, own_optimizer(config)), **changes)


def test_a_configuration_and_fit_make_the_same_run() -> None:
    """They differ in how they make a RunSpec, and in nothing that is computed."""
    found = run(SerialCommunicator(), spec_of(None))
    assert found is not None
    train = load_data(SerialCommunicator(), TrainConfig(dataset="moons", validation_fraction=0, seed=3)).train
    result = fit("mlp", (train.x, train.y), **OPTIONS)
    assert found.summary["parameters_sha256"] == result.summary["parameters_sha256"]
    assert found.summary["validation_loss"] == result.summary["validation_loss"]


@pytest.mark.parametrize("size", [1, 3])
def test_the_functions_are_called_in_order(tmp_path: Path, size: int) -> None:
    called: list[str] = []

    def before(communicator: Communicator, attempt: Attempt) -> bool:
        called.append(f"before on {communicator.rank}, step {attempt.trainer.progress.step}")
        return True

    changes: dict[str, Any] = {
        "before_training": before,
        "ended": lambda attempt: called.append(f"ended {attempt.summary['status']}"),
        "finished": lambda line: called.append(line.splitlines()[-1].partition(",")[0]),
    }

    def train(communicator: Communicator) -> bool:
        return run(communicator, spec_of(tmp_path / "run", **changes)) is None

    assert run_on_threads(size, train) == [False] * size
    assert sorted(called[:-1]) == [f"before on {rank}, step 0" for rank in range(size)]
    assert called.pop() == "ended completed"
    called.clear()
    assert run_on_threads(size, train) == [True] * size
    assert called == ["completed: 2 epochs"]
    again = run(SerialCommunicator(), spec_of(tmp_path / "run"))  # as fit, which returns what the run has come to
    assert again is not None
    assert again.summary["steps"] == again.trainer.progress.step > 0


def test_what_is_not_trained_leaves_nothing(tmp_path: Path) -> None:
    spec = spec_of(tmp_path / "run", before_training=lambda communicator, attempt: False)
    assert run(SerialCommunicator(), spec) is None
    assert list(tmp_path.iterdir()) == []


def test_callbacks_are_closed_where_nothing_is_trained(tmp_path: Path) -> None:
    class Closing(Callback):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    for more in ({"before_training": lambda communicator, attempt: False}, {}):
        callback = Closing()
        spec = spec_of(tmp_path / "run", callbacks=lambda communicator, one=callback: [one], **more)
        if not more:
            spec = replace(spec, config=replace(spec.config, init_from=str(tmp_path / "missing")))
        with suppress(DistsgdError):
            run(SerialCommunicator(), spec)
        assert callback.closed == 1
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("option", [{"plot": True}, {"on_non_finite": "rollback"}])
def test_what_needs_a_folder_is_refused_without(option: dict[str, Any]) -> None:
    spec = spec_of(None)
    with pytest.raises(ConfigurationError, match="out="):
        run(SerialCommunicator(), replace(spec, config=replace(spec.config, **option)))


def test_ranks_with_and_without_cupy_choose_a_device_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only some of them would do, the others would wait for."""
    answers = cycle([True, False])
    monkeypatch.setattr(devices, "may_be_gpu", lambda name: next(answers))
    found = run_on_threads(2, lambda communicator: device_for(communicator, "auto", "float32")[0].name)
    assert found == ["cpu", "cpu"]
