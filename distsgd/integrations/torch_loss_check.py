"""Whether a user's loss is what it is declared as: that of a microbatch is compared with those of its halves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from distsgd import ConfigurationError

_CLOSE, _ROUGHLY = 1e-3, 0.2
"""How far losses may differ, beside the largest: those that are computed alike, and those of random numbers."""


class Declared(NamedTuple):
    """A loss function of (outputs, targets), its name, and the declared reduction."""

    function: Callable[[Any, Any], Any]
    name: str
    reduction: str | None


def check_loss(loss: Declared, outputs: Any, targets: Any, compute: Callable[[slice], Any]) -> None:
    """Raises ConfigurationError where losses of halves of the examples don't make up those of all of them.

    Then an example's loss depends on other examples, and the sum on the number of microbatches. Losses that draw random
    numbers are compared roughly.

    Parameters
    ----------
    loss : Declared
        The loss.
    outputs, targets
        Of one microbatch.
    compute : function
        What the module returns for a slice of the examples.
    """
    count, cut = len(targets), len(targets) // 2
    if loss.reduction == "microbatch" or not cut:
        return

    def losses(part: slice) -> Any:
        found = _part_of(outputs, part, count)
        return loss.function(compute(part) if found is None else found, targets[part]).double()

    try:
        whole, first, last = losses(slice(count)), losses(slice(cut)), losses(slice(cut, count))
    except Exception:  # where fewer examples can't be computed, an epoch that ends with fewer says so
        return
    if whole.ndim:
        made = {"": torch.cat([first, last])}
    else:
        made = {"mean": (cut * first + (count - cut) * last) / count, "sum": first + last}
    declared = made.pop("" if whole.ndim else str(loss.reduction))
    if _are_close(declared, whole, _CLOSE):
        return
    others = [key for key, one in made.items() if _are_close(one, whole, _ROUGHLY)]
    if others or _are_close(losses(slice(count)), whole, _CLOSE):
        raise _not_as_declared(loss, whole, first, last, others)


def _not_as_declared(loss: Declared, whole: Any, first: Any, last: Any, others: list[str]) -> ConfigurationError:
    if whole.ndim:
        return ConfigurationError(
            f"TorchModel: {loss.name} returns other losses for {len(first)} examples alone than among {len(whole)}, so "
            "they change with the number of microbatches; have each depend on its own example, or say "
            'reduction="microbatch"'
        )
    remedy = f'give reduction="{others[0]}"' if others else (
        'return a loss for each example, or say reduction="microbatch"'
    )  # fmt: skip
    return ConfigurationError(
        f"TorchModel: {loss.name} is declared as the {loss.reduction} over examples, and is {float(whole):.6g} where "
        f"their halves have {float(first):.6g} and {float(last):.6g}; {remedy}"
    )


def _part_of(outputs: Any, part: slice, count: int) -> Any:
    """Some examples of what a module has returned; None where it isn't plain tensors, examples first."""
    if isinstance(outputs, torch.Tensor):
        return outputs[part] if outputs.ndim and len(outputs) == count else None
    if type(outputs) in (tuple, list):
        parts = [_part_of(one, part, count) for one in outputs]
        return None if any(one is None for one in parts) else type(outputs)(parts)
    return None


def _are_close(one: Any, other: Any, tolerance: float) -> bool:
    """Whether two losses are alike; what isn't finite is another check's."""
    if one.shape != other.shape:
        return False
    largest = float(torch.maximum(one.abs().max(), other.abs().max())) if one.numel() else 0.0
    return not math.isfinite(largest) or float((one - other).abs().max()) <= tolerance * largest
