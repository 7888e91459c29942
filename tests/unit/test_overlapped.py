"""Gradients that are sent while backward goes on: results, order, what streams wait for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from distsgd import Layer
from distsgd.batch import Batch
from distsgd.communication import overlapped
from distsgd.communication.exchange import BLOCK
from distsgd.device import Array, Shape
from distsgd.errors import LaneError
from distsgd.layers import Dense, Sequential
from distsgd.layers.base import Backward
from distsgd.layout import Views
from tests import emulated_kernels, strict_nccl
from tests.strict_arrays import KERNEL, NCCL, TO_HOST
from tests.strict_device import StrictModule, strict_device
from tests.strict_nccl import StrictNccl
from tests.strict_streams import StrictStream
from tests.unit.test_gpu_training import IMAGES, LABELS, VALUES, X, on_ranks, same, train

DEEP: dict[str, Any] = {"hidden": (200, 200, 100), "max_steps": 4}
"""Four blocks of 16,384 elements, the first layer's in the first and the last one's in the last."""
SETTINGS: dict[str, dict[str, Any]] = {
    "mlp": DEEP,
    "adam, clipped, dropout": {**DEEP, "optimizer": "adam", "clip_norm": 0.5, "dropout": 0.2, "log_every": 1},
    "short batches": {**DEEP, "batch_size": 2, "max_steps": 6},
    "images": {"train": (IMAGES, LABELS), "model": "conv 8 3x3 same, relu, dense 120, relu, dense", "max_steps": 3},
    "a minibatch is left out": {
        **DEEP, "train": (np.where(np.arange(len(X))[:, None] == 50, np.float32(3e38), X), LABELS),
        "on_non_finite": "skip",
    },
}  # fmt: skip


@pytest.fixture(params=[1, 3])
def _stretches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlapped, "STRETCH_BYTES", request.param * BLOCK * 4)


@pytest.fixture
def _a_block_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlapped, "STRETCH_BYTES", BLOCK * 4)


@pytest.mark.usefixtures("_stretches")
@pytest.mark.parametrize("setting", list(SETTINGS))
@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_same_bits(size: int, setting: str) -> None:
    options = {**SETTINGS[setting], "logical_ranks": size}
    module = StrictModule(gpus=size, nccl=StrictNccl())
    with strict_device(module):
        results = on_ranks(size, size, **options)
    alone = train("cpu", **options)
    for result in results:
        same(result, alone)
    sends = module.nccl.calls["send"]
    assert sends > results[0].summary["steps"] * size * (size - 1), "more than one message a step to each rank"


@pytest.mark.skipif(emulated_kernels.COMPILER is None, reason=emulated_kernels.WITHOUT)
@pytest.mark.usefixtures("_a_block_each")
def test_stretches_are_sent_while_backward_goes_on() -> None:
    with strict_device(StrictModule(gpus=2, nccl=StrictNccl()), own_kernels=True) as recorder:
        result = on_ranks(2, logical_ranks=2, cuda_graphs=False, **DEEP)[0]
        all_events = recorder.events
    with strict_device(StrictModule(), own_kernels=True):
        alone = train("gpu", logical_ranks=2, **DEEP)
    same(result, alone)
    for gpu in range(2):
        events = [e for e in all_events if (e.step, e.gpu) == (1, gpu)]
        records = next(at for at, e in enumerate(events) if e.kind == TO_HOST)
        sent = [at for at, e in enumerate(events) if e.kind == NCCL and at < records]
        biases = [at for at, e in enumerate(events) if (e.kind, e.what) == (KERNEL, "row_sums")]
        assert len(biases) == 4
        before_last_layer = [at for at in sent if at < biases[-1]]
        assert len(before_last_layer) >= 4, "of two stretches or more: the rows, and their sums to the owners"
        assert [e.what for e in events if e.kind == TO_HOST][:2] == [2 * 8, 4], "records, and whether all is finite"


@pytest.mark.usefixtures("_a_block_each")
@pytest.mark.parametrize("stream", [1, 2])
def test_a_wait_that_is_missing_is_seen(stream: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wait = StrictStream.wait_event

    def without(self: StrictStream, event: Any) -> None:
        if self.ptr != stream:
            wait(self, event)

    monkeypatch.setattr(StrictStream, "wait_event", without)
    monkeypatch.setattr(strict_nccl, "SECONDS", 1.0)
    said = f"stream {stream} .* what stream {3 - stream} .*, and nothing says which comes first"
    with strict_device(StrictModule(gpus=2, nccl=StrictNccl())), pytest.raises(Exception, match=said):
        on_ranks(2, logical_ranks=2, **DEEP)


@dataclass(frozen=True)
class Failing(Layer):
    """Passes all on, and fails in backward of the second step's lane 1."""

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    def forward(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
        def backward(dy: Array, grads: Views) -> Array:
            if (batch.step, batch.lane) == (1, 1):
                raise KeyError("in the middle of backward")
            return dy

        return x, backward


@pytest.mark.usefixtures("_a_block_each")
@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_fails_in_backward_leaves_nobody_waiting(failing: int) -> None:
    layers = [Dense(12, 200), Dense(200, 200), Dense(200, 4)]
    layers.insert(failing + 1, Failing())  # type: ignore[arg-type]
    module = StrictModule(gpus=3, nccl=StrictNccl())
    with strict_device(module), pytest.raises(LaneError, match=r"failed on rank 1 .*step 2, lane 1"):
        on_ranks(3, 3, model=Sequential(layers), learning_rate=0.01)


@dataclass(frozen=True)
class Scaled(Layer):
    """A model of the user's own that writes its own parameter's gradient, the last of the buffer, last."""

    inner: Sequential

    def parameter_shapes(self) -> dict[str, Shape]:
        return {**self.inner.parameter_shapes(), "scale": (3,)}

    def initialize(self, params: Views, seed: int, path: str) -> None:
        self.inner.initialize(Views({n: a for n, a in params.items() if n != "scale"}, params.flat), seed, path)
        params["scale"][...] = 1.0

    def output_shape(self, shape: Shape) -> Shape:
        return self.inner.output_shape(shape)

    def forward(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
        y, inner_backward = self.inner.forward(params, x, batch, path)

        def backward(dy: Array, grads: Views) -> Array | None:
            dx = inner_backward(dy * params["scale"][:, None], grads)
            grads["scale"][...] = np.add.reduce(dy * y, axis=1)
            return dx

        return y * params["scale"][:, None], backward


@pytest.mark.usefixtures("_a_block_each")
def test_what_a_model_of_the_users_writes_last_is_sent_last() -> None:
    model = Scaled(Sequential([Dense(12, 200), Dense(200, 200), Dense(200, 3)]))
    options: dict[str, Any] = {"model": model, "train": (X, VALUES), "learning_rate": 1e-4, "logical_ranks": 2}
    with strict_device(StrictModule(gpus=2, nccl=StrictNccl())):
        result = on_ranks(2, **options)[0]
    same(result, train("cpu", **options))
