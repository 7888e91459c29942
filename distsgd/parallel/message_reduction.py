"""The gradient reduction of several replicas: groups of ranks send each other sums, then updated parameters.

`routes` says who sends what to whom.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from distsgd.core.device import Array, to_host
from distsgd.parallel.communicator import Communicator
from distsgd.parallel.reduction import SCALARS, OwnState, Plan, update_chunks
from distsgd.parallel.routes import Groups, routes
from distsgd.parallel.shared_memory import NotShared, shared_array
from distsgd.parallel.transport import Parts, Transport
from distsgd.parallel.tree import Span, TreeSum, scratch_levels, tree_sum

_BYTES = "u1"


class MessageReduction(OwnState):
    """One replica for each group.

    A step is an all-gather of flags and records, an all-to-all of sums, the update, and an all-to-all of parameters.
    Raises NotShared, on all ranks, where a group can't share memory, and ConfigurationError where it computes a part of
    a group of microbatches whose sum is rounded.
    """

    def __init__(
        self, communicator: Communicator, plan: Plan, group: Communicator, transport: Transport | None = None
    ) -> None:
        super().__init__(communicator, plan, transport)
        self.is_asynchronous = self.transport.is_asynchronous
        self.group, self._groups = group, Groups.of(communicator, group)
        self._groups.check_whole(plan.partition, communicator.hosts)
        self.barrier = group.barrier
        self.speaks_for_replica = group.is_root
        (self.params,), self._has_params = self._arrays(1)
        self.take(plan)

    def take(self, plan: Plan) -> None:
        super().take(plan)
        nodes = [node for of_rank in self.group.allgather_object(self.nodes()) for node in of_rank]
        rows, has_rows = self._arrays(len(nodes))
        shared = self.communicator.allgather_object((self._has_params and has_rows) or self.partition.elements == 0)
        if not all(shared):
            raise NotShared(self.communicator.hosts[shared.index(False)])
        self._rows = dict(zip(nodes, rows, strict=True))
        self.rows = {node: self._rows[node] for node in self.nodes()}
        levels = scratch_levels(plan.partition.microbatches, plan.device.one_pass)
        self._scratch = plan.device.xp.empty((levels - 1, plan.chunk), plan.dtype)
        self._prepare_heads()
        self._prepare_messages(self._groups)

    def _arrays(self, count: int) -> tuple[Iterable[Array], bool]:
        """(arrays of the parameters' length, whether the group shares them).

        On another device each rank has its own, and each array is an allocation: libraries that write gradients there
        choose kernels by alignment, which must not depend on the number of ranks.
        """
        elements, device = self.partition.elements, self.plan.device
        if device.host_memory:
            return shared_array(self.group, (count, elements), self.plan.dtype)
        return [device.xp.zeros(elements, self.plan.dtype) for _ in range(count)], True

    def _prepare_heads(self) -> None:
        """Allocate the heads, in rank order: the flags of a rank, then the records of its microbatches."""
        partition, width, head = self.partition, self.plan.record, 1 + SCALARS
        spans = [partition.microbatches_of(rank) for rank in range(partition.ranks)]
        heads = Parts.consecutive(head + (last - first) * width for first, last in spans)
        self._heads, self._head_counts = np.zeros(heads.end), heads.counts
        indices = np.arange(heads.end)
        places = [indices[heads[rank]] for rank in range(partition.ranks)]
        self._flags_at = np.stack([place[:head] for place in places])
        self._records_at = np.concatenate([place[head:] for place in places]).reshape(partition.microbatches, width)
        own = self._heads[heads[self.communicator.rank]]
        self.flags, self._own_records = own[:head], own[head:].reshape(-1, width)
        device = self.plan.device
        self.records = self._own_records if device.host_memory else device.xp.zeros(self._own_records.shape)

    def _prepare_messages(self, groups: Groups) -> None:
        """Allocate the messages with sums, and cut the parameters into what is sent and what arrives."""
        width, xp, count = self.plan.dtype.itemsize, self.plan.device.xp, self.owned.stop - self.owned.start
        self._routes = found = routes(self.partition, groups, self.communicator.rank, width)
        self._send, self._receive = (xp.empty(parts.end, _BYTES) for parts in (found.sums_sent, found.sums_received))
        self._sums = {node: row[self.owned] for node, row in self._rows.items()}
        for rank, nodes in found.arriving.items():
            arrived = self._receive[found.sums_received[rank]].view(self.plan.dtype).reshape(len(nodes), count)
            self._sums.update(zip(nodes, arrived, strict=True))
        self._to_send: dict[tuple[int, ...], list[tuple[TreeSum, Array]]] = {}
        params, self._lengths = self.params.view(_BYTES), self.partition.counts()
        self._mine = params[self.owned.start * width : self.owned.stop * width]
        self._others = params[found.params_first * width :]

    def _sums_to_send(self, bounds: tuple[int, ...]) -> list[tuple[TreeSum, Array]]:
        """(the sum of the group's microbatches on a chunk, its slice of the message) for all that this rank sends."""
        sums: list[tuple[TreeSum, Array]] = []
        nodes = self._routes.nodes
        for owner in self._routes.owners:
            span = self.partition.elements_of(owner)
            message = self._send[self._routes.sums_sent[owner]].view(self.plan.dtype).reshape(len(nodes), -1)
            for node, row in zip(nodes, message, strict=True):
                sums += self._sums_of(node, span, row, bounds)
        return sums

    def _sums_of(
        self, node: Span, span: slice, message: Array, bounds: tuple[int, ...]
    ) -> Iterator[tuple[TreeSum, Array]]:
        """(the sum of a node on a chunk, its slice of the message) for the chunks of the elements `span`."""
        for chunk in update_chunks(span, self.plan.chunk):
            place = message[chunk.start - span.start : chunk.stop - span.start]
            total = tree_sum(self._rows, node, bounds, chunk, [place, *self._scratch])
            if total is not None:  # else all its microbatches are empty: a gap that no rank reads
                yield total, place

    def reduce_scatter(self, bounds: tuple[int, ...]) -> tuple[Array, Array]:
        # No rank has all heads before every rank has come here: from now on the neighbours' rows are complete.
        heads = self._gather_heads()
        self.launch_sums(bounds)
        return heads

    def _gather_heads(self) -> tuple[Array, Array]:
        """(flags, records) of all ranks, when this rank's device has ended what was launched on it."""
        self.transport.synchronize()
        if self.records is not self._own_records:
            to_host(self.records, self._own_records)
        self.allgather_on_host(self._heads, self._head_counts)
        return self._heads[self._flags_at], self._heads[self._records_at]

    def launch_sums(self, bounds: tuple[int, ...]) -> None:
        if bounds not in self._to_send:
            self._to_send[bounds] = self._sums_to_send(bounds)
        fill(self._to_send[bounds])
        self.transport.alltoall(self._send, self._routes.sums_sent, self._receive, self._routes.sums_received)

    def sums(self, span: slice) -> tuple[dict[Span, Array], slice]:
        return self._sums, slice(span.start - self.owned.start, span.stop - self.owned.start)

    def all_gather(self) -> None:
        if self._groups.apart:  # a collective that the MPI library tunes for its network
            self.transport.allgather_slices(self.params, self._lengths)
            return
        self.transport.alltoall(self._mine, self._routes.params_sent, self._others, self._routes.params_received)
        self.barrier()

    def load_params(self, params: Array | None) -> None:
        self.barrier()  # no rank still reads
        if params is not None:
            self.params[:] = self.plan.device.put(params)
        whole = self.params if self.group.is_root else np.empty_like(self.params)
        self.transport.broadcast(whole)
        self.barrier()


def fill(sums: Iterable[tuple[TreeSum, Array]]) -> None:
    """Computes sums, each into its slice of a message."""
    with np.errstate(all="ignore"):  # non-finite values are reported once, with their microbatch
        for total, place in sums:
            summed = total.compute()
            if total.rows == 1:  # it isn't in the message yet
                place[:] = summed
