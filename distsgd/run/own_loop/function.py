"""The user's function of a loop of their own as an objective: what it returns is checked, and added as a sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, final

import numpy as np

from distsgd.core.device import Array, Shape, described
from distsgd.core.errors import ConfigurationError, first_line
from distsgd.core.layout import Views
from distsgd.nn.batch import Batch
from distsgd.nn.objective import Objective
from distsgd.run.own_loop.batches import DoubledMicroBatch, ExampleSet, MicroBatch, microbatch
from distsgd.run.own_loop.functions import code_of

Reduction = Literal["sum", "mean"]
OwnLossAndGrad = Callable[[Mapping[str, Array], MicroBatch], tuple[Any, Mapping[str, Any]]]
"""`(params, microbatch) -> (loss, gradients by name)`, both sums or both means over the microbatch's examples."""
Returned = tuple[float, Mapping[str, Array]]
ExampleFunction = Callable[[Mapping[str, Array], MicroBatch], Any]
"""`(params, batch) -> (n,)`: one number for each example."""

_TOLERANCE = {4: 1e-3, 8: 1e-7}
"""Relative, by the size of a float: products of another shape round in another way."""
_SEEN = "loss_and_grad: with each example of a microbatch twice,"
_LOSS, _GRADIENT = "the loss", "the gradient of "
_MOST_CHECKS = 10
"""A parameter without a gradient in so many microbatches is not waited for."""
_OF_ROUNDING = 10.0
"""Two orders of the same examples may by chance round almost alike."""
_NEGLIGIBLE = 1e-6
"""A gradient that is so much smaller than the largest may be nothing but rounding."""


