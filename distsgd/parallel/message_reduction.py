"""The gradient reduction of several replicas: groups of ranks send each other sums, then updated parameters.

Ranks that share a replica are a *group*: the ranks of a node, or a single rank. A group adds the rows of its
microbatches as far as they form subtrees, and sends only these sums, so that a network carries each gradient once for
each node and not once for each rank. A rank's partner in another group has the same position there, modulo that group's
size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distsgd.core.device import Array, Shape, to_host
from distsgd.parallel.communicator import Communicator, Parts
from distsgd.parallel.reduction import SCALARS, OwnState, Plan, update_chunks
from distsgd.parallel.shared_memory import NotShared, shared_array
from distsgd.parallel.tree import Span, TreeSum, maximal_subtrees, scratch_levels, tree_sum

_BYTES = np.dtype(np.uint8)


@dataclass(frozen=True)
class Groups:
    """Which ranks share a replica: group g is the ranks firsts[g] to firsts[g + 1] - 1."""

    firsts: tuple[int, ...]
    ranks: int

    @property
    def apart(self) -> bool:
        """Whether every group is a single rank."""
        return len(self.firsts) == self.ranks

    def members(self, group: int) -> range:
        """The ranks of a group."""
        return range(*(*self.firsts, self.ranks)[group : group + 2])

    def group_of(self, rank: int) -> int:
        """The group of a rank."""
        return int(np.searchsorted(self.firsts, rank, side="right")) - 1

    def partner(self, rank: int, group: int) -> int:
        """The member of a group that sends the group's sums to `rank`, and receives from it the parameters it owns."""
        members, place = self.members(group), rank - self.members(self.group_of(rank)).start
        return members[place % len(members)]

    @classmethod
    def of(cls, communicator: Communicator, group: Communicator) -> Groups:
        """Build from each rank's own group. Raises NotShared where a group isn't consecutive. Collective."""
        firsts = communicator.allgather_object(group.broadcast_object(communicator.rank))
        if firsts != sorted(firsts):  # containers of one host name, say
            raise NotShared(communicator.hosts[0])
        return cls(tuple(sorted(set(firsts))), communicator.size)


