"""Optimizer state that each rank has of its own elements: gathered on rank 0 for a checkpoint, and taken from one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distsgd.core.device import Array
from distsgd.parallel.communicator import Communicator
from distsgd.parallel.transport import Parts


def gather_owned(
    communicator: Communicator, elements: int, spans: Sequence[Sequence[slice]], own: Sequence[Array]
) -> list[Array] | None:
    """The whole of each slot on rank 0, None elsewhere. Collective.

    Parameters
    ----------
    communicator
        The ranks.
    elements
        Of a slot.
    spans
        Those that each rank owns.
    own
        This rank's elements of each slot, in host memory.
    """
    root, found = communicator.is_root, []
    counts = [sum(span.stop - span.start for span in of_rank) for of_rank in spans]
    for slot in own:
        width = slot.itemsize
        sent = Parts.consecutive([slot.nbytes] + [0] * (len(spans) - 1))
        received = Parts.consecutive(count * width * root for count in counts)
        whole = by_rank = np.empty(elements * root, slot.dtype)
        communicator.transport.alltoall(slot.view("u1"), sent, by_rank.view("u1"), received)
        if root and len(spans[0]) > 1:
            whole, first = np.empty_like(by_rank), 0
            for span in [span for of_rank in spans for span in of_rank]:
                whole[span] = by_rank[first : first + span.stop - span.start]
                first += span.stop - span.start
        found.append(whole)
    return found if root else None


def take_owned(communicator: Communicator, whole: Array, slot: Array | None, spans: Sequence[slice]) -> Array:
    """This rank's elements, which are these spans, of rank 0's `slot` (None elsewhere). Collective.

    `whole` is memory for all elements.
    """
    if slot is not None:
        whole[:] = slot
    communicator.transport.broadcast(whole)
    return np.concatenate([whole[span] for span in spans])
