"""What a PyTorch loss is: a loss for each example, or one number of which it is declared what it adds up."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import torch

from distsgd import ConfigurationError, Task
from distsgd.integrations.torch_loss_check import Declared, check_loss
from distsgd.nn import Shape

_NAMES = {
    "CrossEntropyLoss": "cross_entropy", "NLLLoss": "nll_loss", "BCEWithLogitsLoss": "binary_cross_entropy_with_logits",
    "BCELoss": "binary_cross_entropy", "MSELoss": "mse_loss", "L1Loss": "l1_loss", "SmoothL1Loss": "smooth_l1_loss",
    "HuberLoss": "huber_loss",
}  # fmt: skip
"""The function of each loss module whose outputs have a known meaning."""
Answer: TypeAlias = Literal["logit", "probability"]
_OF_CLASSES = {"cross_entropy", "nll_loss"}
_OF_ANSWERS = {"binary_cross_entropy_with_logits", "binary_cross_entropy"}
_OF_VALUES = {"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"}
_PREDICTIONS: Mapping[str, Callable[[Any], Any]] = {
    "cross_entropy": lambda outputs: torch.softmax(outputs, 1),
    "nll_loss": torch.exp,
    "binary_cross_entropy_with_logits": torch.sigmoid,
}
_REDUCTIONS = ("mean", "sum", "microbatch")


class ExampleLosses:
    """A loss in one form: `total(outputs, targets, weights, n)` is the sum over n examples.

    Parameters
    ----------
    loss
        A loss module or function of PyTorch's, or a user's function (outputs, targets).
    reduction
        What a single number is that the loss returns: "mean" or "sum" over the examples; "microbatch" where losses of
        examples depend on each other; None where the loss says it, or returns a loss for each example.
    """

    def __init__(self, loss: Any, reduction: str | None) -> None:
        if isinstance(loss, type):
            raise ConfigurationError(
                f"TorchModel: loss is the class {loss.__name__}; give an object, {loss.__name__}()"
            )
        if not callable(loss):
            raise ConfigurationError(f"TorchModel: loss must be a function or module, got {type(loss).__name__}")
        if reduction not in (None, *_REDUCTIONS):
            raise ConfigurationError(
                f'TorchModel: reduction must be "mean", "sum", "microbatch" or None, got {reduction!r}'
            )
        if isinstance(loss, torch.nn.Module) and any(True for _ in loss.parameters()):
            raise ConfigurationError(
                "TorchModel: the loss has parameters of its own, and those of the module alone are trained; make both "
                "one module that returns losses, with loss=lambda losses, y: losses"
            )
        own, function = _own_reduction(loss)
        if own is not None and reduction is not None and own != reduction:
            raise ConfigurationError(f"TorchModel: the loss has reduction={own!r}, and {reduction!r} is declared")
        inner = getattr(loss, "func", loss)
        kind = type(inner).__name__ if isinstance(inner, torch.nn.Module) else getattr(inner, "__name__", "loss")
        self.name, self.kind = kind, _NAMES.get(kind, kind) if _is_torchs(inner) else ""
        self._function, self.reduction = function, own if own is not None else reduction
        self._is_split = own is not None and own != "none"
        self._is_known = own is not None and _is_torchs(inner)

    def total(self, outputs: Any, targets: Any, weights: Any, count: int) -> Any:
        """The sum of the examples' losses, times their weights, a float64 tensor without dimensions."""
        if self.kind in _OF_VALUES | _OF_ANSWERS and outputs.shape != targets.shape:
            raise _each_with_each(outputs, targets)
        losses = self._computed(outputs, targets)
        if not isinstance(losses, torch.Tensor):
            raise ConfigurationError(f"TorchModel: {self.name} must return a tensor, got {type(losses).__name__}")
        if losses.ndim == 0:
            return self._of_single(losses, weights, count)
        if losses.shape[0] != count:
            raise ConfigurationError(
                f"TorchModel: {self.name} must return a loss for each of {count} examples, got shape "
                f"{tuple(losses.shape)}"
            )
        losses = self._of_examples(losses, outputs, targets)
        return (losses if weights is None else losses * weights).sum(dtype=torch.float64)

    def _computed(self, outputs: Any, targets: Any) -> Any:
        """What the loss returns; PyTorch's own error about its arguments after a sentence that says what they are."""
        try:
            return self._function(outputs, targets)
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            if not self.kind or not all(isinstance(one, torch.Tensor) for one in (outputs, targets)):
                raise
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise ConfigurationError(
                f"TorchModel: {self.name} can't be computed of {_kind(outputs)} outputs and {_kind(targets)} targets; "
                f"give both as it expects them; PyTorch says: {first}"
            ) from error

    def _of_examples(self, losses: Any, outputs: Any, targets: Any) -> Any:
        sizes = [one.numel() for one in (outputs, targets) if isinstance(one, torch.Tensor)]
        if len(sizes) == 2 and losses.numel() > max(sizes):
            raise _each_with_each(outputs, targets)
        if losses.ndim == 1:
            return losses
        if not self._is_split:
            raise ConfigurationError(
                f"TorchModel: {self.name} must return one loss for each example, got shape {tuple(losses.shape)}; "
                "add up or average over the other axes"
            )
        rest = losses.flatten(1)
        return rest.mean(1) if self.reduction == "mean" else rest.sum(1)

    def _of_single(self, loss: Any, weights: Any, count: int) -> Any:
        if self.reduction not in _REDUCTIONS:
            raise ConfigurationError(
                f"TorchModel: {self.name} returns one number for {count} examples; say with reduction= whether it is "
                'their "mean" or their "sum", or return a loss for each example'
            )
        if weights is not None:
            raise ConfigurationError(
                f"TorchModel: weights need a loss for each example, and {self.name} returns one number; return "
                "(n,) losses"
            )
        return loss.double() if self.reduction == "sum" else loss.double() * count

    def check(self, outputs: Any, targets: Any, compute: Callable[[slice], Any]) -> None:
        """Raises ConfigurationError where a user's loss isn't what it is declared as; see `check_loss`."""
        if not self._is_known:
            check_loss(Declared(self._function, self.name, self.reduction), outputs, targets, compute)

    def task(self, target_shape: Shape, num_classes: int | None) -> Task:
        """What outputs stand for under this loss."""
        if self.kind in _OF_CLASSES and target_shape == () and num_classes is not None:
            return Task("classification", num_classes)
        if self.kind in _OF_ANSWERS and len(target_shape) <= 1:
            answer: Answer = "logit" if self.kind == "binary_cross_entropy_with_logits" else "probability"
            count = target_shape[0] if target_shape else 1
            return Task("classification", 2, answer=answer) if count == 1 else Task("multilabel", count, answer=answer)
        if self.kind in _OF_VALUES and len(target_shape) <= 1 and num_classes is None:
            return Task("regression")
        return Task("other")

    def predictions(self, outputs: Any) -> Any:
        """Probabilities where the outputs are logits, else the outputs."""
        return _PREDICTIONS.get(self.kind, lambda same: same)(outputs)


def _each_with_each(outputs: Any, targets: Any) -> ConfigurationError:
    return ConfigurationError(
        f"TorchModel: outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(targets.shape)} would be "
        "combined each with each; give both one shape, such as y[:, None] or outputs.squeeze(1)"
    )


def _kind(tensor: Any) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _is_torchs(loss: Any) -> bool:
    module = type(loss).__module__ if isinstance(loss, torch.nn.Module) else getattr(loss, "__module__", "")
    return str(module).startswith("torch.")


def _own_reduction(loss: Any) -> tuple[str | None, Any]:
    """(the reduction that a loss has itself, the function of losses without it); (None, loss) where it has none."""
    if isinstance(loss, torch.nn.Module):
        own = getattr(loss, "reduction", None)
        if not isinstance(own, str):
            return None, loss
        function = copy.copy(loss)
        function.reduction = "none"
    else:
        try:
            parameter = inspect.signature(loss).parameters.get("reduction")
        except (TypeError, ValueError):
            return None, loss
        own = None if parameter is None else parameter.default
        if not isinstance(own, str):
            return None, loss
        function = functools.partial(loss, reduction="none")
    return {"batchmean": "sum"}.get(own, own), function