class MessageReduction(OwnState):
    """One replica for each group.

    A step is an all-gather of flags and records, an all-to-all of sums, the update, and an all-to-all of parameters.
    Raises NotShared, on all ranks, where a group can't share memory.
    """

    def __init__(self, communicator: Communicator, plan: Plan, group: Communicator) -> None:
        super().__init__(communicator, plan)
        self.is_asynchronous = communicator.is_asynchronous
        self.group, self.groups = group, Groups.of(communicator, group)
        self.speaks_for_replica = group.is_root
        elements = self.partition.elements
        nodes = [node for of_rank in group.allgather_object(self.nodes()) for node in of_rank]
        self.params, has_params = self._array(group, (elements,))
        rows, has_rows = self._rows_for(group, len(nodes))
        shared = communicator.allgather_object((has_params and has_rows) or elements == 0)
        if not all(shared):
            raise NotShared(communicator.hosts[shared.index(False)])
        self._rows = dict(zip(nodes, rows, strict=True))
        self.rows = {node: self._rows[node] for node in self.nodes()}
        self._prepare_heads()
        self._prepare_sums()
        self._prepare_all_gather()

    def _array(self, group: Communicator, shape: Shape) -> tuple[Array, bool]:
        """(memory for the group's replica, whether the group shares it); on another device each rank has its own."""
        if self.plan.device.is_cpu:
            return shared_array(group, shape, self.plan.dtype)
        return self.plan.device.xp.zeros(shape, self.plan.dtype), True

    def _rows_for(self, group: Communicator, count: int) -> tuple[Sequence[Array], bool]:
        """(a row of the parameters' length for each node, whether the group shares them).

        On another device each row is an allocation of its own: libraries that write gradients there choose kernels by
        alignment, which must not depend on the number of ranks.
        """
        elements = self.partition.elements
        if self.plan.device.is_cpu:
            rows, shared = self._array(group, (count, elements))
            return list(rows), shared
        return [self.plan.device.xp.zeros(elements, self.plan.dtype) for _ in range(count)], True

    def _prepare_heads(self) -> None:
        """Allocate the heads, in rank order: the flags of a rank, then the records of its microbatches."""
        partition, width = self.partition, self.plan.record
        spans = [partition.microbatches_of(rank) for rank in range(partition.ranks)]
        self._head_counts = [1 + SCALARS + (last - first) * width for first, last in spans]
        starts = np.cumsum([0, *self._head_counts])
        self._heads = np.zeros(starts[-1])
        self._flags_at = starts[:-1, np.newaxis] + np.arange(1 + SCALARS)
        records = [np.arange(starts[rank] + 1 + SCALARS, starts[rank + 1]) for rank in range(partition.ranks)]
        self._records_at = np.concatenate(records).reshape(partition.microbatches, width)
        own = self._heads[starts[self.communicator.rank] : starts[self.communicator.rank + 1]]
        self.flags, self._own_records = own[: 1 + SCALARS], own[1 + SCALARS :].reshape(-1, width)
        device = self.plan.device
        self.records = self._own_records if device.is_cpu else device.xp.zeros(self._own_records.shape)

    def _prepare_sums(self) -> None:
        """Plan the all-to-all of sums, in bytes: each sum goes to the rank that owns its elements."""
        partition, groups, me = self.partition, self.groups, self.communicator.rank
        own_group, width = groups.group_of(me), self.plan.dtype.itemsize
        count = self.owned.stop - self.owned.start
        self._nodes = maximal_subtrees(*self._microbatches_of(own_group), partition.microbatches)
        self._owners = self._partners(own_group)
        nodes_of = {
            groups.partner(me, group): maximal_subtrees(*self._microbatches_of(group), partition.microbatches)
            for group in range(len(groups.firsts))
            if group != own_group
        }
        served = set(self._owners)
        self._sent = Parts.consecutive(
            len(self._nodes) * length * width * (rank in served) for rank, length in enumerate(partition.counts())
        )
        self._received = Parts.consecutive(
            len(nodes_of.get(rank, ())) * count * width for rank in range(partition.ranks)
        )
        xp = self.plan.device.xp
        self._send, self._receive = (xp.empty(parts.end, _BYTES) for parts in (self._sent, self._received))
        self._sums = {node: row[self.owned] for node, row in self._rows.items()}
        for rank, nodes in nodes_of.items():
            arrived = self._receive[self._received[rank]].view(self.plan.dtype).reshape(len(nodes), count)
            self._sums.update(zip(nodes, arrived, strict=True))
        levels = scratch_levels(partition.microbatches, self.plan.device.is_cpu)
        self._scratch = xp.empty((levels - 1, self.plan.chunk), self.plan.dtype)
        self._to_send: dict[tuple[int, ...], list[tuple[TreeSum, Array]]] = {}

    def _prepare_all_gather(self) -> None:
        """Plan the all-to-all of parameters, in bytes: owners send to their partners."""
        partition, groups, me = self.partition, self.groups, self.communicator.rank
        own_group, width = groups.group_of(me), self.plan.dtype.itemsize
        self._lengths = lengths = partition.counts()
        # MPI needs two disjoint buffers: the owned elements, and the elements from the first received one onwards.
        taken = {rank: partition.elements_of(rank) for rank in self._partners(own_group) if lengths[rank]}
        first = min((span.start for span in taken.values()), default=partition.elements)
        nothing, mine = slice(0, 0), slice(0, lengths[me] * width)
        given = {groups.partner(me, group) for group in range(len(groups.firsts)) if group != own_group}
        self._all_gathered = Parts.of(mine if rank in given else nothing for rank in range(partition.ranks))
        self._taken = Parts.of(
            slice((taken[rank].start - first) * width, (taken[rank].stop - first) * width) if rank in taken else nothing
            for rank in range(partition.ranks)
        )
        params = self.params.view(_BYTES)
        self._mine = params[self.owned.start * width : self.owned.stop * width]
        self._others = params[first * width :]

    def _partners(self, own_group: int) -> list[int]:
        """The ranks of other groups that send to and receive from this one."""
        groups, me = self.groups, self.communicator.rank
        return [
            rank
            for rank in range(self.partition.ranks)
            if groups.group_of(rank) != own_group and groups.partner(rank, own_group) == me
        ]

    def _microbatches_of(self, group: int) -> Span:
        members = self.groups.members(group)
        return self.partition.microbatches_of(members[0])[0], self.partition.microbatches_of(members[-1])[1]

    def _sums_to_send(self, bounds: tuple[int, ...]) -> list[tuple[TreeSum, Array]]:
        """(the sum of the group's microbatches on a chunk, its slice of the message) for all that this rank sends."""
        sums = []
        for owner in self._owners:
            span = self.partition.elements_of(owner)
            message = self._send[self._sent[owner]].view(self.plan.dtype).reshape(len(self._nodes), -1)
            for node, row in zip(self._nodes, message, strict=True):
                for chunk in update_chunks(span, self.plan.chunk):
                    place = row[chunk.start - span.start : chunk.stop - span.start]
                    total = tree_sum(self._rows, node, bounds, chunk, [place, *self._scratch])
                    if total is not None:  # else all its microbatches are empty: a gap that no rank reads
                        sums.append((total, place))
        return sums

    def reduce_scatter(self, bounds: tuple[int, ...]) -> tuple[Array, Array]:
        self.communicator.synchronize()
        if self.records is not self._own_records:
            to_host(self.records, self._own_records)
        # No rank has all heads before every rank has come here: from now on the neighbours' rows are complete.
        self.communicator.allgather_slices(self._heads, self._head_counts)
        self.launch_sums(bounds)
        return self._heads[self._flags_at], self._heads[self._records_at]

    def launch_sums(self, bounds: tuple[int, ...]) -> None:
        if bounds not in self._to_send:
            self._to_send[bounds] = self._sums_to_send(bounds)
        with np.errstate(all="ignore"):  # non-finite values are reported once, with their microbatch
            for total, place in self._to_send[bounds]:
                summed = total.compute()
                if total.rows == 1:  # it isn't in the message yet
                    place[:] = summed
        self.communicator.alltoall(self._send, self._sent, self._receive, self._received)

    def sums(self) -> tuple[dict[Span, Array], int]:
        return self._sums, self.owned.start

    def all_gather(self) -> None:
        if self.groups.apart:  # a collective that the MPI library tunes for its network
            self.communicator.allgather_slices(self.params, self._lengths)
            return
        self.communicator.alltoall(self._mine, self._all_gathered, self._others, self._taken)
        self.group.barrier()

    def load_params(self, params: Array | None) -> None:
        self.group.barrier()  # no rank still reads
        if params is not None:
            self.params[:] = self.plan.device.put(params)
        whole = self.params if self.group.is_root else np.empty_like(self.params)
        self.communicator.broadcast(whole)
        self.group.barrier()
