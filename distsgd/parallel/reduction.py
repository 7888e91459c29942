"""A step's gradient reduction: microbatch gradients in, updated parameters out, the same bits on any number of ranks.

Each rank writes the gradients of its microbatches into its rows. `reduce_scatter` makes all rows visible for the
elements that a rank owns, and all ranks' records with them. Each rank sums and updates its own elements, and
`all_gather` makes the updated parameters visible to all ranks. MPI adds no floats: its order of additions depends on
the number of ranks and on the library.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from distsgd.core.device import CPU, Array, Device, to_host
from distsgd.core.kernels.squares import nearest_cut
from distsgd.parallel.communicator import Communicator
from distsgd.parallel.transport import Transport
from distsgd.parallel.tree import Span, TreeSum, maximal_subtrees, part, split_nodes, tree_sum

BLOCK = 16_384
"""Elements of a flat buffer that fit the cache. Norms are sums over blocks, so that they don't depend on the number of
ranks; shards are cut at block edges or where `core.kernels.squares` cuts a block's sum in two."""

UPDATE_CHUNK = 2 * BLOCK
"""Elements that are summed and updated together: enough to amortize NumPy's cost of a call, and few enough to stay in
the second-level cache with the parameters, the optimizer's state and the temporaries."""

ROWS = 2
"""The fewest rows that a rank fills, where it has so many microbatches. Rows that a rank leaves apart are added where
the sum is used, a chunk at a time in the cache, which saves a pass over memory. More than two rows overfill the
third-level cache (measured on 1 and 2 ranks with 4 and 8 microbatches). Two microbatches have one row where their
products are added by BLAS: see `Plan.adds_products`.
"""

ROWS_OF_DEVICES = 4
"""The same for devices that add all rows in one pass."""

SCALARS = 8
"""How many scalars rank 0 can send to the others with a step."""


@dataclass(frozen=True)
class Partition:
    """Who computes which microbatches and updates which elements.

    shares  how many microbatches each rank computes; (): as nearly the same number as can be
    wire_groups  so many nodes at one depth of the tree, a power of two, have sums that are rounded: see
                 `parallel.rounded_reduction`; 0 where none are
    edges   elements at which sums of squares begin beside those of blocks, in order: see `training.norms`
    """

    microbatches: int
    ranks: int
    elements: int
    shares: tuple[int, ...] = ()
    wire_groups: int = 0
    edges: tuple[int, ...] = ()

    def microbatches_of(self, rank: int) -> Span:
        """The contiguous microbatches [first, last) of a rank."""
        if self.shares:
            return sum(self.shares[:rank]), sum(self.shares[: rank + 1])
        return part(self.microbatches, self.ranks, rank)

    def subtrees(self, first: int, last: int) -> list[Span]:
        """The nodes of the tree whose sums stand for microbatches [first, last); none is wider than a group."""
        return maximal_subtrees(first, last, self.microbatches, self.wire_groups)

    def elements_of(self, rank: int) -> slice:
        """The elements that a rank updates: as nearly the same number as can be."""
        ideal = part(self.elements, self.ranks, rank)
        return slice(*(nearest_cut(place, self.elements, BLOCK, self.edges) for place in ideal))

    def spans_of(self, rank: int) -> Sequence[slice]:
        """The elements that a rank updates, in order, where they need not be consecutive."""
        return [self.elements_of(rank)]

    def counts(self) -> list[int]:
        """How many elements each rank updates."""
        return [span.stop - span.start for span in map(self.elements_of, range(self.ranks))]


@dataclass(frozen=True)
class Plan:
    """What a reduction is made from, the same on all ranks except `workers`.

    workers  threads of this rank that compute gradients
    slots    buffers of optimizer state
    record   float64 numbers that each microbatch reports: loss sum, count, statistics
    device   where this rank's parameters, gradients and state lie
    others   threads of each host that compute beside its ranks, such as those that read examples
    has_equal_shares  whether all ranks compute as nearly the same number of microbatches as can be, in all steps
    adds_products  whether a worker may add a microbatch's gradient as it computes it, which takes less than writing it
    """

    partition: Partition
    workers: int
    dtype: np.dtype
    slots: int
    record: int
    device: Device = CPU
    others: int = 0
    has_equal_shares: bool = True
    adds_products: bool = False

    @property
    def chunk(self) -> int:
        """Elements that are summed and updated together: all, on a device to which operations are launched."""
        return max(self.partition.elements, 1) if self.device.one_pass else UPDATE_CHUNK


