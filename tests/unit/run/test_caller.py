"""`fit` and `predict` in a process of the caller's: its settings have no effect, and are as before afterwards."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd.parallel import Communicator
from distsgd.run.fit import fit
from distsgd.run.signals import in_batch_job
from tests.process_state import changes, process_state
from tests.threads import run_on_threads

X = np.random.default_rng(0).normal(size=(120, 6)).astype(np.float32)
Y = np.arange(120) % 3
OPTIONS: dict[str, Any] = {"epochs": 2, "batch_size": 24, "validation_fraction": 0.2}


class TrialPruned(Exception):
    """As optuna's: a callback raises it, and the code around `fit` catches it by its class."""


class Pruner(distsgd.Callback):
    def __init__(self, error: BaseException) -> None:
        self.error, self.calls = error, 0

    def on_step(self, step: int, loss: float, examples: int) -> None:
        self.calls += 1
        raise self.error


def test_the_process_is_as_before(tmp_path: Path) -> None:
    fit("softmax", (X, Y), out=str(tmp_path / "first"), **OPTIONS)  # what is loaded once
    before = process_state()
    result = fit("mlp", (X, Y), threads=2, hidden=8, out=str(tmp_path / "second"), **OPTIONS)
    result.predict(X)
    with pytest.raises(distsgd.ConfigurationError):
        fit("mlp", (X, Y), epochs=-1)
    with pytest.raises(TrialPruned):
        fit("mlp", (X, Y), callbacks=[Pruner(TrialPruned())], **OPTIONS)
    assert changes(before, process_state()) == []


def test_a_callbacks_exception_is_the_object_itself() -> None:
    error = TrialPruned("no hope")
    pruner = Pruner(error)
    with pytest.raises(TrialPruned) as caught:
        fit("softmax", (X, Y), callbacks=[pruner], **OPTIONS)
    assert caught.value is error
    assert error.__notes__ == ["distsgd: a callback failed at step 1"]
    assert (error.__cause__, error.__context__) == (None, None)
    assert pruner.calls == 1, "a callback that has raised isn't called again"


def test_lack_of_memory_is_also_a_memory_error() -> None:
    with pytest.raises(MemoryError) as caught:
        fit("softmax", (X, Y), callbacks=[Pruner(MemoryError())], **OPTIONS)
    assert isinstance(caught.value, distsgd.OutOfMemoryError)


EXTREME = X * np.float32(100)


@pytest.mark.parametrize("model", ["softmax", "mlp"])
@pytest.mark.parametrize("threads", [1, 2])
def test_numpys_error_state_of_the_caller_has_no_effect(model: str, threads: int) -> None:
    options = {**OPTIONS, "lr": 0.1, "threads": threads}
    expected = fit(model, (EXTREME, Y), **options)
    seen: list[str] = []
    with np.errstate(all="raise"):
        result = fit(model, (EXTREME, Y), **options)
        predicted = result.predict(EXTREME)
        assert set(np.geterr().values()) == {"raise"}
    with np.errstate(all="call", call=lambda kind, flag: seen.append(kind)):
        result.predict(EXTREME)
    assert seen == []
    assert result.summary["parameters_sha256"] == expected.summary["parameters_sha256"]
    np.testing.assert_array_equal(predicted, expected.predict(EXTREME))


@pytest.mark.parametrize("loss", ["squared-error", "binary-cross-entropy"])
def test_numpys_error_state_and_other_losses(loss: str) -> None:
    y = (Y == 1).astype(np.float32)
    with np.errstate(all="raise"):
        fit("mlp", (EXTREME, y), loss=loss, optimizer="adam", hidden=8, **OPTIONS).predict(EXTREME)


def test_ranks_without_mpi_leave_the_hooks_alone() -> None:
    before = process_state()["hooks"]

    def run(communicator: Any) -> str:
        with pytest.raises(TrialPruned) as caught:
            fit("softmax", (X, Y), callbacks=[Pruner(TrialPruned("x"))], communicator=communicator, **OPTIONS)
        return str(caught.value)

    assert run_on_threads(3, run) == ["x"] * 3
    assert process_state()["hooks"] == before


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    before = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGUSR1, before)


