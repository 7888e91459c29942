"""Whole trainings on a GPU: close to the CPU's, the same bits each time, and mistakes that are told.

The module that collects these tests has a fixture `gpu`, the device that `--device gpu` means.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd.batch import Batch
from distsgd.device import Device
from distsgd.errors import LaneError
from distsgd.fitting import Result, fit
from distsgd.layout import Views
from distsgd.random import normal, uniform

EXAMPLES, CLASSES = 120, 4
X = normal((EXAMPLES, 12), 1, "x").astype(np.float32)
LABELS = np.argmax(X[:, :CLASSES], axis=1)
IMAGES = (uniform((EXAMPLES, 2, 8, 8), 2, "images") * 256).astype(np.uint8)

NETS: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": (16, 12)},
    "batch norm": {"hidden": (16, 12), "batch_norm": True},
    "dropout": {"hidden": (16, 12), "dropout": 0.3, "activation": "tanh"},
    "conv": {
        "model": "conv 6 3x3 same, relu, pool 2, conv 8 3x3, relu, dense 12, relu, dense",
        "train": (IMAGES, LABELS),
    },
    "conv, all there is": {
        "model": "conv 6 3x3 same, batch-norm, gelu, average-pool 2, conv 8 3x3 stride 2, relu, channel-dropout 0.2, "
        "dense",
        "train": (IMAGES, LABELS),
    },
}
AGREE = {"float32": 1e-5, "float64": 1e-12}
"""How far parameters may be from the CPU's after 100 steps."""
STEPS = 100


def train(device: str, train: Any = (X, LABELS), model: Any = "mlp", **options: Any) -> Result:
    return fit(
        model,
        train,
        device=device,
        **{"epochs": 1000, "max_steps": STEPS, "batch_size": 40, "logical_ranks": 2, "threads": 1,
           "learning_rate": 0.01, "validation_fraction": 0.0, **options},
    )  # fmt: skip


@pytest.mark.parametrize("dtype", list(AGREE))
@pytest.mark.parametrize("name", list(NETS))
def test_close_to_the_cpu_after_100_steps(gpu: Device, name: str, dtype: str) -> None:
    there, here = (train(device, **NETS[name], dtype=dtype) for device in (gpu.name, "cpu"))
    assert there.summary["steps"] == STEPS
    assert there.summary["run"]["device"] == str(gpu)
    for key, array in here.params.items():
        np.testing.assert_allclose(there.params[key], array, rtol=AGREE[dtype], atol=AGREE[dtype], err_msg=key)
    assert there.summary["train_loss"] == pytest.approx(here.summary["train_loss"], rel=100 * AGREE[dtype])


@pytest.mark.parametrize("name", list(NETS))
def test_the_same_bits_again(gpu: Device, name: str) -> None:
    first, second = (train(gpu.name, **NETS[name]).summary["parameters_sha256"] for _ in range(2))
    assert first == second


def test_numpy_arrays_in_a_users_function(gpu: Device) -> None:
    def wrong(params: Views, grads: Views, batch: Batch) -> tuple[Any, int]:
        grads["w"][...] = 0.0
        return (np.ones((3, 12), np.float32) @ batch.x).sum(), len(batch)

    model = distsgd.Custom(wrong, {"w": np.zeros((3, 12), np.float32)})
    with pytest.raises(LaneError, match=r"step 1, lane 0(.|\n)*Unsupported type"):
        train(gpu.name, model=model)
