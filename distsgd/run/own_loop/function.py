"""The user's function of a loop of their own as an objective: what it returns is checked, and added as a sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, final

import numpy as np

from distsgd.core.device import Array, Shape, described
from distsgd.core.errors import ConfigurationError
from distsgd.core.layout import Views
from distsgd.nn.batch import Batch
from distsgd.nn.objective import Objective
from distsgd.run.own_loop.batches import DoubledMicroBatch, ExampleSet, MicroBatch, microbatch

Reduction = Literal["sum", "mean"]
OwnLossAndGrad = Callable[[Mapping[str, Array], MicroBatch], tuple[Any, Mapping[str, Any]]]
"""`(params, microbatch) -> (loss, gradients by name)`, both sums or both means over the microbatch's examples."""
ExampleFunction = Callable[[Mapping[str, Array], MicroBatch], Any]
"""`(params, batch) -> (n,)`: one number for each example."""

_TOLERANCE = {4: 1e-3, 8: 1e-7}
"""Relative, by the size of a float: products of another shape round in another way."""
_NEGLIGIBLE = 1e-6
"""A gradient that is so much smaller than the largest may be nothing but rounding."""


@final
class OwnFunction(Objective):
    """Calls the function of the step that is made now, on microbatches with the examples first."""

    def __init__(self, params: Mapping[str, Array], reduction: Reduction, check: bool) -> None:
        self._initial, self.reduction, self._check = dict(params), reduction, check
        self.examples: ExampleSet | None = None
        self.function: OwnLossAndGrad | None = None
        self._checked: set[Any] = set()

    def parameter_shapes(self) -> Mapping[str, Shape]:
        return {name: array.shape for name, array in self._initial.items()}

    def initialize(self, params: Views, state: Views, seed: int) -> None:
        for name, array in self._initial.items():
            params[name][...] = array

    def overwrites_gradients(self) -> bool:
        return True

    def loss_and_grad(self, params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        assert self.examples is not None
        assert self.function is not None
        numbers = {"epoch": batch.epoch, "step": batch.step, "microbatch": batch.microbatch, "seed": batch.seed}
        count = len(batch)
        loss, found = called(
            self.function, params, microbatch(self.examples, batch.indices, MicroBatch, **numbers), grads
        )
        scale = count if self.reduction == "mean" else 1
        for name, gradient in found.items():
            if scale == 1:
                np.copyto(grads[name], gradient, casting="same_kind")
            else:
                np.multiply(gradient, scale, out=grads[name], casting="same_kind")
        key = _code_of(self.function)
        if self._check and key not in self._checked:
            twice = np.concatenate([batch.indices, batch.indices])
            doubled = microbatch(self.examples, twice, DoubledMicroBatch, **numbers)
            plain = loss, {name: grads[name] / scale for name in found}
            after = called(self.function, params, doubled, grads)
            if check_doubled(self.reduction, plain, after, np.dtype(params.flat.dtype)):
                self._checked.add(key)
        return loss * scale, count

    def score(self, params: Views, scratch: Views, batch: Batch) -> tuple[float, int, Array | None]:
        loss_sum, count = self.loss_and_grad(params, scratch, batch)
        return loss_sum, count, None


def _code_of(function: Any) -> Any:
    """What a function is from one step to the next: a lambda is another object in each."""
    function = getattr(function, "func", function)  # of a partial
    function = getattr(function, "__func__", function)  # of a method
    return getattr(function, "__code__", type(function))


def called(function: OwnLossAndGrad, params: Views, batch: MicroBatch, grads: Views) -> tuple[float, dict[str, Array]]:
    """What the function returns for a microbatch. Raises ConfigurationError for anything but a loss and gradients."""
    result: Any = function(params, batch)
    if not isinstance(result, tuple | list) or len(result) != 2 or not isinstance(result[1], Mapping):
        got = ", ".join(described(one, shape=True) for one in result) if isinstance(result, tuple | list) else None
        raise ConfigurationError(
            "loss_and_grad must return (loss, gradients), a number and arrays by the parameters' names, got "
            f"{type(result).__name__ if got is None else f'({got})'}"
        )
    loss, found = result
    number = np.asarray(loss)
    if number.size != 1 or number.dtype.kind not in "biuf":
        raise ConfigurationError(
            f"loss_and_grad must return one number as the loss, got {described(loss, shape=True)}; give the sum or the "
            "mean over the microbatch's examples"
        )
    missing, unknown = [name for name in grads if name not in found], [name for name in found if name not in grads]
    if missing or unknown:
        names = f"no gradient of {', '.join(missing)}" if missing else f"a gradient of {', '.join(map(str, unknown))}"
        raise ConfigurationError(f"loss_and_grad returned {names}; expected one of each of {', '.join(grads)}")
    arrays = {}
    for name, view in grads.items():
        gradient = np.asarray(found[name])
        if gradient.shape != view.shape or gradient.dtype.kind not in "biuf":
            raise ConfigurationError(
                f"loss_and_grad: the gradient of {name} must be numbers of shape {view.shape}, as the parameter, got "
                f"{described(gradient, shape=True)}"
            )
        arrays[name] = gradient
    return float(number.reshape(())), arrays


def check_doubled(
    reduction: Reduction,
    plain: tuple[float, Mapping[str, Array]],
    doubled: tuple[float, Mapping[str, Array]],
    dtype: np.dtype[Any],
) -> bool:
    """Whether a microbatch, and the same with each example twice, show what the function returns.

    A sum doubles, loss and gradients alike, and a mean stays. A mean with a penalty stays as well, and is right: all
    means together have the penalty once. A sum with a penalty does neither, and would count the penalty once in each
    microbatch. Where all is zero nothing is seen. Raises ConfigurationError.
    """
    tolerance = _TOLERANCE.get(dtype.itemsize, 1e-3)
    sizes = {name: float(np.linalg.norm(np.asarray(one, np.float64))) for name, one in plain[1].items()}
    largest = max(sizes.values(), default=0.0)
    pairs = [(abs(plain[0]), abs(doubled[0] - plain[0]), abs(doubled[0] - 2 * plain[0]))]
    for name, size in sizes.items():
        if size > _NEGLIGIBLE * largest:
            once, twice = (np.asarray(of[1][name], np.float64) for of in (plain, doubled))
            pairs.append((size, float(np.linalg.norm(twice - once)), float(np.linalg.norm(twice - 2 * once))))
    pairs = [pair for pair in pairs if pair[0] > 0]
    if not pairs or not all(np.isfinite(pair).all() for pair in pairs):
        return False
    stays = all(change <= tolerance * size for size, change, _ in pairs)
    doubles = all(change <= tolerance * size for size, _, change in pairs)
    found = "mean" if stays else "sum" if doubles else None
    if found == reduction:
        return True
    seen = "with each example of a microbatch twice, the loss and the gradients"
    if found is None:
        raise ConfigurationError(
            f"loss_and_grad: {seen} neither double, as a sum does, nor stay, as a mean does. A penalty beside a sum "
            "would count once in each microbatch: multiply it by the number of examples, or return the mean of the "
            "losses plus the penalty with reduction='mean'. Random numbers come from batch.random_words. Where you are "
            "sure of what you return, give check_reduction=False"
        )
    did = "stay as they are: it returns means" if found == "mean" else "double: it returns sums"
    raise ConfigurationError(f"loss_and_grad: {seen} {did}; give reduction={found!r}, got {reduction!r}")
