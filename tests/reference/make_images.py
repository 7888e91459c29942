"""Writes images.npz: forward and backward values of PyTorch's layers on images, which tests/unit compares with ours.

    python tests/reference/make_images.py

Run by hand; needs torch 2 (any build for the CPU) and NumPy. Everything is float64, and batch-last as distsgd has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
CASES: dict[str, np.ndarray] = {}
N = 3


def batch_last(array: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(array.detach().numpy(), 0, -1))


def record(
    case: str,
    function: Callable[[torch.Tensor], torch.Tensor],
    shape: tuple[int, ...],
    parameters: Mapping[str, nn.Parameter] | None = None,
) -> None:
    """Stores x, y, a random dy, dx, and parameters and their gradients by distsgd's names."""
    x = torch.randn(N, *shape, requires_grad=True)
    y = function(x)
    dy = torch.randn_like(y)
    y.backward(dy)
    for name, array in {"x": x, "y": y, "dy": dy, "dx": x.grad}.items():
        CASES[f"{case}/{name}"] = batch_last(array)
    for name, parameter in (parameters or {}).items():
        CASES[f"{case}/parameter {name}"] = parameter.detach().numpy()
        CASES[f"{case}/gradient {name}"] = parameter.grad.numpy()
    print(case, tuple(y.shape))


def ours(module: nn.Module, names: Mapping[str, str]) -> dict[str, nn.Parameter]:
    """The parameters of a module by our names, `names` saying what its parts are called there."""
    found = {}
    for theirs, parameter in module.named_parameters():
        part, _, kind = theirs.rpartition(".")
        prefix = names[part]
        kind = {"weight": "scale", "bias": "shift"}[kind] if "batchnorm" in prefix else kind
        with torch.no_grad():
            parameter.copy_(torch.randn_like(parameter))
        found[prefix.removesuffix("batchnorm") + kind] = parameter
    return found


def single(case: str, module: nn.Module, shape: tuple[int, ...], kind: str = "") -> None:
    record(case, module, shape, ours(module, {"": kind}))


def convolutions() -> None:
    single("conv valid", nn.Conv2d(3, 4, 5), (3, 9, 8))
    single("conv same", nn.Conv2d(3, 4, 3, padding="same"), (3, 6, 5))
    single("conv same, even kernel", nn.Conv2d(3, 4, 4, padding="same"), (3, 6, 5))
    single("conv stride 2", nn.Conv2d(3, 4, 3, 2, 1), (3, 7, 6))
    single("conv stride 2 same", nn.Conv2d(3, 4, 3, 2, 1), (3, 8, 8))
    single("conv oblong", nn.Conv2d(3, 4, (1, 3), (2, 1), 2), (3, 6, 5))
    single("conv 1x1", nn.Conv2d(3, 4, 1, bias=False), (3, 6, 5))
    single("conv 1x1 stride 2", nn.Conv2d(3, 4, 1, 2), (3, 6, 5))


def pooling() -> None:
    record("max 2", nn.MaxPool2d(2), (3, 6, 7))
    record("max 3 stride 2", nn.MaxPool2d(3, 2), (3, 7, 8))
    record("max oblong", nn.MaxPool2d((1, 3), (2, 1)), (3, 6, 5))
    record("average 2", nn.AvgPool2d(2), (3, 6, 7))
    record("average 3 stride 2", nn.AvgPool2d(3, 2), (3, 7, 8))
    record("global average", lambda x: functional.adaptive_avg_pool2d(x, 1).flatten(1), (3, 4, 5))
    record("flatten", nn.Flatten(), (3, 4, 5))


def blocks() -> None:
    single("batch normalization", nn.BatchNorm2d(3), (3, 5, 4), "batchnorm")
    module = nn.ModuleDict({
        "first": nn.Conv2d(3, 5, 3, 2, 1, bias=False), "first normal": nn.BatchNorm2d(5),
        "second": nn.Conv2d(5, 5, 3, 1, 1, bias=False), "second normal": nn.BatchNorm2d(5),
        "around": nn.Conv2d(3, 5, 1, 2, bias=False), "around normal": nn.BatchNorm2d(5),
    })  # fmt: skip
    names = {
        "first": "body.conv1.", "first normal": "body.batchnorm1.", "second": "body.conv2.",
        "second normal": "body.batchnorm2.", "around": "shortcut.conv1.", "around normal": "shortcut.batchnorm1.",
    }  # fmt: skip

    def residual(x: torch.Tensor) -> torch.Tensor:
        inside = functional.relu(module["first normal"](module["first"](x)))
        return module["second normal"](module["second"](inside)) + module["around normal"](module["around"](x))

    record("residual", residual, (3, 8, 6), ours(module, names))
    conv = nn.Conv2d(3, 3, 3, padding=1)
    record("residual, identity", lambda x: x + torch.tanh(conv(x)), (3, 5, 4), ours(conv, {"": "body.conv1."}))


if __name__ == "__main__":
    for make in (convolutions, pooling, blocks):
        make()
    np.savez_compressed(Path(__file__).with_name("images.npz"), **CASES)
