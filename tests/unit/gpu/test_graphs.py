"""Steps that a GPU runs as recorded graphs: the bits, what is copied and waited for, and what isn't finite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from distsgd import FunctionObjective
from distsgd.core.errors import NonFiniteError
from distsgd.data.examples import Examples
from distsgd.data.loader import Loader
from distsgd.gpu.device import GPU
from distsgd.gpu.graphs import IN_FLIGHT, StepGraphs
from distsgd.gpu.recorded_step import RecordedMinibatch
from distsgd.nn.layers import Activation, Dense, Sequential
from distsgd.nn.objective import Objective
from distsgd.optim.optimizers import Optimizer
from distsgd.optim.schedules import Schedule
from distsgd.parallel.reduction import LocalReduction, Partition, Plan
from distsgd.parallel.serial import SerialCommunicator
from tests import emulated_kernels
from tests.strict_arrays import GRAPH, TO_DEVICE, TO_HOST
from tests.strict_device import StrictModule, strict_device
from tests.strict_streams import StrictStream
from tests.trainers import keep_trainers
from tests.unit.gpu.test_training import LABELS, SETTINGS, VALUES, X, linear, same, train, without_run

pytestmark = pytest.mark.stand_in

MANY: dict[str, Any] = {"batch_size": 12, "epochs": 12}
"""Steps enough that the host looks at them several times between epochs' ends, and a shorter minibatch at each."""
MICROBATCHES = 3


def launches(recorder: Any) -> list[int | None]:
    """The steps that graphs made."""
    return [event.step for event in recorder.events if event.kind == GRAPH]


@pytest.mark.parametrize(
    "setting",
    [
        "mlp",
        "batch norm, dropout",
        "penalties",
        "rmsprop, float64",
        "smoothing",
        "yes or no",
        "sample weights",
        "images",
    ],
)
def test_the_bits_of_steps_made_one_by_one(setting: str) -> None:
    options = {**SETTINGS[setting], **MANY}
    with strict_device(StrictModule()) as recorder:
        result = train("gpu", **options)
    assert len(launches(recorder)) >= 65
    other = train("cpu", **options)
    same(result, other)
    assert [without_run(record) for record in result.history] == [without_run(record) for record in other.history]


@pytest.mark.skipif(emulated_kernels.COMPILER is None, reason=emulated_kernels.WITHOUT)
@pytest.mark.parametrize("setting", ["adam, clipped", "batch norm, dropout", "penalties", "images"])
def test_the_bits_with_the_kernels_of_the_gpu(setting: str) -> None:
    options = {**SETTINGS[setting], **MANY, "clip_norm": None, "log_every": 5}
    with strict_device(StrictModule(), own_kernels=True) as recorder:
        recorded = train("gpu", **options)
        assert launches(recorder)
        same(recorded, train("gpu", **options, cuda_graphs=False))


@pytest.mark.parametrize("setting", ["images", "augmented images", "sample weights", "regression"])
def test_the_bits_of_examples_that_come_from_the_host(setting: str) -> None:
    """Data sets that don't fit, and training images that the host changes: copied while the last step is computed."""
    options = {**SETTINGS[setting], **MANY}
    with strict_device(StrictModule(free_bytes=100)) as recorder:
        result = train("gpu", **options)
    assert len(launches(recorder)) >= 60
    same(result, train("cpu", **options))


def test_a_recorded_step_copies_twice_and_waits_for_nothing() -> None:
    with strict_device(StrictModule()) as recorder:
        train("gpu", train=(np.tile(X, (10, 1)), np.tile(LABELS, 10)), batch_size=5, epochs=1)
    inputs, report = (
        (1 + 2 + 5) * 8,
        (1 + MICROBATCHES * 2) * 8,
    )  # momentum has one scalar; loss sum and count of each microbatch
    assert recorder.of_step(3)[:1] + recorder.of_step(3)[2:] == [(TO_DEVICE, inputs), (TO_HOST, report)]
    assert recorder.of_step(3)[1][0] == GRAPH
    assert launches(recorder) == list(range(1, 161))  # the first one compiles, the last one ends the epoch
    looks = {step for step in recorder.waits if step is not None}
    assert looks == {0, IN_FLIGHT, 2 * IN_FLIGHT, 161}


