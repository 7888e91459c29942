"""The running statistics of a model, such as batch normalization's: the same on all ranks, in the host's memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError
from distsgd.core.layout import Layout, Views
from distsgd.data.sampling import filled_microbatches
from distsgd.nn.objective import Objective
from distsgd.training.steps import StepParts

LEAST_EXAMPLES = 8
"""Of a microbatch whose mean and spread normalize it: those of one or two are no statistics."""


def least_examples(objective: Objective) -> int:
    """How many examples each of several microbatches has at least."""
    return LEAST_EXAMPLES if objective.statistics_shapes() else 1


def check_filled(ranks: int, microbatches: int, objective: Objective, longest: int) -> None:
    """Raises ConfigurationError where minibatches of `longest` examples fill fewer microbatches than there are
    ranks."""
    least = least_examples(objective)
    filled = filled_microbatches(longest, microbatches, least)
    if ranks > filled:
        raise ConfigurationError(
            f"{ranks} ranks share {filled} microbatches: this model normalizes over each microbatch, which takes at "
            f"least {least} examples of the {longest} of a minibatch; start at most {filled} ranks, or set batch_size "
            f"{least * ranks} or more"
        )


@final
class RunningStatistics:
    """Combines what the microbatches report, in the tree's order, and moves the running statistics on.

    layout      of the running statistics
    own         views of this rank's records: where each of its microbatches puts its statistics
    are_copied  whether a model that computes on the device reads a copy, which has to be made again in each step
    """

    def __init__(self, parts: StepParts) -> None:
        objective, reduction, running = parts.objective, parts.reduction, parts.running
        self.objective, self.running = objective, running
        self._device, self._microbatches = reduction.plan.device, reduction.partition.microbatches
        self.layout, self._reported = Layout.of(objective.state_shapes()), Layout.of(objective.statistics_shapes())
        self.take_records(reduction.records)
        self.are_copied = len(running) > 0 and not self._device.host_memory
        self._plans: dict[tuple[bool, ...], tuple[list[_Pairs], int]] = {}

    def take_records(self, records: Array) -> None:
        """From now on this rank's microbatches report in these records."""
        self.own = [self._reported.views(record[2:]) for record in records]

    def for_model(self) -> Views:
        """The running statistics for a model to read, where it computes."""
        if not self.are_copied:
            return self.running.read_only()
        return self.layout.views(self._device.put(self.running.flat)).read_only()

    def update(self, records: Array, bounds: tuple[int, ...]) -> None:
        """Moves them on by what the microbatches have reported of a step."""
        if not len(self.running):
            return
        filled = tuple(first < last for first, last in pairwise(bounds))
        if filled not in self._plans:
            self._plans[filled] = self._planned(filled)
        pairs, whole = self._plans[filled]
        reported = records[:, 2:]
        for pair in pairs:
            for side, views in ((pair.left, pair.first), (pair.right, pair.second)):
                np.take(reported, side, axis=0, out=views.flat, mode="clip")
            self.objective.combine_pairs(pair.first, pair.second)
            reported[pair.left] = pair.first.flat
        self.objective.update_state(self.running, self._reported.views(reported[whole]))

    def _planned(self, filled: tuple[bool, ...]) -> tuple[list[_Pairs], int]:
        """(the pairs that are combined, level by level of the tree; the microbatch whose record has all in the end).

        What two nodes of the tree report together takes the place of the left one's first microbatch.
        """
        levels: dict[int, list[tuple[int, int]]] = {}

        def join(first: int, last: int) -> tuple[int, int] | None:
            """(the microbatch in whose place a node's statistics are, the node's height); None where it is empty."""
            if last - first == 1:
                return (first, 0) if filled[first] else None
            middle = (first + last) // 2
            left, right = join(first, middle), join(middle, last)
            if left is None or right is None:
                return right if left is None else left
            height = 1 + max(left[1], right[1])
            levels.setdefault(height, []).append((left[0], right[0]))
            return left[0], height

        joined = join(0, self._microbatches)
        assert joined is not None, "a minibatch has at least one example"
        return [_Pairs.of(self._reported, levels[height]) for height in sorted(levels)], joined[0]


@dataclass(frozen=True)
class _Pairs:
    """Microbatches whose statistics are combined at once, and memory for a copy of both sides' statistics."""

    left: Array
    right: Array
    first: Views
    second: Views

    @classmethod
    def of(cls, layout: Layout, pairs: Sequence[tuple[int, int]]) -> _Pairs:
        sides = np.array(pairs, np.intp).T
        first, second = (layout.rows(np.empty((len(pairs), layout.size))) for _ in range(2))
        return cls(sides[0], sides[1], first, second)
