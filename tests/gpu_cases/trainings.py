"""Whole trainings on a GPU: close to the CPU's, the same bits each time, and mistakes that are reported.

The module that collects these tests has a fixture `gpu`, the device that `--device gpu` means.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd import nn
from distsgd.core.device import Array, Device, Shape, to_host
from distsgd.core.errors import DistsgdError, OutOfMemoryError
from distsgd.core.layout import Views
from distsgd.core.random import normal, uniform
from distsgd.nn.batch import Batch
from distsgd.nn.layers.base import Backward, Layer
from distsgd.run.fit import fit
from distsgd.run.trained.trained_model import Result

EXAMPLES, CLASSES = 120, 4
X = normal((EXAMPLES, 12), 1, "x").astype(np.float32)
LABELS = np.argmax(X[:, :CLASSES], axis=1)
IMAGES = (uniform((EXAMPLES, 2, 8, 8), 2, "images") * 256).astype(np.uint8)


def residual_network() -> Layer:
    """A small resnet: two blocks, the second with half the height and width, each with the ReLU after it."""

    def block(channels: int, filters: int, stride: int) -> list[Layer]:
        body = [
            nn.Convolution(channels, filters, 3, stride, "same", bias=False),
            nn.BatchNormalization(filters),
            nn.Activation("relu"),
            nn.Convolution(filters, filters, 3, 1, "same", bias=False),
            nn.BatchNormalization(filters),
        ]
        shortcut = None if stride == 1 else nn.Subsample(filters, stride)
        return [nn.Residual(nn.Sequential(body), shortcut), nn.Activation("relu")]

    return nn.Sequential([*block(2, 2, 1), *block(2, 6, 2), nn.GlobalAveragePooling(), nn.Dense(6, CLASSES)])


NETS: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": (16, 12)},
    "batch norm": {"hidden": (16, 12), "batch_norm": True},
    "dropout": {"hidden": (16, 12), "dropout": 0.3, "activation": "tanh"},
    "conv": {
        "model": "conv 6 3x3 same, tanh, pool 2, conv 8 3x3, tanh, dense 12, tanh, dense",
        "train": (IMAGES, LABELS),
    },
    "conv, all there is": {
        "model": "conv 6 3x3 same, batch-norm, gelu, average-pool 2, conv 8 3x3 stride 2, relu, channel-dropout 0.2, "
        "dense",
        "train": (IMAGES, LABELS),
    },
    "residual": {"model": residual_network(), "train": (IMAGES, LABELS)},
}
AGREE = {"float32": 1e-5, "float64": 1e-12}
"""How far parameters may be from the CPU's after 100 steps."""
STEPS = 100