class GradientReduction(ABC):
    """The memory of this rank's replica, and the reduction.

    communicator, transport   between the ranks: of objects, and of arrays that lie on the plan's device
    params   flat parameters, (elements,)
    rows     gradient sums by node of the tree, for the nodes that this rank's workers compute, each (elements,)
    flags    (1 + SCALARS,) float64: this rank's flag of the step, then rank 0's scalars
    records  (microbatches of this rank, record width) float64: loss sum, count and statistics of each
    barrier  waits for the ranks that share this replica

    All but the flags lie on the plan's device.
    """

    params: Array
    rows: dict[Span, Array]
    flags: Array
    records: Array

    is_asynchronous: bool = False
    """Whether `launch_sums` and `all_gather` run on the device without the host, so that a step can be recorded."""

    speaks_for_replica: bool = True
    """Whether this rank represents its replica in a comparison of replicas."""

    own_slots: tuple[str, ...] = ()
    """Names of what is gathered and loaded after the optimizer's state, because training continues from it as well."""

    def __init__(self, communicator: Communicator, plan: Plan, transport: Transport | None = None) -> None:
        self.communicator, self.transport = communicator, transport or communicator.transport
        self.barrier: Callable[[], object] = communicator.barrier
        self.owned = plan.partition.elements_of(communicator.rank)
        GradientReduction.take(self, plan)

    def take(self, plan: Plan) -> None:
        """Prepare rows and records for this plan: the first one, or one with other shares of the microbatches.

        Parameters, state and flags stay. Raises NotShared, on all ranks, where rows can't be shared. Collective.
        """
        self.plan, self.partition = plan, plan.partition
        self.first_microbatch, self.last_microbatch = self.partition.microbatches_of(self.communicator.rank)
        count = self.last_microbatch - self.first_microbatch
        self.worker_spans = [
            (self.first_microbatch + a, self.first_microbatch + b)
            for a, b in (part(count, plan.workers, worker) for worker in range(plan.workers))
        ]

    def nodes(self) -> list[Span]:
        """The nodes of the tree that this rank's workers compute, a row for each."""
        limit = max(1, (ROWS_OF_DEVICES if self.plan.device.one_pass else ROWS) // self.plan.workers)
        subtrees, narrow = self.partition.subtrees, 2 if self.plan.adds_products else 1
        return [node for span in self.worker_spans for node in split_nodes(subtrees(*span), limit, narrow)]

    def begin(self, bounds: tuple[int, ...]) -> None:  # noqa: B027 (only what sends early has something to do)
        """A step begins whose microbatches have these bounds. `reduce_scatter` follows, whatever fails."""

    @abstractmethod
    def reduce_scatter(self, bounds: tuple[int, ...]) -> tuple[Array, Array]:
        """Makes the rows' owned elements of all ranks visible here; `bounds` are the microbatches' bounds.

        Returns all ranks' flags (ranks, 1 + SCALARS) and records (microbatches, record width), in host memory that this
        rank may overwrite.
        """

    def launch_sums(self, bounds: tuple[int, ...]) -> None:  # noqa: B027 (one rank has them already)
        """As `reduce_scatter`, without waiting on the host."""

    @abstractmethod
    def sums(self, span: slice) -> tuple[dict[Span, Array], slice]:
        """(rows by node of the tree, where in them elements lie that this rank owns)."""

    def total(self, bounds: tuple[int, ...], span: slice, scratch: Sequence[Array]) -> TreeSum:
        """How to sum over all microbatches on elements that this rank owns; `scratch` as `tree_sum` takes it."""
        sums, inside = self.sums(span)
        total = tree_sum(sums, (0, self.partition.microbatches), bounds, inside, scratch)
        assert total is not None, "a minibatch has at least one example"
        return total

    def not_finite(self, bounds: tuple[int, ...], span: slice) -> set[Span]:
        """The nodes with non-finite sums on elements that this rank owns; called before the next step begins."""
        sums, inside = self.sums(span)
        return {n for n, row in sums.items() if bounds[n[0]] < bounds[n[1]] and not np.isfinite(row[inside]).all()}

    def has_updated(self, span: slice) -> None:  # noqa: B027
        """The parameters of a chunk of this rank are updated, and chunks come in order. All ranks know all flags."""

    @abstractmethod
    def all_gather(self) -> None:
        """Makes every rank's updated parameters visible to all."""

    def finish(self, wait: bool) -> None:
        """`all_gather`; without `wait`, parameters may also arrive as the next step asks for those of each layer."""
        self.all_gather()

    def close(self) -> None:
        """Closes the transport."""
        self.transport.close()

    def allgather_on_host(self, flat: Array, counts: Sequence[int]) -> None:
        """Fills in the slices of a small array in host memory that other ranks own, rank r the next `counts[r]`."""
        self.communicator.transport.allgather_slices(flat, counts)

    def updated(self, start: int, stop: int) -> Array:
        """The parameters that an update reads and writes, of elements that this rank owns; `all_gather` sends them."""
        return self.params[start:stop]

    @abstractmethod
    def slots(self, start: int, stop: int) -> tuple[Array, ...]:
        """The optimizer state of elements that this rank owns, one array for each slot."""

    @abstractmethod
    def gather_slots(self) -> list[Array] | None:
        """A copy of the whole optimizer state in host memory on rank 0, one flat array for each slot; None elsewhere.
        Collective."""

    @abstractmethod
    def load_params(self, params: Array | None) -> None:
        """Load rank 0's parameters from host memory (None elsewhere, and where they are already loaded). Collective."""

    @abstractmethod
    def load_slots(self, slots: list[Array] | None) -> None:
        """Load rank 0's optimizer state (None elsewhere); each rank keeps what it owns. Collective."""


class OwnState(GradientReduction):
    """A reduction in which each rank keeps the optimizer state of the elements that it owns, and no other."""

    def __init__(self, communicator: Communicator, plan: Plan, transport: Transport | None = None) -> None:
        super().__init__(communicator, plan, transport)
        self._slots = plan.device.xp.zeros((plan.slots, self.partition.counts()[communicator.rank]), plan.dtype)

    def slots(self, start: int, stop: int) -> tuple[Array, ...]:
        return tuple(self._slots[:, start - self.owned.start : stop - self.owned.start])

    def gather_slots(self) -> list[Array] | None:
        from distsgd.parallel.owned_state import gather_owned

        spans = [self.partition.spans_of(rank) for rank in range(self.partition.ranks)]
        own = [to_host(slot) for slot in self._slots]
        return gather_owned(self.communicator, self.partition.elements, spans, own)

    def load_slots(self, slots: list[Array] | None) -> None:
        from distsgd.parallel.owned_state import take_owned

        spans = self.partition.spans_of(self.communicator.rank)
        whole = np.empty(self.partition.elements, self.plan.dtype)
        for index, own in enumerate(self._slots):
            given = None if slots is None else slots[index]
            own[:] = self.plan.device.put(take_owned(self.communicator, whole, given, spans))


class LocalReduction(OwnState):
    """The reduction of a single rank, which has all rows already."""

    is_asynchronous = True

    def __init__(self, communicator: Communicator, plan: Plan) -> None:
        super().__init__(communicator, plan)
        elements, xp = self.partition.elements, plan.device.xp
        self.params = xp.zeros(elements, plan.dtype)
        self.rows = {node: xp.zeros(elements, plan.dtype) for node in self.nodes()}
        self.flags = np.zeros(1 + SCALARS)
        self.records = xp.zeros((self.last_microbatch - self.first_microbatch, plan.record))

    def reduce_scatter(self, bounds: tuple[int, ...]) -> tuple[Array, Array]:
        return self.flags[np.newaxis], to_host(self.records)

    def sums(self, span: slice) -> tuple[dict[Span, Array], slice]:
        return self.rows, span

    def all_gather(self) -> None:
        pass

    def load_params(self, params: Array | None) -> None:
        if params is not None:
            self.params[:] = self.plan.device.put(params)


def update_chunks(span: slice, length: int = UPDATE_CHUNK) -> Iterator[slice]:
    """The span in chunks of at most `length` elements, between which no block is divided."""
    for start in range(span.start - span.start % BLOCK, span.stop, length) if span.start < span.stop else ():
        yield slice(max(start, span.start), min(start + length, span.stop))
