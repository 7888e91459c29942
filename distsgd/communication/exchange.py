"""The one reduction of a step: lane gradients in, updated parameters out, the same bits on any number of ranks.

A step has three parts. Each rank writes the gradients of its lanes into its rows. `gather` makes all rows visible for
the elements that a rank owns, and everybody's records with them. Each rank sums and updates its own elements, and
`publish` gives the parameters back to all. No float is ever added by MPI, whose order depends on size and library.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from distsgd.communication.base import Communicator
from distsgd.communication.tree import Span, maximal_subtrees, part, tree_sum
from distsgd.device import Array

BLOCK = 16_384
"""Elements of a flat buffer that are updated together: what fits the cache. Slices are cut at block edges, and norms
are sums over blocks, so that neither depends on the number of ranks."""

SCALARS = 8
"""How many scalars rank 0 can tell the others with a step."""


@dataclass(frozen=True)
class Partition:
    """Who computes which lanes and updates which elements."""

    lanes: int
    ranks: int
    elements: int

    def lanes_of(self, rank: int) -> Span:
        """The contiguous lanes [first, last) of a rank."""
        return part(self.lanes, self.ranks, rank)

    @property
    def blocks(self) -> int:
        """Blocks of the flat buffer."""
        return -(-self.elements // BLOCK)

    def block(self, index: int) -> slice:
        """The elements of one block."""
        return slice(index * BLOCK, min((index + 1) * BLOCK, self.elements))

    def blocks_of(self, rank: int) -> range:
        """The blocks whose elements a rank updates."""
        return range(*part(self.blocks, self.ranks, rank))

    def elements_of(self, rank: int) -> slice:
        """The elements that a rank updates."""
        blocks = self.blocks_of(rank)
        return slice(min(blocks.start * BLOCK, self.elements), min(blocks.stop * BLOCK, self.elements))

    def counts(self) -> list[int]:
        """How many elements each rank updates."""
        spans = [self.elements_of(rank) for rank in range(self.ranks)]
        return [span.stop - span.start for span in spans]


class Exchange(ABC):
    """The memory of this rank's replica, and the reduction.

    params   flat parameters, (elements,)
    slots    optimizer state of the elements that this rank owns, (number of slots, owned elements)
    rows     gradient sums by node of the tree, for the nodes that this rank's workers compute, each (elements,)
    flags    (ranks, 1 + SCALARS) float64: what every rank says with the step, then what rank 0 tells
    records  (lanes, record width) float64: loss sum, count and statistics of every lane
    """

    def __init__(
        self, communicator: Communicator, partition: Partition, workers: int, dtype: np.dtype, slots: int, record: int
    ) -> None:
        self.communicator, self.partition = communicator, partition
        self.owned = partition.elements_of(communicator.rank)
        self.first_lane, self.last_lane = partition.lanes_of(communicator.rank)
        count = self.last_lane - self.first_lane
        self.worker_spans = [
            (self.first_lane + a, self.first_lane + b) for a, b in (part(count, workers, w) for w in range(workers))
        ]
        self.params = np.zeros(partition.elements, dtype)
        self.slots = np.zeros((slots, self.owned.stop - self.owned.start), dtype)
        self.flags = np.zeros((partition.ranks, 1 + SCALARS))
        self.records = np.zeros((partition.lanes, record))
        self.rows = {node: np.zeros(partition.elements, dtype) for node in self._nodes()}

    def _nodes(self) -> Iterator[Span]:
        for first, last in self.worker_spans:
            yield from maximal_subtrees(first, last, self.partition.lanes)

    @abstractmethod
    def gather(self, bounds: tuple[int, ...]) -> None:
        """Makes all flags and records, and the rows' owned elements, visible here. `bounds` are the lanes' bounds."""

    @abstractmethod
    def total(self, bounds: tuple[int, ...], block: slice) -> Array:
        """The sum over all lanes on a block that this rank owns; the caller may overwrite it."""

    @abstractmethod
    def publish(self) -> None:
        """Makes every rank's updated parameters visible to all."""

    def gather_slots(self) -> list[Array] | None:
        """The whole optimizer state, one flat array a slot, on rank 0; None elsewhere. Collective."""
        parts = self.communicator.gather_object(self.slots)
        return None if parts is None else list(np.concatenate(parts, axis=1))

    def load_params(self, params: Array | None) -> None:
        """Takes rank 0's parameters (None elsewhere). Collective."""
        if params is not None:
            self.params[:] = params
        self.communicator.broadcast(self.params)

    def load_slots(self, slots: list[Array] | None) -> None:
        """Takes rank 0's optimizer state (None elsewhere), each rank what it owns. Collective."""
        whole = np.empty_like(self.params)
        for index in range(len(self.slots)):
            if slots is not None:
                whole[:] = slots[index]
            self.communicator.broadcast(whole)
            self.slots[index] = whole[self.owned]


