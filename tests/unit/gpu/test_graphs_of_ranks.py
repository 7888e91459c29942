"""Steps that the GPUs of several ranks make by themselves, with NCCL among them: the bits, and what ranks agree on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd.core.errors import NonFiniteError
from distsgd.gpu.device import GPU
from distsgd.gpu.graphs import IN_FLIGHT
from distsgd.parallel import Communicator
from distsgd.training.callbacks import Callback, RunView
from tests.strict_arrays import GRAPH, MPI, NCCL, RECORDER
from tests.strict_device import StrictModule, strict_device
from tests.strict_nccl import StrictNccl
from tests.strict_streams import StrictStream
from tests.threads import run_on_threads
from tests.unit.gpu.test_training import LABELS, SETTINGS, VALUES, X, on_ranks, same, train, watched, without_run

pytestmark = pytest.mark.stand_in

MANY: dict[str, Any] = {"batch_size": 24, "epochs": 12}


def gpus(count: int) -> StrictModule:
    return StrictModule(gpus=count, nccl=StrictNccl())


def launches(recorder: Any, gpu: int) -> list[int | None]:
    return [event.step for event in recorder.events if (event.kind, event.gpu) == (GRAPH, gpu)]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("setting", ["mlp", "batch norm, dropout", "penalties", "rmsprop, float64", "images"])
def test_the_same_bits(size: int, setting: str) -> None:
    options = {**SETTINGS[setting], **MANY}
    with strict_device(gpus(size)) as recorder:
        results = on_ranks(size, size, **options)
    alone = train("cpu", **options)
    for rank, result in enumerate(results):
        assert len(launches(recorder, rank)) >= 6 * 5
        same(result, alone)
    history, other = ([without_run(record) for record in result.history] for result in (results[0], alone))
    assert history == other


@pytest.mark.parametrize("options", [{}, {"cuda_graphs": False}, {"learning_rate": 1e30}], ids=str)
def test_nccl_ends_after_the_graphs_with_its_messages(options: dict[str, Any]) -> None:
    """It waits for them, so who left the order to chance would hang; by an error, too, that all ranks raise."""
    module = gpus(2)

    def on_rank(communicator: Communicator) -> None:
        try:
            train("gpu", communicator=watched(communicator), **MANY, **options)
        except NonFiniteError:
            assert options["learning_rate"]

    with strict_device(module):
        run_on_threads(2, on_rank)
    assert [comm.ended for comm in module.nccl.comms] == [True, True]


def test_a_data_set_lies_on_all_gpus_or_on_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks whose examples come from the host record more graphs, which the others would not join."""
    monkeypatch.setattr(GPU, "free_bytes", lambda device: (1 << 30) if device.index else 100)
    with strict_device(gpus(2)) as recorder:
        results = on_ranks(2, **MANY)
    assert launches(recorder, 0) == launches(recorder, 1)
    same(results[0], train("cpu", **MANY))


def test_mpi_is_not_needed_until_results_are_looked_at() -> None:
    with strict_device(gpus(2)) as recorder:
        on_ranks(2, train=(np.tile(X, (10, 1)), np.tile(LABELS, 10)), batch_size=5, epochs=1)
    for gpu in range(2):
        by_themselves = [step for step in launches(recorder, gpu) if step is not None]
        assert len(by_themselves) > 2 * IN_FLIGHT
        others = {event.step for event in recorder.events if event.kind == MPI and event.gpu == gpu}
        assert not others & set(by_themselves)
        assert not [e for e in recorder.events if e.kind == NCCL and e.step == by_themselves[5]]  # it is in the graph


class Stopping(Callback):
    """Asks for an end on one rank, in the middle of an epoch."""

    def on_start(self, run: RunView) -> None:
        self.run = run

    def on_step(self, step: int, loss: float, examples: int) -> None:
        if step == 70:
            self.run.stop()