def train(device: str, train: Any = (X, LABELS), model: Any = "mlp", **options: Any) -> Result:
    return fit(
        model,
        train,
        device=device,
        **{"epochs": 1000, "max_steps": STEPS, "batch_size": 40, "microbatches": 2, "threads": 1,
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


# --- mistakes


def loss_of(*, outputs: Any = None, loss: Any = None) -> distsgd.FunctionObjective:
    """A user's function of a linear model whose outputs or loss are made by these functions."""

    def function(params: Views, grads: Views, batch: Batch) -> tuple[Any, int]:
        y = params["w"] @ batch.x if outputs is None else outputs(params, batch)
        grads["w"][...] = y @ batch.x.T
        return (y * y).sum() if loss is None else loss(y), len(batch)

    return distsgd.FunctionObjective(function, {"w": np.full((3, 12), 0.1, np.float32)})


def host_weights(params: Views, batch: Batch) -> Any:
    return np.ones((3, 12), np.float32) @ batch.x


def host_numbers(params: Views, batch: Batch) -> Any:
    return np.asarray(batch.x)[:3]


FUNCTIONS = {
    "an array of NumPy": (loss_of(outputs=host_weights), r"An array of NumPy met one of the GPU: make arrays with"),
    "a conversion": (loss_of(outputs=host_numbers), r"An array of NumPy met one of the GPU: make arrays with"),
    "no sum": (loss_of(loss=lambda y: y * y), r"two numbers, got \(the GPU's float32 of shape \(3, 20\), int\)"),
    "no number": (loss_of(loss=lambda y: "a lot"), r"\(loss_sum, example_count\), two numbers, got \(str, int\)"),
    "no tuple": (
        distsgd.FunctionObjective(lambda params, grads, batch: 1.0, {"w": np.zeros(3)}),
        r"two numbers, got float",
    ),
}


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_functions_that_return_what_they_should_not(gpu: Device, name: str) -> None:
    model, printed = FUNCTIONS[name]
    with pytest.raises(
        (DistsgdError, TypeError), match=rf"(?s)(step 1, microbatch 0.*|a loss function must return .*){printed}"
    ):
        train(gpu.name, model=model)


def test_a_function_that_is_right(gpu: Device) -> None:
    assert train(gpu.name, model=loss_of(), max_steps=2).summary["steps"] == 2


@dataclass(frozen=True)
class Wrong(distsgd.Layer):
    """Hands x on as something else."""

    change: Any

    def output_shape(self, shape: Shape) -> Shape:
        return shape

    def forward(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
        return self.change(x), lambda dy, grads: dy


LAYERS_OF_USERS = {
    "another dtype": (lambda x: x.astype(np.float64), "must be the GPU's float32 as its inputs are, got the GPU's fl"),
    "the host": (to_host, "must be the GPU's float32 as its inputs are, got NumPy's float32"),
}


@pytest.mark.parametrize("name", list(LAYERS_OF_USERS))
@pytest.mark.parametrize("last", [True, False])
def test_layers_that_return_what_they_should_not(gpu: Device, name: str, last: bool) -> None:
    change, printed = LAYERS_OF_USERS[name]
    layers = [distsgd.Dense(12, CLASSES), Wrong(change)] if last else [Wrong(change), distsgd.Dense(12, CLASSES)]
    others = (
        r"(?s)expected arrays of a GPU, all of float32.*step 1, microbatch 0"
        r"|step 1, microbatch 0.*An array of NumPy met one of the GPU"
    )
    with pytest.raises((DistsgdError, TypeError), match=printed if last else others):
        train(gpu.name, model=distsgd.Sequential(layers))


@contextmanager
def little_memory(gpu: Device) -> Iterator[None]:
    """Inside, the GPU has 48 MiB left: enough for cuBLAS, and a small model."""
    pool = gpu.xp.get_default_memory_pool()
    pool.free_all_blocks()
    pool.set_limit(size=pool.used_bytes() + (48 << 20))
    try:
        yield
    finally:
        pool.set_limit(size=0)


TOO_MUCH = r"the GPU is out of memory \(Out of memory allocating [\d,]+ bytes.*\); use a smaller minibatch"


def test_a_model_that_does_not_fit(gpu: Device) -> None:
    printed = rf"a model of 4,036,004 parameters, .* takes 0.1 GB of memory, .* GB left: {TOO_MUCH}"
    with little_memory(gpu), pytest.raises(OutOfMemoryError, match=printed):
        train(gpu.name, hidden=(2000, 2000))


def test_a_minibatch_that_does_not_fit(gpu: Device) -> None:
    model, many = "conv 4 5x5 same, pool 2, relu, dense", (np.tile(IMAGES, (40, 1, 1, 1)), np.tile(LABELS, 40))
    with little_memory(gpu), pytest.raises(OutOfMemoryError, match=rf"rank 0 \(.*\), step 1, microbatch 0: {TOO_MUCH}"):
        train(gpu.name, many, model, batch_size="full", microbatches=1)
    assert train(gpu.name, (IMAGES, LABELS), model, max_steps=1).summary["steps"] == 1  # there is free memory again