@final
class OwnFunction(Objective):
    """Calls the function of the step that is made now, on microbatches with the examples first."""

    def __init__(self, params: Mapping[str, Array], reduction: Reduction, check: bool) -> None:
        self._initial, self.reduction, self._check = dict(params), reduction, check
        self.examples: ExampleSet | None = None
        self.function: OwnLossAndGrad | None = None
        self._checks, self._key = False, None
        self._unseen: dict[Any, tuple[set[str], int]] = {}
        """By function, the gradients that no check has shown so far, and how many checks have shown any."""
        self._views: dict[int, tuple[Views, list[tuple[str, Array, Shape]]]] = {}

    def parameter_shapes(self) -> Mapping[str, Shape]:
        return {name: array.shape for name, array in self._initial.items()}

    def initialize(self, params: Views, state: Views, seed: int) -> None:
        for name, array in self._initial.items():
            params[name][...] = array

    def overwrites_gradients(self) -> bool:
        return True

    def begin(self, function: OwnLossAndGrad) -> None:
        """The function of the step that is made now."""
        self.function, self._key = function, code_of(function)
        unseen, checks = self._unseen.get(self._key, (True, 0))
        self._checks = self._check and bool(unseen) and checks < _MOST_CHECKS

    def loss_and_grad(self, params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        count, result = len(batch), self._computed(params, batch, batch.indices)
        scale = count if self.reduction == "mean" else 1
        loss = self._put(result, grads, scale)
        if self._checks:
            self._check_reduction(params, grads, batch, (loss, {name: view / scale for name, view in grads.items()}))
        return loss * scale, count

    def _computed(self, params: Views, batch: Batch, rows: Array, kind: type[MicroBatch] = MicroBatch) -> Any:
        """What the function returns for these rows, with the numbers of this microbatch."""
        assert self.examples is not None
        assert self.function is not None
        numbers = {"epoch": batch.epoch, "step": batch.step, "microbatch": batch.microbatch, "seed": batch.seed}
        return self.function(params, microbatch(self.examples, rows, kind, **numbers))

    def _check_reduction(self, params: Views, grads: Views, batch: Batch, plain: Returned) -> None:
        """Computes the microbatch with each example twice, until that has shown each parameter's gradient."""
        rows = batch.indices

        def computed(order: Array, kind: type[MicroBatch] = MicroBatch) -> Returned:
            return returned(self._computed(params, batch, order, kind), grads)

        try:
            doubled = computed(np.concatenate([rows, rows]), DoubledMicroBatch)
        except Exception as error:
            raise ConfigurationError(
                "loss_and_grad failed with each example of a microbatch twice, which is computed once to compare "
                f"reduction={self.reduction!r} with what it returns ({type(error).__name__}: {first_line(error)}); let "
                "it take any number of examples, or give check_reduction=False"
            ) from error
        found = Doubling(self.reduction, plain, doubled, np.dtype(params.flat.dtype))
        if not found.is_as_declared:
            once, again = computed(rows), computed(rows)
            if not _equal(once, again):
                found.refuse("it returns something else each time: random numbers come from batch.random_words")
            found.refuse_unless_rounding(computed(rows[::-1]))
        unseen, checks = self._unseen.get(self._key, ({_GRADIENT + name for name in grads}, 0))
        unseen = unseen - found.seen
        checks += found.shows_gradients
        self._unseen[self._key] = unseen, checks
        self._checks = bool(unseen) and checks < _MOST_CHECKS

    def _put(self, result: Any, grads: Views, scale: int) -> float:
        """Puts what the function has returned, times `scale`, into the gradients; returns its loss.

        Raises ConfigurationError for anything but a loss and gradients.
        """
        kept = self._views.get(id(grads))
        if kept is None:  # views are made again each time that they are asked for, and there are few
            kept = self._views[id(grads)] = grads, [(name, view, view.shape) for name, view in grads.items()]
        if type(result) is tuple and len(result) == 2 and type(result[1]) is dict and len(result[1]) == len(grads):
            loss, found = result
            if isinstance(loss, (float, np.floating)) and self._put_arrays(found, kept[1], scale):
                return float(loss)
        loss, found = returned(result, grads)
        for name, gradient in found.items():
            if scale == 1:
                np.copyto(grads[name], gradient, casting="same_kind")
            else:
                np.multiply(gradient, scale, out=grads[name], casting="same_kind")
        return loss

    def _put_arrays(self, found: dict[Any, Any], views: list[tuple[str, Array, Shape]], scale: int) -> bool:
        """The same for arrays as they should be; False where one of them isn't."""
        for name, view, shape in views:
            gradient = found.get(name)
            if type(gradient) is not np.ndarray or gradient.shape != shape or gradient.dtype is not view.dtype:
                return False
            if scale == 1:
                view[...] = gradient
            else:
                np.multiply(gradient, scale, view)
        return True

    def score(self, params: Views, scratch: Views, batch: Batch) -> tuple[float, int, Array | None]:
        loss_sum, count = self.loss_and_grad(params, scratch, batch)
        return loss_sum, count, None


def returned(result: Any, grads: Views) -> tuple[float, dict[str, Array]]:
    """What the function has returned for a microbatch. Raises ConfigurationError for all but a loss and gradients."""
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


@final
class Doubling:
    """What a microbatch, and the same with each example twice, show of what a function returns.

    A sum doubles, loss and gradients alike, and a mean stays. A mean with a penalty stays as well, and is right: all
    means together have the penalty once. A sum with a penalty does neither, and would count the penalty once in each
    microbatch. Of what is zero nothing is seen.

    seen   the gradients that were large enough, by name
    """

    def __init__(self, reduction: Reduction, plain: Returned, doubled: Returned, dtype: np.dtype[Any]) -> None:
        self._reduction, self._plain, self._doubled = reduction, plain, doubled
        self._tolerance = _TOLERANCE.get(dtype.itemsize, 1e-3)
        sizes = {name: _norm(one) for name, one in plain[1].items()}
        largest = max(sizes.values(), default=0.0)
        finite = all(map(np.isfinite, [plain[0], doubled[0], largest, *map(_norm, doubled[1].values())]))
        self.seen = {_GRADIENT + name for name, size in sizes.items() if finite and size > _NEGLIGIBLE * largest}
        self.shows_gradients = bool(self.seen)
        self._shows_loss = bool(finite and plain[0])

    def _all_became(self, factor: int, noise: Returned | None = None) -> bool:
        """Whether all that is seen has become `factor` times as large."""
        names = [_LOSS] * self._shows_loss + list(self.seen)
        return all(self._became(factor, name, noise) for name in names)

    def _became(self, factor: int, name: str, noise: Returned | None = None) -> bool:
        once, twice = _of(self._plain, name), _of(self._doubled, name)
        rounding = 0.0 if noise is None else _OF_ROUNDING * _norm(_of(noise, name) - once)
        return _norm(twice - factor * once) <= self._tolerance * _norm(once) + factor * rounding

    @property
    def is_as_declared(self) -> bool:
        """Whether nothing speaks against it. Raises ConfigurationError where it is the other one."""
        mean, total = self._all_became(1), self._all_became(2)
        if mean if self._reduction == "mean" else total:
            return True
        if not (mean or total):
            return False
        other = "mean" if mean else "sum"
        did = "stay as they are: it returns means" if mean else "double: it returns sums"
        raise ConfigurationError(
            f"{_SEEN} the loss and the gradients {did}; give reduction={other!r}, got {self._reduction!r}"
        )

    def refuse_unless_rounding(self, reversed_order: Returned) -> None:
        """Raises ConfigurationError unless the same microbatch in another order differs about as much: near an optimum
        gradients are small differences of large numbers."""
        if self._all_became(1 if self._reduction == "mean" else 2, reversed_order):
            self.seen = set()
            return
        names = [_LOSS] * self._shows_loss + sorted(self.seen)
        stay, double = ([name for name in names if self._became(factor, name)] for factor in (1, 2))
        if len(stay) + len(double) == len(names):
            raise ConfigurationError(
                f"{_SEEN} {stay[0]} stays, as a mean does, and {double[0]} doubles, as a sum does; return the loss and "
                "all gradients as sums, or all as means"
            )
        self.refuse(
            "a penalty beside a sum would count once in each microbatch: multiply it by the number of examples, or "
            "return the mean of the losses plus the penalty with reduction='mean'"
        )

    def refuse(self, why: str) -> None:
        """Raises ConfigurationError."""
        raise ConfigurationError(
            f"{_SEEN} the loss and the gradients neither double, as a sum does, nor stay, as a mean does; {why}. Where "
            "you are sure of what you return, give check_reduction=False"
        )


def _of(what: Returned, name: str) -> Array:
    """The loss, or a parameter's gradient."""
    return np.asarray(what[0] if name == _LOSS else what[1][name.removeprefix(_GRADIENT)], np.float64)


def _norm(array: Any) -> float:
    return float(np.linalg.norm(np.asarray(array, np.float64)))


def _equal(one: Returned, other: Returned) -> bool:
    return one[0] == other[0] and all(
        np.array_equal(np.asarray(array, np.float64), np.asarray(other[1][name], np.float64), equal_nan=True)
        for name, array in one[1].items()
    )