def test_a_rank_that_is_asked_to_stop_takes_the_others_along() -> None:
    """All stop after the same step, and what they have is what as many steps make."""
    options: dict[str, Any] = {"train": (np.tile(X, (30, 1)), np.tile(LABELS, 30)), "batch_size": 5, "epochs": 2}
    with strict_device(gpus(2)):
        results = run_on_threads(2, lambda c: train("gpu", communicator=watched(c), callbacks=[Stopping()], **options))
    (steps,) = {result.summary["steps"] for result in results}
    assert results[0].summary["status"] == "stopped"
    assert 70 < steps <= 70 + 2 * IN_FLIGHT
    alone = train("cpu", **{**options, "max_steps": steps})
    for result in results:
        assert [array.tobytes() for array in result.params.values()] == [
            array.tobytes() for array in alone.params.values()
        ]


def test_checkpoints_fall_on_their_steps(tmp_path: Path) -> None:
    """Not each of them is written, for the one before may still be; at an epoch's end there would be one as well."""
    options = {**MANY, "checkpoint_every": "4", "keep": 50, "epochs": 3, "optimizer": "adam"}
    with strict_device(gpus(2)):
        on_ranks(2, **options, out=str(tmp_path))
    names = {path.stem for path in (tmp_path / "checkpoints").iterdir()} - {"best", "last"}
    assert names <= {f"step-{step}" for step in (4, 8, 12, 16, 20, 21)}
    assert len(names) >= 3


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    ("x", "y", "rate", "sentence"),
    [(1e25, 1e-10, 1e-20, "the loss is inf at step"), (1e30, 1e10, 1e-30, "the gradient is not finite at step")],
    ids=["loss", "gradient"],
)
def test_what_is_not_finite_ends_all_ranks(size: int, x: float, y: float, rate: float, sentence: str) -> None:
    inputs = X.copy()
    inputs[41] = x
    options: dict[str, Any] = {
        "train": (inputs, VALUES * np.float32(y)), "batch_size": 4, "seed": 3, "learning_rate": rate,
        "model": "softmax",
    }  # fmt: skip
    with pytest.raises(NonFiniteError, match=sentence) as on_cpu:
        train("cpu", **options)
    reported = []

    def on_rank(communicator: Communicator) -> None:
        try:
            train("gpu", communicator=watched(communicator), **options)
        except NonFiniteError as error:
            reported.append(str(error))

    with strict_device(gpus(size)):
        run_on_threads(size, on_rank)
    assert {text.partition(", microbatch")[0] for text in reported} == {str(on_cpu.value).partition(", microbatch")[0]}
    assert len(reported) == size


def test_one_rank_that_cannot_record_takes_all_along(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = StrictStream.begin_capture

    def refuse(self: StrictStream) -> None:
        if RECORDER.gpu == 1:
            raise RuntimeError("cudaErrorStreamCaptureUnsupported")
        begin(self)

    monkeypatch.setattr(StrictStream, "begin_capture", refuse)
    with strict_device(gpus(2)) as recorder:
        results = on_ranks(2, **MANY)
    assert not launches(recorder, 0)
    same(results[0], train("cpu", **MANY))
    assert capsys.readouterr().err.count("can't be recorded as a CUDA graph (cudaErrorStreamCaptureUnsupported)") == 1


def test_without_nccl_each_step_is_launched() -> None:
    with strict_device(StrictModule(gpus=2)) as recorder:
        results = on_ranks(2, **MANY)
    assert not launches(recorder, 0)
    same(results[0], train("cpu", **MANY))


def test_steps_of_gpus_are_profiled_and_traced(tmp_path: Path) -> None:
    """The same bits and as many graphs, and all ranks' steps in the trace: the times are those of the host's calls."""
    with strict_device(gpus(2)) as recorder:
        plain = on_ranks(2, **MANY)
        before = len(launches(recorder, 0))
        measured = on_ranks(2, **MANY, profile=True, trace=str(tmp_path / "t.json"))
        assert len(launches(recorder, 0)) == 2 * before
    same(measured[0], plain[0])
    assert all(len(record["run"]["profile"]["compute"]) == 2 for record in measured[0].history)
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    for rank in range(2):
        steps = [one["name"] for one in events if one["pid"] == rank and one["name"].startswith("step ")]
        assert steps == [f"step {number}" for number in range(10, 21)]
