"""The running statistics of a model, such as batch normalization's: the same on all ranks, in the host's memory."""

from __future__ import annotations

from typing import final

from distsgd.core.device import Array
from distsgd.core.layout import Layout, Views
from distsgd.nn.objective import Objective
from distsgd.training.steps import StepParts

LEAST_EXAMPLES = 8
"""Of a microbatch whose mean and spread normalize it: those of one or two are no statistics."""


def least_examples(objective: Objective) -> int:
    """How many examples each of several microbatches has at least."""
    return LEAST_EXAMPLES if objective.statistics_shapes() else 1


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
        self.own = [self._reported.views(record[2:]) for record in reduction.records]
        self.are_copied = len(running) > 0 and not self._device.host_memory

    def for_model(self) -> Views:
        """The running statistics for a model to read, where it computes."""
        if not self.are_copied:
            return self.running.read_only()
        return self.layout.views(self._device.put(self.running.flat)).read_only()

    def update(self, records: Array, bounds: tuple[int, ...]) -> None:
        """Moves them on by what the microbatches have reported of a step."""
        if not len(self.running):
            return
        statistics = [self._reported.views(record[2:]) for record in records]

        def join(first: int, last: int) -> Views | None:
            if bounds[first] == bounds[last]:
                return None
            if last - first == 1:
                return statistics[first]
            middle = (first + last) // 2
            left, right = join(first, middle), join(middle, last)
            if left is None or right is None:
                return right if left is None else left
            self.objective.combine_statistics(left, right)
            return left

        joined = join(0, self._microbatches)
        assert joined is not None, "a minibatch has at least one example"
        self.objective.update_state(self.running, joined)
