"""Losses have PyTorch's values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from distsgd.nn import AbsoluteError, BinaryCrossEntropy, BinaryFocal, Focal, Gaussian, Huber, Loss, Poisson, Quantile  # noqa: E402

RANDOM = np.random.default_rng(0)
Z, T = RANDOM.standard_normal((3, 20)), RANDOM.random((3, 20))
LABELS = RANDOM.integers(0, 3, 20)


def focal(z: Any, labels: Any, gamma: float, weights: Any) -> Any:
    cross = functional.cross_entropy(z.T, labels, reduction="none")
    return weights[labels] * (1 - torch.exp(-cross)) ** gamma * cross


def binary_focal(z: Any, t: Any, gamma: float, alpha: float) -> Any:
    """As in torchvision."""
    p = torch.sigmoid(z)
    cross = functional.binary_cross_entropy_with_logits(z, t, reduction="none")
    own = p * t + (1 - p) * (1 - t)
    return ((alpha * t + (1 - alpha) * (1 - t)) * cross * (1 - own) ** gamma).sum(0)


def pinball(z: Any, t: Any) -> Any:
    found = [torch.maximum(tau * (t - one), (tau - 1) * (t - one)) for tau, one in zip((0.2, 0.9), z, strict=True)]
    return found[0] + found[1]


WEIGHTS = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
ANSWERS = np.round(T)
CASES: dict[str, tuple[Loss, Any, Any, Callable[[Any, Any], Any]]] = {
    "l1": (AbsoluteError(), Z, T, lambda z, t: functional.l1_loss(z, t, reduction="none").sum(0)),
    "huber": (Huber(0.6), Z, T, lambda z, t: functional.huber_loss(z, t, reduction="none", delta=0.6).sum(0)),
    "poisson": (Poisson(), Z, T, lambda z, t: functional.poisson_nll_loss(z, t, reduction="none").sum(0)),
    "gaussian": (
        Gaussian(), Z[:2], T[:1],
        lambda z, t: functional.gaussian_nll_loss(z[:1], t, torch.exp(z[1:]), reduction="none").sum(0),
    ),
    "quantile": (Quantile((0.2, 0.9)), Z[:2], T[:1], lambda z, t: pinball(z, t[0])),
    "binary-cross-entropy": (
        BinaryCrossEntropy((1.0, 2.0, 0.5), 0.1), Z, T,
        lambda z, t: functional.binary_cross_entropy_with_logits(
            z, 0.9 * t + 0.05, reduction="none", pos_weight=WEIGHTS[:, None]
        ).sum(0),
    ),
    "focal": (Focal(1.5, (1.0, 2.0, 0.5)), Z, LABELS, lambda z, y: focal(z, y, 1.5, WEIGHTS)),
    "binary-focal": (BinaryFocal(2.0, 0.25), Z, ANSWERS, lambda z, t: binary_focal(z, t, 2.0, 0.25)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_pytorchs(name: str) -> None:
    loss, outputs, targets, function = CASES[name]
    z = torch.tensor(outputs, requires_grad=True)
    losses = function(z, torch.tensor(targets))
    losses.sum().backward()
    found, grad = loss.value_and_grad(outputs, targets, want_grad=True)
    np.testing.assert_allclose(found, losses.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(grad, z.grad.numpy(), rtol=1e-10, atol=1e-13)
