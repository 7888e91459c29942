"""The microbatches of a worker as stacks: those of one length, which follow one another, are computed at once.

The layers of a small network take less time than the interpreter needs to call them; the weights of a large one are
read once, and its gradients are added where they are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Protocol, final

import numpy as np

from distsgd.core.device import Array, Device
from distsgd.core.kernels.several import Addition, bias_gradients, placed, weight_gradients
from distsgd.core.layout import Layout, Views
from distsgd.data.loader import GatheredBatch
from distsgd.nn.objective import Objective
from distsgd.nn.stack import Stack, can_be_stacked, most_at_once
from distsgd.parallel.reduction import GradientReduction
from distsgd.parallel.tree import Span, schedule
from distsgd.training.minibatch import Minibatch
from distsgd.training.steps import StepParts


class _Sums:
    """Adds the gradients of a stack's microbatches in the tree's order.

    places   of each microbatch: where its gradient goes
    n        examples of a microbatch
    memory   by layer, (microbatches, parameters): what a worker's stacks write one after the other
    """

    def __init__(self, places: Sequence[Addition[Views]], n: int, memory: dict[str, Array]) -> None:
        self._places, self._n, self._memory = places, n, memory
        self._dense: dict[str, _LayerSums] = {}
        self._others: dict[str, tuple[Views, list[Callable[[], None]]]] = {}

    def add(self, layer: str, dy: Array, x: Array) -> None:
        """Those of a dense layer, from the gradient (m, parts n) of its outputs and its inputs (k, parts n)."""
        sums = self._dense.get(layer)
        if sums is None:
            sums = self._dense[layer] = _LayerSums(layer, self._places, self._n, x.strides[1] == x.itemsize)
        self._enter(layer)
        sums.add(dy, x)

    def of_each(self, layer: str) -> Views:
        """Where another layer writes them: arrays with the microbatches on an axis in front."""
        found = self._others.get(layer)
        if found is None:
            found = self._others[layer] = self._apart(layer)
        self._enter(layer)
        return found[0]

    def put(self, layer: str) -> None:
        """Adds up what was written there."""
        for place in self._others[layer][1]:
            place()

    def _apart(self, layer: str) -> tuple[Views, list[Callable[[], None]]]:
        own, parts = self._places[0].into.scope(layer), len(self._places)
        layout, memory = Layout.of({name: array.shape for name, array in own.items()}), self._memory.get(layer)
        if memory is None or len(memory) < parts:
            memory = self._memory[layer] = np.empty((parts, layout.size), own.flat.dtype)
        views = layout.rows(memory[:parts])
        return views, [placed(views[name], [_named(place, layer, name) for place in self._places]) for name in own]

    def _enter(self, layer: str) -> None:
        for place in self._places:
            place.into.scope(layer)  # which says that the gradients of the layers after it are there


def _named(place: Addition[Views], layer: str, name: str) -> Addition[Array]:
    """The same for one array of a layer."""

    def of(views: Views) -> Array:
        return views.scope(layer)[name]

    after = tuple((of(into), of(other)) for into, other in place.after)
    return Addition(of(place.into), None if place.own is None else of(place.own), after)


class _LayerSums:
    """The same for one layer."""

    def __init__(self, layer: str, places: Sequence[Addition[Views]], n: int, x_in_order: bool) -> None:
        self._weights = weight_gradients([_named(place, layer, "weight") for place in places], n, x_in_order)
        self._biases = None
        if "bias" in places[0].into.scope(layer):
            self._biases = bias_gradients([_named(place, layer, "bias") for place in places], n)

    def add(self, dy: Array, x: Array) -> None:
        self._weights(dy, x)
        if self._biases is not None:
            self._biases(dy)


class NodeBuffers(Protocol):
    """A node of the tree, and the views in which it is added up, as `schedule` numbers them."""

    node: Span
    views: list[Views]


def stacks_of(parts: StepParts, nodes: Sequence[NodeBuffers], params: Views) -> Stacks | None:
    """The stacks of a worker that adds up these nodes; None where its microbatches are computed one after the other."""
    possible = nodes and are_stacked(parts.objective, parts.reduction.plan.device, parts.guarded)
    return Stacks(parts.objective, nodes, params, parts.reduction) if possible else None


def are_stacked(objective: Objective, device: Device, guarded: bool) -> bool:
    """Whether a worker computes its microbatches as stacks, and not one after the other.

    Not so on other devices, in models with other layers than `Stack` takes, and where each microbatch's gradient is
    looked at.
    """
    return device.host_memory and not guarded and can_be_stacked(objective)


@final
class Stacks:
    """Computes stacks of one worker's microbatches.

    Parameters
    ----------
    objective
        One that `can_be_stacked`.
    nodes
        What the worker adds up.
    params
        The parameters, read-only.
    reduction
        Whose records take the losses and the counts.
    """

    def __init__(
        self, objective: Objective, nodes: Sequence[NodeBuffers], params: Views, reduction: GradientReduction
    ) -> None:
        self._objective, self._nodes, self._params = objective, nodes, params
        self._first, self._last = nodes[0].node[0], nodes[-1].node[1]
        self._records = reduction.records[self._first - reduction.first_microbatch :]
        self._prepared: dict[tuple[int, ...], list[tuple[Span, Stack, _Sums]]] = {}
        self._memory: dict[str, Array] = {}

    def compute(self, minibatch: Minibatch, gathered: GatheredBatch, state: Views) -> bool:
        """Computes all of the worker's microbatches, whose examples are gathered; does nothing where it can't, and
        returns False."""
        bounds = minibatch.bounds
        stacks = self._prepared.get(bounds)
        if stacks is None:
            stacks = self._prepared[bounds] = self._prepare(bounds)
        start = bounds[self._first]
        for (begin, end), stack, sums in stacks:
            rows = gathered.slice(bounds[begin] - start, bounds[end] - start)
            own = self._records[begin - self._first : end - self._first]
            own[:, 0] = stack.losses(self._params, minibatch.batch(rows, begin, state, self._params), sums)
            own[:, 1] = len(rows.row_indices) // (end - begin)
        return bool(stacks)

    def _prepare(self, bounds: tuple[int, ...]) -> list[tuple[Span, Stack, _Sums]]:
        """The stacks of a minibatch with these bounds.

        None where a microbatch has one example: NumPy multiplies and adds single columns otherwise.
        """
        if any(bounds[k + 1] - bounds[k] == 1 for k in range(self._first, self._last)):
            return []
        places = {}
        for buffers in self._nodes:
            views = buffers.views
            for step in schedule(*buffers.node, bounds):
                after = [(views[into], views[other]) for into, other in step.additions]
                into, own = (views[step.target], None)
                if after and after[0][1] is into:
                    into, own = after.pop(0)
                places[step.microbatch] = Addition(into, own, tuple(after))
        found = []
        for begin, end in runs(bounds, self._first, self._last):
            length = bounds[begin + 1] - bounds[begin]
            most = most_at_once(self._objective, length, self._params.flat.itemsize)
            for first in range(begin, end, most):
                last = min(first + most, end)
                sums = _Sums([places[k] for k in range(first, last)], length, self._memory)
                found.append(((first, last), Stack(self._objective, last - first), sums))
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
