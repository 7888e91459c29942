"""The gradient reduction of `--wire bfloat16`: group sums and parameters are rounded, on any number of ranks alike.

The tree's nodes at one depth are the groups. Each group's sum is rounded to bfloat16 before it is added to others, and
the sums above are float32 again. The parameters that all ranks compute with are rounded; the rank that owns an element
keeps it unrounded for the next update, because a small change of a rounded number would be lost. (A float32 copy beside
rounded parameters: Micikevicius et al., "Mixed precision training", ICLR 2018.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from distsgd.core.device import Array
from distsgd.parallel.bfloat16 import round_to_bfloat16
from distsgd.parallel.reduction import UPDATE_CHUNK, GradientReduction, Partition, Plan, update_chunks
from distsgd.parallel.tree import Span, TreeSum


def with_unrounded(plan: Plan) -> Plan:
    """The plan of a reduction that a `RoundedReduction` wraps: it keeps the unrounded parameters as a slot."""
    return replace(plan, slots=plan.slots + 1)


@final
@dataclass(frozen=True, slots=True)
class RoundedSum(TreeSum):
    """A sum in the tree's order in which the groups' sums are rounded, in place; see `TreeSum`.

    operations  in order: (left, right, out) of an addition, (sum, None, scratch memory) of a rounding
    """

    operations: tuple[tuple[Array, Array | None, Array], ...] = ()

    def compute(self) -> Array:
        for left, right, out in self.operations:
            if right is None:
                round_to_bfloat16(left, left, out)
            else:
                np.add(left, right, out=out)
        return self.result


def rounded_sum(
    rows: Mapping[Span, Array], partition: Partition, bounds: Sequence[int], span: slice, scratch: Sequence[Array]
) -> RoundedSum | None:
    """As `tree_sum` of all microbatches, with the groups' sums rounded; None where all are empty.

    The rows' elements `span` are rounded in place where a row is a group's sum. `scratch` is an array for each of
    `scratch_levels(microbatches)`, of at least the span's length.
    """
    groups = set(partition.subtrees(0, partition.microbatches))
    operations: list[tuple[Array, Array | None, Array]] = []
    leaves = 0

    def visit(first: int, last: int, level: int) -> Array | None:
        nonlocal leaves
        if bounds[first] == bounds[last]:
            return None
        row = rows.get((first, last))
        if row is not None:
            leaves += 1
            found: Array | None = row[span]
        else:
            middle = (first + last) // 2
            left, right = visit(first, middle, level), visit(middle, last, level + 1)
            found = right if left is None else left
            if left is not None and right is not None:
                found = scratch[level][: left.size]
                operations.append((left, right, found))
        if found is not None and (first, last) in groups:
            operations.append((found, None, scratch[-1]))  # no addition is so deep
        return found

    result = visit(0, partition.microbatches, 0)
    if result is None:
        return None
    return RoundedSum(result, leaves, operations=tuple(operations))


@final
class RoundedReduction(GradientReduction):
    """Another reduction in the host's memory, whose plan is `with_unrounded`; it has the memory and sends messages."""

    own_slots = ("unrounded parameters",)

    def __init__(self, inner: GradientReduction) -> None:
        super().__init__(inner.communicator, replace(inner.plan, slots=inner.plan.slots - 1), inner.transport)
        self.inner, self.barrier, self.speaks_for_replica = inner, inner.barrier, inner.speaks_for_replica
        self.params, self.rows, self.flags, self.records = inner.params, inner.rows, inner.flags, inner.records
        self._spare = np.empty(UPDATE_CHUNK, np.float32)
        self._chunks = [
            (self.updated(chunk.start, chunk.stop), self.params[chunk]) for chunk in update_chunks(self.owned)
        ]

    def reduce_scatter(self, bounds: tuple[int, ...]) -> tuple[Array, Array]:
        return self.inner.reduce_scatter(bounds)

    def launch_sums(self, bounds: tuple[int, ...]) -> None:
        self.inner.launch_sums(bounds)

    def sums(self) -> tuple[dict[Span, Array], int]:
        return self.inner.sums()

    def total(self, bounds: tuple[int, ...], span: slice, scratch: Sequence[Array]) -> TreeSum:
        sums, first = self.sums()
        total = rounded_sum(sums, self.partition, bounds, slice(span.start - first, span.stop - first), scratch)
        assert total is not None, "a minibatch has at least one example"
        return total

    def updated(self, start: int, stop: int) -> Array:
        return self.inner.slots(start, stop)[-1]

    def all_gather(self) -> None:
        with np.errstate(all="ignore"):
            for unrounded, rounded in self._chunks:
                round_to_bfloat16(unrounded, rounded, self._spare)
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
