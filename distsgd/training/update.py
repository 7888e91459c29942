"""The second half of a step: each rank sums, divides, penalizes, clips and updates the elements that it owns.

Everything is elementwise but the norm, a float64 sum over fixed blocks, so no bit depends on who owns what.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distsgd.core.device import Array, to_host
from distsgd.core.kernels import kernels_for
from distsgd.core.layout import Layout
from distsgd.optim.optimizers import Optimizer
from distsgd.optim.regularization import Regularization, Segment
from distsgd.parallel.reduction import BLOCK, GradientReduction, update_chunks
from distsgd.parallel.thread_pool import Workers
from distsgd.parallel.tree import Span, TreeSum, part, scratch_levels
from distsgd.training.non_finite import all_finite
from distsgd.training.step_inputs import StepInputs

_CHUNKS_OF_THREADS = 4
"""So many in one go with several threads. Each call into NumPy may end in waiting for the interpreter, which costs more
than the cache gains: two threads with the shorter chunks take longer than one."""


@dataclass(frozen=True)
class _ChunkSlice:
    """Elements of a chunk that are treated alike, with views of all that their update touches."""

    params: Array
    total: Array
    slots: tuple[Array, ...]
    penalized: bool
    frozen: bool


@dataclass(frozen=True)
class _Chunk:
    """Elements of this rank that are updated together. Views are cut once, not in every step.

    total   the gradient of the mean loss and the penalties; in the worker's scratch memory, unless it has to be kept
    tree    scratch memory of the tree's sum
    spare   scratch memory of the optimizer, (2, n)
    sums    how to sum the microbatches, by the microbatches' bounds
    """

    span: slice
    total: Array
    tree: Sequence[Array]
    spare: Array
    pieces: tuple[_ChunkSlice, ...]
    sums: dict[tuple[int, ...], TreeSum] = field(default_factory=dict)


class SliceUpdate:
    """Updates this rank's elements; its workers share them.

    finite    whether all gradients were finite in every update so far, on this rank's elements; where `guarded`, the
              updated parameters, too
    non_finite_nodes  nodes of the tree whose sums weren't finite when that was first seen
    """

    def __init__(
        self,
        optimizer: Optimizer,
        regularization: Regularization,
        reduction: GradientReduction,
        workers: Workers,
        layout: Layout,
        clip_norm: float | None,
        guarded: bool = False,
    ) -> None:
        workers = workers.that_may_call(optimizer)
        self.optimizer, self.regularization, self.reduction, self.workers = (
            optimizer,
            regularization,
            reduction,
            workers,
        )
        self.clip_norm, self.guarded = clip_norm, guarded
        self.finite = True
        self.non_finite_nodes: set[Span] = set()
        self._norms = np.zeros(reduction.partition.blocks)
        self._measure_norm = False
        penalizing = bool(regularization.l1 or regularization.l2 or optimizer.weight_decay)
        segments = regularization.segments(layout, penalizing)
        self._length = reduction.plan.chunk * (1 if workers.count == 1 else _CHUNKS_OF_THREADS)
        spans = list(update_chunks(reduction.owned, self._length))
        self._chunks = [
            self._prepare(spans[slice(*part(len(spans), workers.count, worker))], segments)
            for worker in range(workers.count)
        ]

    def _prepare(self, spans: Sequence[slice], segments: Sequence[Segment]) -> list[_Chunk]:
        """One worker's chunks, which share its scratch memory."""
        params, xp = self.reduction.params, self.reduction.plan.device.xp
        levels = scratch_levels(self.reduction.partition.microbatches, self.reduction.plan.device.host_memory)
        scratch = xp.empty((3 + levels, self._length), params.dtype)
        prepared = []
        for span in spans:
            count = span.stop - span.start
            total = scratch[2, :count] if self.clip_norm is None else xp.empty(count, params.dtype)
            pieces = []
            for segment in segments:
                start, stop = max(segment.start, span.start), min(segment.stop, span.stop)
                if start < stop:
                    inside = total[start - span.start : stop - span.start]
                    slots = self.reduction.slots(start, stop)
                    pieces.append(_ChunkSlice(params[start:stop], inside, slots, segment.penalized, segment.frozen))
            prepared.append(_Chunk(span, total, list(scratch[3:]), scratch[:2], tuple(pieces)))
        return prepared

    def launch(self, bounds: tuple[int, ...], count: int, inputs: StepInputs) -> None:
        """One update that reads no number on the host: `non_finite` marks what isn't finite, and ends all updates."""
        self._measure_norm = False
        communicator, kernels = self.reduction.communicator, kernels_for(self.reduction.params)
        own = inputs.non_finite[communicator.rank : communicator.rank + 1]
        for chunk in self._chunks[0]:
            self._total(chunk, bounds, count, looks=False)
            kernels.find_non_finite(chunk.total, own)
        kernels.find_non_finite_losses(self.reduction.records, own, self.reduction.params)
        self.reduction.transport.allgather_slices(inputs.non_finite, [1] * communicator.size)
        kernels.hold_after_non_finite(inputs.non_finite, inputs.scalars, self.reduction.params)
        for chunk in self._chunks[0]:
            self._apply(chunk, tuple(inputs.scalars))

    def run(self, bounds: tuple[int, ...], count: int, scalars: tuple[float, ...], want_norm: bool) -> float | None:
        """One update with the gradients gathered; the gradient's norm where it is asked for or clipped by.

        bounds   the microbatches' bounds
        count    examples of the minibatch, times the gradients' loss scale
        scalars  what the optimizer needs to know of this step
        """
        self._measure_norm = want_norm or self.clip_norm is not None
        if self.clip_norm is None:

            def update(chunk: _Chunk) -> None:
                self._total(chunk, bounds, count)
                self._apply(chunk, scalars)

            self._on_all(update)
            return self._norm() if want_norm else None

        self._on_all(lambda chunk: self._total(chunk, bounds, count))
        norm = self._norm()
        factor = min(1.0, self.clip_norm / (norm + 1e-6))  # as PyTorch's clip_grad_norm_

        def clip(chunk: _Chunk) -> None:
            np.multiply(chunk.total, factor, out=chunk.total)
            self._apply(chunk, scalars)

        self._on_all(clip)
        return norm

    def _on_all(self, function: Callable[[_Chunk], None]) -> None:
        def run(worker: int) -> None:
            with np.errstate(all="ignore"):
                for chunk in self._chunks[worker]:
                    function(chunk)

        self.workers.run(run)

    def _total(self, chunk: _Chunk, bounds: tuple[int, ...], count: int, looks: bool = True) -> None:
        """Puts the gradient of the mean loss and the penalties into the chunk's total."""
        microbatches = chunk.sums.get(bounds)
        if microbatches is None:
            microbatches = chunk.sums[bounds] = self.reduction.total(bounds, chunk.span, chunk.tree)
        total = microbatches.divided(float(count), chunk.total)
        for piece in chunk.pieces:
            if piece.frozen:
                piece.total[:] = 0.0
            elif piece.penalized:
                self.regularization.add_gradient(piece.params, piece.total)
        if looks and not all_finite(total):
            self.finite = False
            self.non_finite_nodes |= self.reduction.not_finite(bounds, chunk.span)
        if self._measure_norm:
            squares, first = kernels_for(total).block_squares(total, BLOCK), chunk.span.start // BLOCK
            self._norms[first : first + len(squares)] = to_host(squares)

    def _apply(self, chunk: _Chunk, scalars: tuple[Any, ...]) -> None:
        if not self.finite:
            return  # the next reduction reports it to all ranks, and nothing of it is saved
        update, weight_decay = self.optimizer.update, self.optimizer.weight_decay
        for piece in chunk.pieces:
            if not piece.frozen:
                decay = weight_decay if piece.penalized else 0.0
                update(piece.params, piece.total, piece.slots, scalars, decay, chunk.spare)
        if self.guarded and not all_finite(self.reduction.params[chunk.span]):
            self.finite = False

    def _norm(self) -> float:
        """The global norm of the last gradient, from the blocks' float64 sums in block order. Collective."""
        partition = self.reduction.partition
        counts = [len(partition.blocks_of(rank)) for rank in range(partition.ranks)]
        self.reduction.communicator.transport.allgather_slices(self._norms, counts)
        return math.sqrt(math.fsum(self._norms))
