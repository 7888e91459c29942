"""A user's loss is what it is declared as for halves of the examples too; PyTorch's losses are means of examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is missing: make test-integrations installs it")

import distsgd  # noqa: E402
from distsgd.integrations.torch import TorchModel  # noqa: E402
from tests.integrations.torch.test_model import OPTIONS, X, Y, mlp  # noqa: E402

nn, functional = torch.nn, torch.nn.functional
ONE_STEP: dict[str, Any] = {**OPTIONS, "epochs": 1, "batch_size": 64, "shuffle": False, "optimizer": "sgd", "lr": 0.1}


def each(outputs: Any, y: Any) -> Any:
    return functional.cross_entropy(outputs, y, reduction="none")


def contrastive(outputs: Any, y: Any) -> Any:
    return functional.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)), reduction="none")


REFUSED: dict[str, tuple[Callable[[Any, Any], Any], str | None, str]] = {
    "centred": (lambda outputs, y: each(outputs - outputs.mean(0), y), None, "other losses for 4 examples alone"),
    "contrastive": (contrastive, None, 'or say reduction="microbatch"'),
    "contrastive mean": (lambda outputs, y: contrastive(outputs, y).mean(), "mean", "return a loss for each example"),
    "mean of weights": (
        lambda outputs, y: functional.cross_entropy(outputs, y, torch.tensor([1.0, 5.0, 9.0])), "mean",
        "is declared as the mean over examples, and is .* where their halves have",
    ),
    "random sum": (lambda outputs, y: each(functional.dropout(outputs, 0.1), y).mean(), "sum", 'reduction="mean"'),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_losses_that_are_not_what_they_are_declared_as(kind: str) -> None:
    loss, reduction, message = REFUSED[kind]
    with pytest.raises(distsgd.ConfigurationError, match=message):
        distsgd.fit(TorchModel(mlp(), loss, reduction), (X, Y), **OPTIONS)


def stepped(loss: Callable[[Any, Any], Any]) -> Any:
    """The parameters after one step of a plain loop on all examples."""
    module = mlp()
    loss(module(torch.from_numpy(X)), torch.from_numpy(Y)).backward()
    with torch.no_grad():
        for one in module.parameters():
            one -= 0.1 * one.grad
    return module.state_dict()


def assert_as(module: Any, expected: Any) -> None:
    for name, one in module.state_dict().items():
        torch.testing.assert_close(one, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("is_mean", [False, True])
def test_a_loss_of_the_whole_microbatch(is_mean: bool) -> None:
    """With one microbatch it is that of a plain loop."""

    def loss(outputs: Any, y: Any) -> Any:
        return contrastive(outputs, y).mean() if is_mean else contrastive(outputs, y)

    model = TorchModel(mlp(), loss, "microbatch")
    assert distsgd.fit(model, (X, Y), **{**ONE_STEP, "microbatches": 1}).summary["same_bits"] is True
    assert_as(model.module, stepped(lambda outputs, y: contrastive(outputs, y).mean()))


@dataclass
class Returned:
    """What modules of some libraries return."""

    logits: Any
    loss: Any = None


class Library(nn.Module):
    """Returns an object, in which its own loss is where it has the labels."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = mlp()

    def forward(self, x: Any, labels: Any = None) -> Returned:
        logits = self.inside(x)
        return Returned(logits, None if labels is None else functional.cross_entropy(logits, labels))


LIBRARIES: dict[str, tuple[Callable[[Any, Any], Any], str | None, bool]] = {
    "each": (lambda returned, y: each(returned.logits, y), None, False),
    "mean": (lambda returned, y: functional.cross_entropy(returned.logits, y), "mean", False),
    "sum": (lambda returned, y: each(returned.logits, y).sum(), "sum", False),
    "the module's own": (lambda returned, y: returned.loss, "mean", True),
}


@pytest.mark.parametrize("kind", LIBRARIES)
def test_modules_that_return_objects(kind: str) -> None:
    loss, reduction, labelled = LIBRARIES[kind]
    model = TorchModel(Library(), loss, reduction, outputs=lambda returned: returned.logits)
    x = {"x": X, "labels": Y} if labelled else {"x": X}
    assert distsgd.fit(model, x, Y, validation=(x, Y), **ONE_STEP).predict(x).shape == (64, 3)
    assert_as(model.module.inside, stepped(functional.cross_entropy))


def test_a_modules_own_loss_that_is_declared_wrongly() -> None:
    model = TorchModel(Library(), lambda returned, y: returned.loss, "sum", outputs=lambda returned: returned.logits)
    with pytest.raises(distsgd.ConfigurationError, match='give reduction="mean"'):
        distsgd.fit(model, {"x": X, "labels": Y}, Y, **OPTIONS)


class Alone(nn.Module):
    """Returns its loss and nothing else; it draws random numbers in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(5, 5)

    def forward(self, x: Any) -> Any:
        noise = torch.randn_like(x)
        return functional.mse_loss(self.inside(x + noise), noise)


def test_a_module_that_is_its_loss() -> None:
    result = distsgd.fit(TorchModel(Alone(), lambda loss, y: loss, "mean"), X, Y, validation=(X, Y), **OPTIONS)
    assert np.isfinite(result.summary["validation_loss"])
    with pytest.raises(distsgd.ConfigurationError, match="returns a single number; say with outputs="):
        result.predict(X)
    model = TorchModel(Alone(), lambda loss, y: loss, "mean", outputs=lambda loss: loss)
    with pytest.raises(distsgd.ConfigurationError, match="outputs= must return a tensor, an output for each of 8"):
        distsgd.fit(model, X, Y, **OPTIONS)


def test_ignored_targets_and_weights_of_classes_count_in_the_mean() -> None:
    """As the documentation says it: a sum over examples, divided by their number."""
    weights = torch.tensor([1.0, 0.5, 3.0])
    model = TorchModel(mlp(), nn.CrossEntropyLoss(weights, ignore_index=1))
    distsgd.fit(model, (X, Y), **ONE_STEP)

    def loss(outputs: Any, y: Any) -> Any:
        return sum(-weights[k] * one.log_softmax(0)[k] for one, k in zip(outputs, y, strict=True) if k != 1) / 64

    assert_as(model.module, stepped(loss))


def test_counts_as_targets() -> None:
    counts = np.random.default_rng(0).poisson(2.0, (64, 3))
    model = TorchModel(mlp(), nn.PoissonNLLLoss())
    summary = distsgd.fit(model, (X, counts), **ONE_STEP).summary
    with torch.no_grad():
        rates = mlp()(torch.from_numpy(X))
        expected = (rates.exp() - torch.from_numpy(counts) * rates).mean()
    assert summary["train_loss"] == pytest.approx(float(expected), rel=1e-5)
