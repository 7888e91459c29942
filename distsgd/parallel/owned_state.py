"""Optimizer state that each rank has of its own elements: gathered on rank 0 for a checkpoint, and taken from one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distsgd.core.device import Array
from distsgd.parallel.communicator import Communicator
from distsgd.parallel.reduction import Partition
from distsgd.parallel.transport import Parts


def gather_owned(communicator: Communicator, partition: Partition, own: Sequence[Array]) -> list[Array] | None:
    """The whole of each slot on rank 0, None elsewhere. Collective.

    Parameters
    ----------
    communicator
        The ranks.
    partition
        Which elements each rank owns.
    own
        This rank's elements of each slot, in host memory.
    """
    root, ranks = communicator.is_root, partition.ranks
    counts, places = partition.counts(), [partition.spans_of(rank) for rank in range(ranks)]
    found = []
    for slot in own:
        width = slot.itemsize
        sent = Parts.consecutive([slot.nbytes] + [0] * (ranks - 1))
        received = Parts.consecutive(count * width * root for count in counts)
        by_rank = np.empty(partition.elements * root, slot.dtype)
        communicator.transport.alltoall(slot.view("u1"), sent, by_rank.view("u1"), received)
        whole, first = by_rank, 0
        if root and len(places[0]) > 1:
            whole = np.empty_like(by_rank)
            for span in [span for of_rank in places for span in of_rank]:
                whole[span] = by_rank[first : first + span.stop - span.start]
                first += span.stop - span.start
        found.append(whole)
    return found if root else None


def take_owned(
    communicator: Communicator, partition: Partition, slots: list[Array] | None, index: int, dtype: np.dtype
) -> Array:
    """This rank's elements of one slot, from rank 0's `slots` (None elsewhere). Collective."""
    whole = np.empty(partition.elements, dtype)
    if slots is not None:
        whole[:] = slots[index]
    communicator.transport.broadcast(whole)
    return np.concatenate([whole[span] for span in partition.spans_of(communicator.rank)])