class LocalExchange(Exchange):
    """One rank alone: everything is here already."""

    def gather(self, bounds: tuple[int, ...]) -> None:
        pass

    def total(self, bounds: tuple[int, ...], block: slice) -> Array:
        total = tree_sum(self.rows, (0, self.partition.lanes), bounds, block)
        assert total is not None, "a minibatch has at least one example"
        return total

    def publish(self) -> None:
        pass


class MessageExchange(Exchange):
    """Slices travel in messages: all-to-all, the tree, the update, all-gather."""

    def __init__(
        self, communicator: Communicator, partition: Partition, workers: int, dtype: np.dtype, slots: int, record: int
    ) -> None:
        super().__init__(communicator, partition, workers, dtype, slots, record)
        ranks = range(partition.ranks)
        self._spans = [partition.elements_of(rank) for rank in ranks]
        self._nodes_of = [maximal_subtrees(*partition.lanes_of(rank), partition.lanes) for rank in ranks]
        self._heads = [
            self.flags.shape[1] + (last - first) * record for first, last in (partition.lanes_of(r) for r in ranks)
        ]
        width = self.params.itemsize
        own_rows = len(self._nodes_of[communicator.rank])
        own_length = self.owned.stop - self.owned.start
        self._send_counts = [
            8 * self._heads[communicator.rank] + own_rows * (span.stop - span.start) * width for span in self._spans
        ]
        self._receive_counts = [8 * self._heads[r] + len(self._nodes_of[r]) * own_length * width for r in ranks]
        self._send = np.empty(sum(self._send_counts), np.uint8)
        self._receive = np.empty(sum(self._receive_counts), np.uint8)
        self._received = self._views_of_received()

    def _views_of_received(self) -> dict[Span, Array]:
        """Where each rank's rows arrive: node -> that row's elements that this rank owns."""
        length = (self.owned.stop - self.owned.start) * self.params.itemsize
        views, start = {}, 0
        for rank, nodes in enumerate(self._nodes_of):
            start += 8 * self._heads[rank]
            for node in nodes:
                views[node] = _view(self._receive[start : start + length], self.params.dtype)
                start += length
        return views

    def gather(self, bounds: tuple[int, ...]) -> None:
        rank = self.communicator.rank
        head = np.concatenate([self.flags[rank], self.records[self.first_lane : self.last_lane].ravel()]).view(np.uint8)
        start = 0
        for span in self._spans:
            pieces = [head]
            for node in self._nodes_of[rank]:
                total = tree_sum(self.rows, node, bounds, span)
                row = self.rows[self._leftmost(node)][span] if total is None else total
                pieces.append(row.view(np.uint8))
            for piece in pieces:
                self._send[start : start + piece.size] = piece
                start += piece.size
        self.communicator.alltoall(self._send, self._send_counts, self._receive, self._receive_counts)
        self._read_heads()

    def _leftmost(self, node: Span) -> Span:
        """Any row inside `node`: what an empty node sends is never read, but has to have a size."""
        return next(span for span in self.rows if span[0] == node[0])

    def _read_heads(self) -> None:
        start, width = 0, self.flags.shape[1]
        for rank, (head, size) in enumerate(zip(self._heads, self._receive_counts, strict=True)):
            values = np.frombuffer(self._receive[start : start + 8 * head].tobytes(), np.float64)
            first, last = self.partition.lanes_of(rank)
            self.flags[rank] = values[:width]
            self.records[first:last] = values[width:].reshape(last - first, -1)
            start += size

    def total(self, bounds: tuple[int, ...], block: slice) -> Array:
        inside = slice(block.start - self.owned.start, block.stop - self.owned.start)
        total = tree_sum(self._received, (0, self.partition.lanes), bounds, inside)
        assert total is not None, "a minibatch has at least one example"
        return total

    def publish(self) -> None:
        self.communicator.allgather_slices(self.params, self.partition.counts())


def _view(buffer: Array, dtype: np.dtype) -> Array:
    """The bytes as elements of dtype, in place (NumPy views are allowed to be misaligned)."""
    return np.ndarray((buffer.size // dtype.itemsize,), dtype, buffer=buffer.data)


def make_exchange(
    communicator: Communicator, partition: Partition, workers: int, dtype: np.dtype, slots: int, record: int
) -> Exchange:
    """The exchange that fits these ranks."""
    kind = LocalExchange if communicator.size == 1 else MessageExchange
    return kind(communicator, partition, workers, dtype, slots, record)
