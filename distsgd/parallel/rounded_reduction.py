"""The gradient reduction of `--wire bfloat16`: group sums and parameters are rounded, on any number of ranks alike.

The tree's nodes at one depth are the groups. Each group's sum is rounded to bfloat16 before it is added to others, and
the sums above are float32 again. The parameters that all ranks compute with are rounded; the rank that owns an element
keeps it unrounded for the next update, because a small change of a rounded number would be lost. (A float32 copy beside
rounded parameters: Micikevicius et al., "Mixed precision training", ICLR 2018.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, final

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError
from distsgd.parallel.bfloat16 import BFloat16Transport, round_to_bfloat16
from distsgd.parallel.communicator import Communicator
from distsgd.parallel.reduction import GradientReduction, Partition, Plan, update_chunks
from distsgd.parallel.transport import Transport
from distsgd.parallel.tree import Span, TreeSum

Operation: TypeAlias = tuple[Callable[[Array, Array, Array], object], Array, Array, Array]
"""A function with what it is called with; it writes into the last array."""


@final
@dataclass(frozen=True, slots=True)
class RoundedSum(TreeSum):
    """A sum in the tree's order in which the groups' sums are rounded; see `TreeSum`.

    operations  additions and roundings, in order
    """

    operations: tuple[Operation, ...] = ()

    def compute(self) -> Array:
        for function, first, second, out in self.operations:
            function(first, second, out)
        return self.result


def rounded_sum(
    rows: Mapping[Span, Array], partition: Partition, bounds: Sequence[int], span: slice, scratch: Sequence[Array]
) -> RoundedSum | None:
    """As `tree_sum` of all microbatches, with the groups' sums rounded; None where all are empty.

    `scratch` is an array for each of `scratch_levels(microbatches)`, of at least the span's length.
    """
    groups = set(partition.subtrees(0, partition.microbatches))
    memory = [one[: span.stop - span.start] for one in scratch]
    operations: list[Operation] = []
    used: list[Span] = []

    def visit(first: int, last: int, level: int) -> Array | None:
        """The node's sum: a row, or the scratch array of this level."""
        if bounds[first] == bounds[last]:
            return None
        if (first, last) in rows:
            used.append((first, last))
            found: Array | None = rows[first, last][span]
        else:
            middle = (first + last) // 2
            found = visit(first, middle, level)
            right = visit(middle, last, level if found is None else level + 1)
            if found is None:
                found = right
            elif right is not None:
                operations.append((np.add, found, right, memory[level]))
                found = memory[level]
        if (first, last) in groups:
            assert found is not None, "some microbatch isn't empty"
            # In place where an addition has left the sum here: then there is another level below.
            spare = memory[level + 1] if found is memory[level] else memory[level]
            operations.append((round_to_bfloat16, found, spare, memory[level]))
            found = memory[level]
        return found

    result = visit(0, partition.microbatches, 0)
    return None if result is None else RoundedSum(result, len(used), operations=tuple(operations))


@final
class RoundedReduction(GradientReduction):
    """Another reduction in the host's memory, which has the memory and sends messages; the last slot of its plan holds
    the unrounded parameters."""

    own_slots = ("unrounded parameters",)

    def __init__(self, inner: GradientReduction) -> None:
        super().__init__(inner.communicator, replace(inner.plan, slots=inner.plan.slots - 1), inner.transport)
        self.inner, self.barrier, self.speaks_for_replica = inner, inner.barrier, inner.speaks_for_replica
        self.params, self.rows, self.flags, self.records = inner.params, inner.rows, inner.flags, inner.records
        self._chunks = [
            (self.updated(chunk.start, chunk.stop), self.params[chunk]) for chunk in update_chunks(self.owned)
        ]

    def reduce_scatter(self, bounds: tuple[int, ...]) -> tuple[Array, Array]:
        return self.inner.reduce_scatter(bounds)

    def launch_sums(self, bounds: tuple[int, ...]) -> None:
        self.inner.launch_sums(bounds)

    def sums(self, span: slice) -> tuple[dict[Span, Array], slice]:
        return self.inner.sums(span)

    def total(self, bounds: tuple[int, ...], span: slice, scratch: Sequence[Array]) -> TreeSum:
        sums, inside = self.sums(span)
        total = rounded_sum(sums, self.partition, bounds, inside, scratch)
        assert total is not None, "a minibatch has at least one example"
        return total

    def updated(self, start: int, stop: int) -> Array:
        return self.inner.slots(start, stop)[-1]

    def all_gather(self) -> None:
        for unrounded, rounded in self._chunks:
            round_to_bfloat16(unrounded, rounded, rounded)
        self.inner.all_gather()

    def allgather_on_host(self, flat: Array, counts: Sequence[int]) -> None:
        self.inner.allgather_on_host(flat, counts)

    def slots(self, start: int, stop: int) -> tuple[Array, ...]:
        return self.inner.slots(start, stop)[:-1]

    def gather_slots(self) -> list[Array] | None:
        return self.inner.gather_slots()

    def load_params(self, params: Array | None) -> None:
        self.inner.load_params(params)
        for unrounded, rounded in self._chunks:
            unrounded[:] = rounded
        self.all_gather()

    def load_slots(self, slots: list[Array] | None) -> None:
        self.inner.load_slots(slots)


def rounded_reduction(
    communicator: Communicator, plan: Plan, make: Callable[[Plan, Transport], tuple[GradientReduction, str | None]]
) -> tuple[GradientReduction, str | None]:
    """Wrap the reduction that `make` returns with a line to print, for a plan and a transport. Collective.

    Raises ConfigurationError on a device other than the host's memory.
    """
    if not plan.device.host_memory:
        raise ConfigurationError(
            f"wire bfloat16: rounds in the host's memory, and this run computes on {plan.device.name}; give --device "
            "cpu, or leave it out"
        )
    transport = BFloat16Transport(communicator.transport, communicator.rank)
    inner, note = make(replace(plan, slots=plan.slots + 1), transport)
    return RoundedReduction(inner), note
