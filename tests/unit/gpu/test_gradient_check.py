"""check_gradient of a batch on a stand-in for a GPU, whose gradient is compared with differences of the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from distsgd.core.device import Device, in_host_memory
from distsgd.core.layout import Views
from distsgd.core.random import normal
from distsgd.gpu.devices import choose_device
from distsgd.nn.batch import Batch
from distsgd.testing import LossFunction, check_gradient
from tests.strict_device import StrictModule, strict_device

pytestmark = pytest.mark.stand_in

N = 6
PARAMS = {"w": normal((3, 4), 1, "w").astype(np.float32)}


@pytest.fixture
def gpu() -> Iterator[Device]:
    with strict_device(StrictModule()):
        yield choose_device("gpu")[0]


def batch_on(device: Device, dtype: Any = np.float32) -> Batch:
    x, y, weights = (normal(shape, 1, "x").astype(dtype) for shape in ((4, N), (3, N), (N,)))
    put = device.put
    return Batch(put(x), put(y), np.arange(N), put(weights), device=device, state={"s": put(np.ones(1, dtype))})


def quartic(params: Views, grads: Views, batch: Batch) -> tuple[Any, int]:
    """A quarter of the weighted fourth powers of a linear model's errors."""
    assert batch.weights is not None
    error = params["w"] @ batch.x - batch.y
    grads["w"][...] = (batch.weights * batch.state["s"] * error * error * error) @ batch.x.T
    return 0.25 * np.add.reduce((batch.weights * batch.state["s"] * np.square(np.square(error))).ravel()), len(batch)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2.0**-10), (np.float64, 1e-6)])
def test_the_gradient_is_the_gpus_and_the_differences_the_cpus(gpu: Device, dtype: Any, tolerance: float) -> None:
    seen = []

    def noted(params: Views, grads: Views, batch: Batch) -> tuple[Any, int]:
        arrays = (params["w"], grads["w"], batch.x, batch.y, batch.weights, batch.state["s"])
        assert len({(type(one), one.dtype) for one in arrays}) == 1  # type: ignore[union-attr]
        seen.append((in_host_memory(batch.x), batch.x.dtype, batch.device.host_memory))
        return quartic(params, grads, batch)

    params = {name: array.astype(dtype) for name, array in PARAMS.items()}
    found = check_gradient(noted, params, batch_on(gpu, dtype), per_parameter=True, start=np.nan)
    assert (found.ok, found.checked, found.tolerance) == (True, 12, tolerance)
    assert seen.count((False, np.dtype(dtype), False)) == 1
    assert set(seen) == {(False, np.dtype(dtype), False), (True, np.dtype(np.float64), True)}


def wrong_sums(params: Views, grads: Views, batch: Batch) -> tuple[Any, int]:
    """On the GPU a slightly wrong gradient."""
    found = quartic(params, grads, batch)
    if not in_host_memory(batch.x):
        grads["w"] *= 1.01
    return found


def another_function(params: Views, grads: Views, batch: Batch) -> tuple[Any, int]:
    """On the GPU the right gradient of another loss."""
    loss, count = quartic(params, grads, batch)
    if not in_host_memory(batch.x):
        grads["w"] *= 2.0
        loss *= 2.0
    return loss, count


def holes(params: Views, grads: Views, batch: Batch) -> tuple[Any, int]:
    """On the GPU a gradient that isn't written."""
    return quartic(params, grads if in_host_memory(batch.x) else {"w": grads["w"].copy()}, batch)  # type: ignore[arg-type]


@pytest.mark.parametrize("function", [wrong_sums, another_function, holes])
@pytest.mark.parametrize("per_parameter", [False, True])
def test_what_only_the_gpu_does_wrong_is_found(gpu: Device, function: LossFunction, per_parameter: bool) -> None:
    assert check_gradient(function, PARAMS, batch_on(Device()), per_parameter=per_parameter, start=np.nan).ok
    assert not check_gradient(function, PARAMS, batch_on(gpu), per_parameter=per_parameter, start=np.nan).ok


def test_a_gradient_that_rounding_alone_makes_is_right(gpu: Device) -> None:
    """Of a shift that changes no loss: terms that cancel in float64 leave a rest in float32."""

    def shifted(params: Views, grads: Views, batch: Batch) -> tuple[Any, int]:
        scores = params["w"] @ batch.x + params["b"]
        error = scores - np.add.reduce(scores, axis=0) / 3.0
        grads["w"][...] = error @ batch.x.T
        grads["b"][...] = np.add.reduce(error, axis=0).sum() / 7.0
        return 0.5 * np.add.reduce(np.square(error).ravel()), len(batch)

    params = {**PARAMS, "b": np.full(1, 100.3, np.float32)}
    found = check_gradient(shifted, params, batch_on(gpu), per_parameter=True)
    assert found.ok
    assert found.max_relative_error > 1e-6
