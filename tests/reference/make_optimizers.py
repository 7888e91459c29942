"""Writes optimizers.npz: what PyTorch's optimizers make of fixed gradients, to compare ours with, step by step.

Run by hand where PyTorch is installed: `python tests/reference/make_optimizers.py`. The file holds the `settings`
(JSON, in our names), `start` (n,), `gradients` (steps, n), `rates` (steps,), `torch_version`, and for each setting and
dtype the parameters after each step, (steps, n), as `SETTING/DTYPE`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

STEPS, SIZE = 20, 7

# name: (optimizer, hyper-parameters), all in distsgd's names
SETTINGS: dict[str, tuple[str, dict[str, float]]] = {
    "sgd": ("sgd", {}),
    "sgd-decay": ("sgd", {"weight_decay": 0.1}),
    "momentum": ("momentum", {"momentum": 0.9}),
    "momentum-decay": ("momentum", {"momentum": 0.5, "weight_decay": 0.1}),
    "momentum-dampening": ("momentum", {"momentum": 0.9, "dampening": 0.9}),
    "nesterov": ("nesterov", {"momentum": 0.9}),
    "nesterov-decay": ("nesterov", {"momentum": 0.8, "weight_decay": 0.1}),
    "adagrad": ("adagrad", {}),
    "adagrad-decay": ("adagrad", {"epsilon": 1e-3, "weight_decay": 0.1}),
    "rmsprop": ("rmsprop", {}),
    "rmsprop-decay": ("rmsprop", {"alpha": 0.9, "epsilon": 1e-3, "weight_decay": 0.1}),
    "adam": ("adam", {}),
    "adam-decay": ("adam", {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3, "weight_decay": 0.1}),
    "adamw": ("adamw", {}),
    "adamw-decay": ("adamw", {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3, "weight_decay": 0.3}),
}


def make(optimizer: str, hyper: dict[str, float], parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
    """PyTorch's optimizer for one setting."""
    given: dict[str, Any] = dict(hyper)
    if "epsilon" in given:
        given["eps"] = given.pop("epsilon")
    if optimizer in ("adam", "adamw"):
        given["betas"] = (given.pop("beta1", 0.9), given.pop("beta2", 0.999))
    kind = {
        "sgd": torch.optim.SGD,
        "momentum": torch.optim.SGD,
        "nesterov": torch.optim.SGD,
        "adagrad": torch.optim.Adagrad,
        "rmsprop": torch.optim.RMSprop,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }[optimizer]
    if optimizer == "nesterov":
        given["nesterov"] = True
    return kind([parameter], lr=0.0, foreach=False, **given)


def trajectory(
    optimizer: str, hyper: dict[str, float], start: np.ndarray, gradients: np.ndarray, rates: np.ndarray
) -> np.ndarray:
    """The parameters after each step, (steps, n)."""
    parameter = torch.nn.Parameter(torch.tensor(start))
    torch_optimizer = make(optimizer, hyper, parameter)
    steps = list(zip(rates, gradients, strict=True))
    if hyper.get("dampening"):
        # PyTorch leaves dampening out of its first step. A first step with gradient 0 makes its velocity 0, and what
        # follows is dampened from the start, as ours is.
        steps.insert(0, (0.0, np.zeros_like(start)))
    rows = []
    for rate, gradient in steps:
        torch_optimizer.param_groups[0]["lr"] = float(rate)
        parameter.grad = torch.tensor(gradient)
        torch_optimizer.step()
        rows.append(parameter.detach().numpy().copy())
    return np.stack(rows[-len(gradients) :])


def main() -> None:
    """Writes the file next to this one."""
    rng = np.random.default_rng(20240101)
    # Multiples of 1/1024 are the same numbers in float32 and float64.
    start = np.round(rng.standard_normal(SIZE) * 1024) / 1024
    gradients = np.round(rng.standard_normal((STEPS, SIZE)) * 1024) / 1024
    gradients[:, 2] *= 1 / 4096
    gradients[3:9, 4] = 0.0
    rates = 0.05 * 0.9 ** np.arange(STEPS)
    rates[10] = 0.2
    arrays: dict[str, np.ndarray] = {"start": start, "gradients": gradients, "rates": rates}
    for name, (optimizer, hyper) in SETTINGS.items():
        for dtype in ("float32", "float64"):
            rows = trajectory(optimizer, hyper, start.astype(dtype), gradients.astype(dtype), rates)
            arrays[f"{name}/{dtype}"] = rows
    settings, version = np.array(json.dumps(SETTINGS)), np.array(torch.__version__)
    path = Path(__file__).with_name("optimizers.npz")
    np.savez_compressed(path, allow_pickle=False, settings=settings, torch_version=version, **arrays)


if __name__ == "__main__":
    main()