class Signal(distsgd.Callback):
    """Sends this process a signal at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, step: int, loss: float, examples: int) -> None:
        if step == self.step:
            signal.raise_signal(signal.SIGUSR1)


def test_interrupted_is_no_exception(slurm: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A loop that survives failed fits doesn't survive the request to stop."""
    with pytest.raises(distsgd.Interrupted) as stop:
        fit("softmax", (X, Y), out=str(tmp_path / "run"), callbacks=[Signal(2)], **OPTIONS)
    assert not isinstance(stop.value, Exception)
    assert (stop.value.exit_status, stop.value.code) == (75, 75)
    assert str(stop.value) in capsys.readouterr().err
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    assert fit("softmax", (X, Y), out=str(tmp_path / "run"), **OPTIONS).summary["status"] == "completed"


def test_a_signal_with_the_last_step_stops_the_next_fit(slurm: None, tmp_path: Path) -> None:
    last = {**OPTIONS, "max_steps": 4}
    assert fit("softmax", (X, Y), out=str(tmp_path / "a"), callbacks=[Signal(4)], **last).summary["steps"] == 4
    with pytest.raises(distsgd.Interrupted, match="at step 1,"):
        fit("softmax", (X, Y), out=str(tmp_path / "b"), **OPTIONS)
    assert fit("softmax", (X, Y), out=str(tmp_path / "b"), **OPTIONS).summary["status"] == "completed"


def test_a_fit_in_another_thread_takes_no_signal(slurm: None, tmp_path: Path) -> None:
    seen: list[object] = []

    class Look(distsgd.Callback):
        def on_step(self, step: int, loss: float, examples: int) -> None:
            assert threading.current_thread() is not threading.main_thread()
            seen.append(signal.getsignal(signal.SIGUSR1))

    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: fit("softmax", (X, Y), out=str(tmp_path / "run"), callbacks=[Look()], **OPTIONS)).result()
    assert set(seen) == {signal.SIG_DFL}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_JOB_ID": "1"}, True),
        ({"PBS_JOBID": "1.head"}, True),
        ({"LSB_JOBID": "1"}, True),
        ({"JOB_ID": "1", "SGE_TASK_ID": "undefined"}, True),
        ({"JOB_ID": "1"}, False),
        ({"SLURM_JOB_ID": ""}, False),
        ({}, False),
    ],
)
def test_batch_systems(variables: dict[str, str], expected: bool) -> None:
    assert in_batch_job(variables) == expected


def test_the_exception_of_an_array_is_the_cause_of_the_data_error() -> None:
    class Refusing:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            raise error

    error = ValueError("no numbers here")
    with pytest.raises(distsgd.DataError, match="no numbers here") as caught:
        fit("softmax", (Refusing(), Y), **OPTIONS)
    assert caught.value.__cause__ is error


class Log(distsgd.Callback):
    """Takes the notes of a fit, or raises what it is given."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.notes, self.error = list[str](), error

    def on_note(self, text: str) -> bool:
        self.notes.append(text)
        if self.error is not None:
            raise self.error
        return True


def test_a_callback_takes_the_notes(capfd: pytest.CaptureFixture[str]) -> None:
    log, values = Log(), (Y == 0).astype(float)
    fit("mlp", (X * 1e4, values), callbacks=[log, distsgd.Callback()], lr=1e-12, **OPTIONS)
    assert log.notes[0].startswith("note: the targets are 0.0 and 1.0")
    assert any(note.startswith("warning: ") and "not scaled" in note for note in log.notes)
    assert capfd.readouterr() == ("", "")
    fit("mlp", (X * 1e4, values), callbacks=[distsgd.Callback()], lr=1e-12, **OPTIONS)
    assert capfd.readouterr().err.splitlines() == log.notes


def test_a_callback_that_fails_with_a_note_ends_all_ranks() -> None:
    def run(communicator: Communicator) -> str:
        with pytest.raises(TrialPruned, match="no hope") as caught:
            fit("mlp", (X * 1e4, Y), callbacks=[Log(TrialPruned("no hope"))], communicator=communicator, **OPTIONS)
        return str(caught.value)

    assert run_on_threads(2, run) == ["no hope"] * 2
