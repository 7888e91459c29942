"""What each rank sends to and receives from whom where several replicas are reduced: computed, not communicated.

Ranks that share a replica are a *group*: the ranks of a host, or a single rank. A group adds the rows of its
microbatches as far as they form subtrees, and sends only these sums, so that a network carries each gradient once for
each host and not once for each rank. A rank's partner in another group has the same position there, modulo that group's
size.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from distsgd.core.errors import ConfigurationError
from distsgd.parallel.communicator import Communicator
from distsgd.parallel.reduction import Partition
from distsgd.parallel.shared_memory import NotShared
from distsgd.parallel.transport import Parts
from distsgd.parallel.tree import Span


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
        return bisect_right(self.firsts, rank) - 1

    def partner(self, rank: int, group: int) -> int:
        """The member of a group that sends the group's sums to `rank`, and receives from it the parameters it owns."""
        members, place = self.members(group), rank - self.members(self.group_of(rank)).start
        return members[place % len(members)]

    def subtrees(self, group: int, partition: Partition) -> tuple[Span, ...]:
        """The nodes of the tree whose sums a group sends: together, all microbatches of its ranks."""
        members = self.members(group)
        first, last = partition.microbatches_of(members[0])[0], partition.microbatches_of(members[-1])[1]
        return tuple(partition.subtrees(first, last))

    def hold_whole(self, partition: Partition) -> bool:
        """Whether the ranks of each group compute whole groups of microbatches."""
        whole = set(partition.subtrees(0, partition.microbatches))
        return all(whole.issuperset(self.subtrees(group, partition)) for group in range(len(self.firsts)))

    def check_whole(self, partition: Partition, hosts: Sequence[str]) -> None:
        """Raises ConfigurationError where a group of microbatches is computed in several places: parts of its sum would
        have to travel, and only the whole is rounded."""
        if not partition.wire_groups or self.hold_whole(partition):
            return
        powers = (1 << power for power in range(partition.microbatches.bit_length()))
        other = next((one for one in powers if self.hold_whole(replace(partition, wire_groups=one))), None)
        shares = [f"{len(self.members(group))} on {hosts[first]}" for group, first in enumerate(self.firsts)]
        raise ConfigurationError(
            f"wire_groups {partition.wire_groups}: expected ranks that share memory to compute whole groups, each of "
            f"{partition.microbatches}/{partition.wire_groups} microbatches, got ranks apart: {', '.join(shares[:8])}"
            f"{', …' if len(shares) > 8 else ''}; start as many ranks on each of {partition.wire_groups} hosts or fewer"
            + (f", or set --wire-groups {other}, which gives other bits" if other is not None else "")
        )

    @classmethod
    def of(cls, communicator: Communicator, group: Communicator) -> Groups:
        """Build from each rank's own group. Raises NotShared where a group isn't consecutive. Collective."""
        firsts = communicator.allgather_object(group.broadcast_object(communicator.rank))
        if firsts != sorted(firsts):  # containers of one host name, say
            raise NotShared(communicator.hosts[0])
        return cls(tuple(sorted(set(firsts))), communicator.size)


@dataclass(frozen=True)
class Routes:
    """One rank's messages, in bytes.

    owners      the ranks of other groups to which this rank sends its group's sums, each the elements that it owns
    nodes       which sums these are, in the order in which a message holds them
    arriving    the nodes whose sums another rank sends here, by rank; each the elements that this rank owns
    sums_sent, sums_received       the slices of the messages with sums, in two buffers of their own
    params_sent                    who receives the elements that this rank owns: a slice of these elements
    params_received, params_first  the slices of the updated parameters that arrive, counted from element `params_first`
    """

    owners: tuple[int, ...]
    nodes: tuple[Span, ...]
    arriving: Mapping[int, tuple[Span, ...]]
    sums_sent: Parts
    sums_received: Parts
    params_sent: Parts
    params_received: Parts
    params_first: int


def routes(partition: Partition, groups: Groups, rank: int, width: int = 1) -> Routes:
    """What a rank sends to and receives from the ranks of other groups; `width` is the bytes of an element."""
    own, counts, ranks = groups.group_of(rank), partition.counts(), range(partition.ranks)
    nodes = groups.subtrees(own, partition)
    arriving = {
        groups.partner(rank, group): groups.subtrees(group, partition)
        for group in range(len(groups.firsts))
        if group != own
    }
    owners = tuple(other for other in ranks if groups.group_of(other) != own and groups.partner(other, own) == rank)
    served = set(owners)
    # MPI needs two disjoint buffers: the owned elements, and the elements from the first received one onwards.
    taken = {owner: partition.elements_of(owner) for owner in owners if counts[owner]}
    first = min((span.start for span in taken.values()), default=partition.elements)
    return Routes(
        owners,
        nodes,
        arriving,
        sums_sent=Parts.consecutive(len(nodes) * counts[other] * width * (other in served) for other in ranks),
        sums_received=Parts.consecutive(len(arriving.get(other, ())) * counts[rank] * width for other in ranks),
        params_sent=Parts(tuple(counts[rank] * width * (other in arriving) for other in ranks), (0,) * len(ranks)),
        params_received=Parts(
            tuple(counts[other] * width * (other in taken) for other in ranks),
            tuple((taken[other].start - first) * width if other in taken else 0 for other in ranks),
        ),
        params_first=first,
    )
