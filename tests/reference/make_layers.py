"""Writes layers.npz: forward and backward values of PyTorch, which tests/unit compares with ours. Run by hand.

    python tests/reference/make_layers.py

Needs torch 2 (any build for the CPU) and NumPy; everything is float64. Arrays are stored batch-last, as distsgd has
them. Class weights: PyTorch's mean divides by the sum of the labels' weights, ours by the number of examples; the
values here are of reduction="sum" and "none", where the two agree.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
CASES: dict[str, np.ndarray] = {}
ACTIVATIONS = {
    "linear": lambda x: x * 1.0,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky-relu": lambda x: functional.leaky_relu(x, 0.01),
    "gelu": lambda x: functional.gelu(x, approximate="tanh"),
    "softplus": functional.softplus,
}


def record(case: str, **arrays: torch.Tensor | float) -> None:
    """Stores arrays as `case/name`; two-dimensional ones (n, k) become batch-last."""
    for name, array in arrays.items():
        values = torch.as_tensor(array).detach().numpy()
        CASES[f"{case}/{name}"] = np.ascontiguousarray(values.T) if name in BATCHED else values
    print(case, {name: CASES[f"{case}/{name}"].shape for name in arrays})


BATCHED = ("x", "y", "dy", "dx", "outputs", "probabilities", "values", "grad", "predicted")


def leaf(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape) * scale).requires_grad_()


def activations() -> None:
    for name, function in ACTIVATIONS.items():
        # Far from 0 too, where a careless formula overflows or loses all its digits.
        x = torch.cat([torch.randn(6, 7), torch.linspace(-30.0, 30.0, 14).reshape(2, 7)]).requires_grad_()
        y, dy = function(x), torch.randn(8, 7)
        y.backward(dy)
        record(f"activation {name}", x=x, y=y, dy=dy, dx=x.grad)


def dense() -> None:
    x, weight, bias, dy = leaf(9, 6), leaf(4, 6), leaf(4), torch.randn(9, 4)
    y = functional.linear(x, weight, bias)
    y.backward(dy)
    record("dense", x=x, y=y, dy=dy, dx=x.grad, weight=weight, bias=bias, dweight=weight.grad, dbias=bias.grad)


def batch_normalization() -> None:
    layer = torch.nn.BatchNorm1d(5, eps=1e-5, momentum=0.1)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(5))
        layer.bias.copy_(torch.randn(5))
    parameters = {"scale": layer.weight.clone(), "shift": layer.bias.clone()}
    for step in range(4):  # three updates of the running statistics, then evaluation
        if step == 3:
            layer.eval()
        x, dy = (torch.randn(12, 5) * 3.0 + 2.0 * step).requires_grad_(), torch.randn(12, 5)
        layer.zero_grad()
        y = layer(x)
        y.backward(dy)
        record(
            f"batchnorm {step}",
            x=x,
            y=y,
            dy=dy,
            dx=x.grad,
            dscale=layer.weight.grad.clone(),
            dshift=layer.bias.grad.clone(),
            running_mean=layer.running_mean.clone(),
            running_variance=layer.running_var.clone(),
            **parameters,
        )


def cross_entropies() -> None:
    labels, probabilities = torch.randint(0, 6, (11,)), torch.softmax(torch.randn(11, 6), 1)
    class_weights = torch.rand(6) * 3.0
    for smoothing in (0.0, 0.1):
        for weighted in (False, True):
            for kind, target in (("labels", labels), ("probabilities", probabilities)):
                outputs = leaf(11, 6, scale=20.0)
                weight = class_weights if weighted else None
                losses = functional.cross_entropy(outputs, target, weight, reduction="none", label_smoothing=smoothing)
                losses.sum().backward()
                record(
                    f"softmax {kind} {smoothing} {'weighted' if weighted else 'plain'}",
                    outputs=outputs,
                    losses=losses,
                    grad=outputs.grad,
                    predicted=torch.softmax(outputs, 1),
                    class_weights=class_weights,
                    **{kind: target},
                )


def other_losses() -> None:
    outputs, values = leaf(11, 3, scale=20.0), torch.rand(11, 3)
    losses = functional.binary_cross_entropy_with_logits(outputs, values, reduction="none").sum(1)
    losses.sum().backward()
    predicted = torch.sigmoid(outputs)
    record("binary", outputs=outputs, values=values, losses=losses, grad=outputs.grad, predicted=predicted)
    outputs, values = leaf(11, 3), torch.randn(11, 3)
    losses = 0.5 * functional.mse_loss(outputs, values, reduction="none").sum(1)
    losses.sum().backward()
    record("squared", outputs=outputs, values=values, losses=losses, grad=outputs.grad, predicted=outputs)


def network() -> None:
    """A whole network: dense, batch normalization, gelu, dense, softmax cross-entropy."""
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.GELU(approximate="tanh"), torch.nn.Linear(8, 4)
    )
    x, labels = torch.randn(10, 6), torch.randint(0, 4, (10,))
    loss = functional.cross_entropy(model(x), labels, reduction="sum")
    loss.backward()
    ours = {"0.weight": "dense1.weight", "0.bias": "dense1.bias", "1.weight": "batchnorm1.scale"}
    ours |= {"1.bias": "batchnorm1.shift", "3.weight": "dense2.weight", "3.bias": "dense2.bias"}
    record("network", x=x, labels=labels, loss=loss)
    for theirs, parameter in model.named_parameters():
        record("network parameters", **{ours[theirs]: parameter})
        record("network gradients", **{ours[theirs]: parameter.grad})


if __name__ == "__main__":
    for make in (activations, dense, batch_normalization, cross_entropies, other_losses, network):
        make()
    np.savez_compressed(Path(__file__).with_name("layers.npz"), **CASES)
