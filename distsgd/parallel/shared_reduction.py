"""The gradient reduction of one node: its ranks share parameters, optimizer state and gradient rows.

A step has two barriers: compute gradients into this rank's rows, barrier, sum all rows and update this rank's elements,
barrier. The gradients are neither copied nor sent.
"""

from __future__ import annotations

import numpy as np

from distsgd.core.device import Array
from distsgd.parallel.communicator import Communicator
from distsgd.parallel.reduction import SCALARS, GradientReduction, Plan
from distsgd.parallel.shared_barrier import shared_barrier
from distsgd.parallel.shared_memory import NotShared, shared_array
from distsgd.parallel.tree import Span


class SharedReduction(GradientReduction):
    """One replica for all ranks, which are on one node. Raises NotShared, on all, where memory can't be shared."""

    def __init__(self, communicator: Communicator, plan: Plan) -> None:
        super().__init__(communicator, plan)
        self.speaks_for_replica = False  # there is only one replica
        self.barrier = shared_barrier(communicator, plan.others)
        self.params = self._shared((self.partition.elements,), plan.dtype)
        self._slots = self._shared((plan.slots, self.partition.elements), plan.dtype)
        self._all_flags = self._shared((self.partition.ranks, 1 + SCALARS), np.dtype(np.float64))
        self.flags = self._all_flags[communicator.rank]
        self.take(plan)

    def take(self, plan: Plan) -> None:
        super().take(plan)
        order = [node for of_rank in self.communicator.allgather_object(self.nodes()) for node in of_rank]
        rows = self._shared((len(order), self.partition.elements), plan.dtype)
        self._all_records = self._shared((self.partition.microbatches, plan.record), np.dtype(np.float64))
        self._all_rows = dict(zip(order, rows, strict=True))
        self.rows = {node: self._all_rows[node] for node in self.nodes()}
        self.records = self._all_records[self.first_microbatch : self.last_microbatch]

    def _shared(self, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        array, is_shared = shared_array(self.communicator, shape, dtype)
        if not is_shared and array.size:
            raise NotShared(self.communicator.hosts[0])
        return array

    def reduce_scatter(self, bounds: tuple[int, ...]) -> tuple[Array, Array]:
        self.barrier()
        # Copies: another rank may begin the next step while this one still reads.
        return self._all_flags.copy(), self._all_records.copy()

    def sums(self, span: slice) -> tuple[dict[Span, Array], slice]:
        return self._all_rows, span

    def all_gather(self) -> None:
        self.barrier()

    def slots(self, start: int, stop: int) -> tuple[Array, ...]:
        return tuple(self._slots[:, start:stop])

    def gather_slots(self) -> list[Array] | None:
        self.barrier()
        return [slot.copy() for slot in self._slots] if self.communicator.is_root else None

    def load_params(self, params: Array | None) -> None:
        self.barrier()  # no rank still reads
        if params is not None:
            self.params[:] = params
        self.barrier()

    def load_slots(self, slots: list[Array] | None) -> None:
        if slots is not None:
            for own, new in zip(self._slots, slots, strict=True):
                own[:] = new
        self.barrier()
