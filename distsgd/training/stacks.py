"""The microbatches of a worker as stacks: those of one length, which follow one another, are computed at once.

The layers of a small network take less time than the interpreter needs to call them; the weights of a large one are
read once, and its gradients are added where they are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import final

import numpy as np

from distsgd.core.device import Array
from distsgd.core.kernels.several import Addition, placed, split, weight_gradients
from distsgd.core.kernels.vectors import ones
from distsgd.core.layout import Views
from distsgd.data.loader import GatheredBatch
from distsgd.nn.objective import Objective
from distsgd.nn.stack import Stack
from distsgd.parallel.tree import Span, schedule
from distsgd.training.minibatch import Minibatch


class _Sums:
    """Adds the gradients of a stack's microbatches in the tree's order.

    places   of each microbatch: where its gradient goes
    n        examples of a microbatch
    """

    def __init__(self, places: Sequence[Addition[Views]], n: int) -> None:
        self._places, self._n = places, n
        self._layers: dict[str, _LayerSums] = {}

    def add(self, layer: str, dy: Array, x: Array) -> None:
        """Those of a dense layer, from the gradient (m, parts n) of its outputs and its inputs (k, parts n)."""
        sums = self._layers.get(layer)
        if sums is None:
            sums = self._layers[layer] = _LayerSums(layer, self._places, self._n, x.strides[1] == x.itemsize)
        sums.add(dy, x)


def _named(place: Addition[Views], name: str) -> Addition[Array]:
    """The same for one array."""
    after = tuple((into[name], other[name]) for into, other in place.after)
    return Addition(place.into[name], None if place.own is None else place.own[name], after)


class _LayerSums:
    """The same for one layer."""

    def __init__(self, layer: str, places: Sequence[Addition[Views]], n: int, x_in_order: bool) -> None:
        self._weights = weight_gradients([_named(place, f"{layer}.weight") for place in places], n, x_in_order)
        self._parts, self._biases = len(places), None
        if f"{layer}.bias" in places[0].into:
            biases = [_named(place, f"{layer}.bias") for place in places]
            self._biases = np.empty((len(places), *biases[0].into.shape), biases[0].into.dtype)
            self._place, self._ones = placed(self._biases, biases), ones(n, self._biases.dtype)

    def add(self, dy: Array, x: Array) -> None:
        self._weights(dy, x)
        if self._biases is not None:
            np.matmul(split(dy, self._parts), self._ones, self._biases)
            self._place()


@final
class Stacks:
    """Computes stacks of one worker's microbatches.

    Parameters
    ----------
    objective
        One that `can_be_stacked`.
    nodes
        The worker's nodes of the tree, each with the views in which it is added up, as `schedule` numbers them.
    """

    def __init__(self, objective: Objective, nodes: Sequence[tuple[Span, Sequence[Views]]]) -> None:
        self._objective, self._nodes = objective, nodes
        self._prepared: dict[tuple[int, ...], list[tuple[Span, Stack, _Sums]]] = {}

    def compute(
        self, minibatch: Minibatch, gathered: GatheredBatch, params: Views, state: Views, records: Array
    ) -> bool:
        """Computes all of the worker's microbatches, whose examples are gathered, and puts losses and counts into
        `records`; does nothing where it can't, and returns False."""
        bounds = minibatch.bounds
        stacks = self._prepared.get(bounds)
        if stacks is None:
            stacks = self._prepared[bounds] = self._prepare(bounds)
        if not stacks:
            return False
        start, first = bounds[self._nodes[0][0][0]], self._nodes[0][0][0]
        for (begin, end), stack, sums in stacks:
            batch = minibatch.batch(gathered.slice(bounds[begin] - start, bounds[end] - start), begin, state, params)
            own = records[begin - first : end - first]
            own[:, 0] = stack.losses(params, batch, sums)
            own[:, 1] = len(batch) // (end - begin)
        return True

    def _prepare(self, bounds: tuple[int, ...]) -> list[tuple[Span, Stack, _Sums]]:
        """The stacks of a minibatch with these bounds.

        None where a microbatch has one example: NumPy multiplies and adds single columns otherwise.
        """
        first, last = self._nodes[0][0][0], self._nodes[-1][0][1]
        if any(bounds[k + 1] - bounds[k] == 1 for k in range(first, last)):
            return []
        places = {}
        for node, views in self._nodes:
            for step in schedule(*node, bounds):
                after = [(views[into], views[other]) for into, other in step.additions]
                into, own = (views[step.target], None)
                if after and after[0][1] is into:
                    into, own = after.pop(0)
                places[step.microbatch] = Addition(into, own, tuple(after))
        found = []
        for begin, end in runs(bounds, first, last):
            length = bounds[begin + 1] - bounds[begin]
            sums = _Sums([places[k] for k in range(begin, end)], length)
            found.append(((begin, end), Stack(self._objective, end - begin), sums))
        return found


@lru_cache(maxsize=1024)
def runs(bounds: tuple[int, ...], first: int, last: int) -> tuple[Span, ...]:
    """The microbatches [first, last) as spans of neighbours of one length, without the empty ones.

    >>> runs((0, 2, 4, 7, 7, 9), 0, 5)
    ((0, 2), (2, 3), (4, 5))
    """
    spans = []
    for length, own in groupby(range(first, last), lambda index: bounds[index + 1] - bounds[index]):
        indices = list(own)
        if length:
            spans.append((indices[0], indices[-1] + 1))
    return tuple(spans)
