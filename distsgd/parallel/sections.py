"""Which elements each rank updates where ranks have whole blocks: on GPUs, and where gradients leave while others are
still computed.

Then the flat buffer is cut into sections, and each rank owns some blocks of each section. So every rank and host has
something to send as soon as one section is there, and links are busy in both directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from distsgd.parallel.reduction import BLOCK, Partition
from distsgd.parallel.tree import part

MOST = 16
"""Sections, and messages in which a rank sends its sums, at most: each costs some ten microseconds."""
LEAST = 3
"""Sections, and blocks that each rank owns, at least. Otherwise there is one message for each other replica."""


@dataclass(frozen=True)
class BlockPartition(Partition):
    """A partition in which a rank updates whole blocks, as devices need whose kernels add up a whole block."""

    @property
    def blocks(self) -> int:
        """Blocks of the flat buffer."""
        return -(-self.elements // BLOCK)

    def blocks_of(self, rank: int) -> range:
        """The blocks whose elements a rank updates."""
        return range(*part(self.blocks, self.ranks, rank))

    def elements_of(self, rank: int) -> slice:
        blocks = self.blocks_of(rank)
        return slice(min(blocks.start * BLOCK, self.elements), min(blocks.stop * BLOCK, self.elements))


@dataclass(frozen=True)
class Section(BlockPartition):
    """The blocks [first, last) of a flat buffer, which the ranks share."""

    first: int = 0
    last: int = 0

    def blocks_of(self, rank: int) -> range:
        start, stop = part(self.last - self.first, self.ranks, rank)
        return range(self.first + start, self.first + stop)

    @property
    def span(self) -> slice:
        """All of its elements."""
        return slice(self.first * BLOCK, min(self.last * BLOCK, self.elements))


@dataclass(frozen=True)
class Sectioned(BlockPartition):
    """A partition in which a rank updates some elements of each section.

    most   sections at most
    """

    most: int = MOST

    @classmethod
    def of(cls, partition: Partition, replicas: int) -> Sectioned | None:
        """These ranks, microbatches and elements; None where replicas are too many for sections, or elements too
        few."""
        most = MOST // max(1, replicas - 1)
        found = cls(partition.microbatches, partition.ranks, partition.elements, most=most)
        return found if most >= LEAST and found.blocks >= LEAST * found.ranks else None

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """In the order of their elements: each has as many blocks of every rank, but for the last."""
        rows = -(-self.blocks // self.ranks)
        count = min(self.most, rows)
        cuts = [min(part(rows, count, index)[0] * self.ranks, self.blocks) for index in range(count + 1)]
        parts = (self.microbatches, self.ranks, self.elements)
        return tuple(Section(*parts, first=first, last=last) for first, last in pairwise(cuts))

    def spans_of(self, rank: int) -> Sequence[slice]:
        spans = [section.elements_of(rank) for section in self.sections]
        return [span for span in spans if span.start < span.stop]  # the last section may have too few blocks

    def counts(self) -> list[int]:
        return [sum(span.stop - span.start for span in self.spans_of(rank)) for rank in range(self.ranks)]