def test_a_recorded_step_of_examples_that_come_from_the_host() -> None:
    """They are sent, and epoch, step and scalars; not their numbers."""
    with strict_device(StrictModule(free_bytes=100)) as recorder:
        train("gpu", batch_size=5, epochs=1)
    sent = [size for kind, size in recorder.of_step(3) if kind == TO_DEVICE]
    assert sent == [5 * X[0].nbytes, 5 * LABELS[0].nbytes, (1 + 2) * 8]


@pytest.mark.parametrize("log_every", [1, 7])
def test_nothing_is_in_flight_where_something_is_recorded(log_every: int) -> None:
    options = {**MANY, "log_every": log_every, "validation_fraction": 0.2, "validate_every": "3", "max_steps": 40}
    with strict_device(StrictModule()):
        result = train("gpu", **options)
    other = train("cpu", **options)
    same(result, other)
    assert [without_run(record) for record in result.history] == [without_run(record) for record in other.history]


def reported(error: pytest.ExceptionInfo[NonFiniteError]) -> tuple[str, str]:
    """The sentence without the microbatches: a GPU has each microbatch's gradient, the CPU sums of some."""
    what, _, rest = str(error.value).partition(", microbatch")
    return what, rest.partition(";")[2]


@pytest.mark.parametrize("own_kernels", [False, True])
@pytest.mark.parametrize(
    ("x", "y", "learning_rate", "sentence"),
    [
        (1e25, 1e-10, 1e-20, r"the loss is inf at step \d+, microbatch \d"),
        (1e30, 1e10, 1e-30, r"the gradient is not finite at step \d+, microbatch"),
    ],
    ids=["loss", "gradient"],
)
def test_what_is_not_finite_is_named_and_the_parameters_stay(
    x: float, y: float, learning_rate: float, sentence: str, own_kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same sentence as on the CPU, though later steps have begun; and the parameters from before the step."""
    if own_kernels and emulated_kernels.COMPILER is None:
        pytest.skip(emulated_kernels.WITHOUT)
    inputs, options = X.copy(), {"batch_size": 4, "seed": 3, "learning_rate": learning_rate, "model": "softmax"}
    inputs[41] = x
    options["train"] = (inputs, VALUES * np.float32(y))
    with pytest.raises(NonFiniteError, match=sentence) as on_cpu:
        train("cpu", **options)
    trainers = keep_trainers(monkeypatch)
    with strict_device(StrictModule(), own_kernels) as recorder:
        with pytest.raises(NonFiniteError) as on_gpu:
            train("gpu", **options)
        left = trainers[0].step.host_params().flat.copy()
        assert reported(on_gpu) == reported(on_cpu)
        bad = trainers[0].progress.step
        assert max(step for step in launches(recorder) if step is not None) > bad
        clean = train("gpu", **{**options, "max_steps": bad})
    np.testing.assert_array_equal(left, np.concatenate([array.ravel() for array in clean.params.values()]))


def test_a_gpu_that_cannot_record_makes_steps_one_by_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: StrictStream) -> None:
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")

    monkeypatch.setattr(StrictStream, "begin_capture", refuse)
    with strict_device(StrictModule()) as recorder:
        result = train("gpu", **MANY)
    assert not launches(recorder)
    same(result, train("cpu", **MANY))
    assert capsys.readouterr().err.count("can't be recorded as a CUDA graph (calling cuBLAS API") == 1


class Curious(Dense):
    """A layer of somebody else's, which may look at numbers."""


@dataclass(frozen=True)
class OwnOptimizer(Optimizer):
    """Plain descent of somebody else's, with NumPy's functions."""

    learning_rate: float = 0.1
    weight_decay: float = 0.0

    def step(self, params: Any, grads: Any, state: Any, scalars: Any, spare: Any) -> None:
        params -= scalars[0] * grads


@pytest.mark.parametrize(
    "options",
    [
        {"cuda_graphs": False},
        {"clip_norm": 1.0},
        {"on_non_finite": "skip"},
        {"model": Sequential([Curious(12, 6), Activation("relu"), Dense(6, 4)])},
        {
            "train": (X, VALUES),
            "model": FunctionObjective(linear, {"w": np.zeros((3, 12), np.float32)}),
            "learning_rate": 1e-3,
        },
        {"optimizer": OwnOptimizer(0.05)},
    ],
    ids=["by option", "clipped", "looked at", "own layer", "own function", "own optimizer"],
)
def test_what_the_host_has_to_see_is_not_recorded(options: dict[str, Any]) -> None:
    with strict_device(StrictModule()) as recorder:
        result = train("gpu", **{**MANY, **options})
    assert not launches(recorder)
    same(result, train("cpu", **{**MANY, **options}))


class Repeating(FunctionObjective):
    """A function that says that it does the same in each step."""

    def repeats_itself(self) -> bool:
        return True


def test_gradients_start_at_zero_in_recorded_steps() -> None:
    def adding(params: Any, grads: Any, batch: Any) -> tuple[Any, int]:
        error = params["w"] @ batch.x - batch.y
        grads["w"] += error @ batch.x.T
        return 0.5 * np.add.reduce(np.square(error).ravel()), len(batch)

    model = Repeating(adding, {"w": np.zeros((3, 12), np.float32)})
    options = {**MANY, "train": (X, VALUES), "model": model, "learning_rate": 1e-3}
    with strict_device(StrictModule()) as recorder:
        result = train("gpu", **options)
    assert launches(recorder)
    same(result, train("cpu", **options))


@dataclass(frozen=True)
class Broken(Schedule):
    """No number from some step on."""

    def multiplier(self, step: int, steps_per_epoch: int) -> float:
        return 1.0 if step < 22 else math.nan


def test_a_schedule_that_gives_no_number() -> None:
    """NaN is what ends updates after a non-finite value: a run must not continue for ever without any."""
    printed = []
    with strict_device(StrictModule()):
        for device in ("cpu", "gpu"):
            with pytest.raises(NonFiniteError) as error:
                train(device, **MANY, schedule=Broken())
            printed.append(str(error.value))
    assert printed[0].partition(", microbatch")[0] == printed[1].partition(", microbatch")[0]


def test_graphs_of_many_lengths() -> None:
    """More lengths than graphs are kept: each step's numbers are its own, before and after its graph was dropped."""
    module = StrictModule()
    with strict_device(module) as recorder:

        def compute(inputs: RecordedMinibatch) -> tuple[Any, tuple[Any, ...]]:
            total = np.add.reduce(inputs.numbers, dtype=np.float64)
            return (total * inputs.scalars[0]).reshape(1, 1), ()

        device = GPU("gpu:0", module)
        device.use()
        there = Examples(module.asarray(np.zeros((20, 1))), module.asarray(np.zeros(20)))
        reduction = LocalReduction(
            SerialCommunicator(), Plan(Partition(1, 1, 4), 1, np.dtype(np.float64), 0, 1, device)
        )
        loader = Loader(there, Objective, np.dtype(np.float64), 0, device=device)
        graphs = StepGraphs(loader, reduction, compute, 9, 1)
        reported = []
        lengths = [3, 4, 5, 6, 7, 8, 3, 3, 8]
        for step, length in enumerate(lengths):
            graphs.start((0, length), np.arange(length) + step, 0, step, (0.5 + step,))
            reported += [float(records[0, 0]) for records, _ in graphs.reports()] if step % 4 == 3 else []
        reported += [float(records[0, 0]) for records, _ in graphs.reports()]
    assert reported == [sum(range(at, at + n)) * (0.5 + at) for at, n in enumerate(lengths)]
    assert len(launches(recorder)) == len(lengths)
