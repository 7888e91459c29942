"""The second half of a step: each rank sums, divides, penalizes, clips and updates the elements that it owns.

Everything is elementwise but norms, float64 sums over fixed blocks (`training.norms`), so no bit depends on who owns
what.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from distsgd.core.device import Array
from distsgd.optim.layerwise import LayerwiseOptimizer
from distsgd.optim.optimizers import Scalars
from distsgd.optim.regularization import Segment
from distsgd.parallel.reduction import BLOCK, update_chunks
from distsgd.parallel.tree import Span, TreeSum, part, scratch_levels
from distsgd.training.non_finite import all_finite
from distsgd.training.norms import norms_of
from distsgd.training.steps import StepParts

_CHUNKS_OF_THREADS = 4
"""So many in one go with several threads. Each call into NumPy may end in waiting for the interpreter, which costs more
than the cache gains: two threads with the shorter chunks take longer than one."""

NO_LAYERS: Mapping[int, Scalars] = {}
"""Where all elements have the step's scalars."""


@dataclass(frozen=True)
class ChunkSlice:
    """Elements of a chunk that are treated alike, with views of all that their update touches; `start` is the first,
    and `segment` that of the segment that they are of."""

    params: Array
    total: Array
    slots: tuple[Array, ...]
    penalized: bool
    frozen: bool
    start: int
    segment: int


@dataclass(frozen=True)
class Chunk:
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
    pieces: tuple[ChunkSlice, ...]
    sums: dict[tuple[int, ...], TreeSum] = field(default_factory=dict)


@final
class ShardedUpdate:
    """Updates this rank's elements; its workers share them.

    chunks    by worker
    finite    whether all gradients were finite in every update so far, on this rank's elements; where `guarded`, the
              updated parameters, too
    non_finite_nodes  nodes of the tree whose sums weren't finite when that was first seen
    """

    def __init__(self, parts: StepParts) -> None:
        optimizer, regularization, reduction = parts.optimizer, parts.regularization, parts.reduction
        self.optimizer, self.regularization, self.reduction = optimizer, regularization, reduction
        self.workers = parts.workers.that_may_call(optimizer)
        self.clip_norm, self.guarded = parts.clip_norm, parts.guarded
        self.finite = True
        self.non_finite_nodes: set[Span] = set()
        self._measure_norm = False
        penalizing = bool(regularization.l1 or regularization.l2 or optimizer.weight_decay)
        segments = regularization.segments(parts.layout, penalizing, isinstance(optimizer, LayerwiseOptimizer))
        self._sums, self._layers = norms_of(optimizer, reduction, parts.layout, segments)
        owned = reduction.partition.spans_of(reduction.communicator.rank)
        length = reduction.plan.chunk * (1 if self.workers.count == 1 else _CHUNKS_OF_THREADS)
        longest = max((span.stop - span.start + span.start % BLOCK for span in owned), default=0)
        small = self.workers.count == 1 and 2 * longest <= 3 * length  # a few more cost less than more calls
        self._length = max(longest, 1) if small else length
        spans = [chunk for span in owned for chunk in update_chunks(span, self._length)]
        self.chunks = [
            self._prepare(spans[slice(*part(len(spans), self.workers.count, worker))], segments)
            for worker in range(self.workers.count)
        ]

    def _prepare(self, spans: Sequence[slice], segments: Sequence[Segment]) -> list[Chunk]:
        """One worker's chunks, which share its scratch memory."""
        device, dtype = self.reduction.plan.device, self.reduction.plan.dtype
        xp, levels = device.xp, scratch_levels(self.reduction.partition.microbatches, device.one_pass)
        scratch = xp.empty((3 + levels, self._length), dtype)
        prepared = []
        # A recorded step sums all up before it updates any; so does one that needs norms.
        once = self.clip_norm is None and self._layers is None and (len(spans) < 2 or not device.one_pass)
        for span in spans:
            count = span.stop - span.start
            total = scratch[2, :count] if once else xp.empty(count, dtype)
            pieces = []
            for segment in segments:
                start, stop = max(segment.start, span.start), min(segment.stop, span.stop)
                if start < stop:
                    inside = total[start - span.start : stop - span.start]
                    slots = self.reduction.slots(start, stop)
                    kind = (segment.penalized, segment.frozen, start, segment.start)
                    pieces.append(ChunkSlice(self.reduction.updated(start, stop), inside, slots, *kind))
            prepared.append(Chunk(span, total, list(scratch[3:]), scratch[:2], tuple(pieces)))
        return prepared

    def run(self, bounds: tuple[int, ...], count: int, scalars: tuple[float, ...], want_norm: bool) -> float | None:
        """One update with the gradients gathered; the gradient's norm where it is asked for or clipped by.

        bounds   the microbatches' bounds
        count    examples of the minibatch, times the gradients' loss scale
        scalars  what the optimizer needs to know of this step
        """
        self._measure_norm = want_norm or self.clip_norm is not None
        apply = self.apply if self._layers is None else self._direct

        def update(chunk: Chunk) -> None:
            self.sum_up(chunk, bounds, count)
            self._look(chunk, bounds)
            if self.clip_norm is None:
                apply(chunk, scalars)

        def clip(chunk: Chunk) -> None:
            np.multiply(chunk.total, factor, out=chunk.total)
            apply(chunk, scalars)

        self._on_all(update)
        if self._measure_norm or self._layers is not None:
            self._sums.gather()
        norm = self._sums.norm() if self._measure_norm else None
        if self.clip_norm is not None and norm is not None:
            factor = min(1.0, self.clip_norm / (norm + 1e-6))  # as PyTorch's clip_grad_norm_
            self._on_all(clip)
            if self._layers is not None:
                self._sums.gather()
        if self._layers is not None:
            of_layers = self._layers.scalars(scalars)
            self._on_all(lambda chunk: self.apply(chunk, scalars, of_layers))
        return norm

    def _on_all(self, function: Callable[[Chunk], None]) -> None:
        def run(worker: int) -> None:
            with np.errstate(all="ignore"):
                for chunk in self.chunks[worker]:
                    function(chunk)

        self.workers.run(run)

    def sum_up(self, chunk: Chunk, bounds: tuple[int, ...], count: int) -> None:
        """Puts the gradient of the mean loss and the penalties into the chunk's total."""
        microbatches = chunk.sums.get(bounds)
        if microbatches is None:
            microbatches = chunk.sums[bounds] = self.reduction.total(bounds, chunk.span, chunk.tree)
        microbatches.divided(float(count), chunk.total)
        for piece in chunk.pieces:
            if piece.frozen:
                piece.total[:] = 0.0
            elif piece.penalized:
                self.regularization.add_gradient(piece.params, piece.total)

    def _look(self, chunk: Chunk, bounds: tuple[int, ...]) -> None:
        """Looks for what isn't finite in the chunk's total, and measures it where the norm is wanted."""
        if not all_finite(chunk.total):
            self.finite = False
            self.non_finite_nodes |= self.reduction.not_finite(bounds, chunk.span)
        if self._measure_norm:
            self._sums.measure(chunk.total, chunk.span.start)

    def _direct(self, chunk: Chunk, scalars: Scalars) -> None:
        """The first pass of an optimizer by layers, and the norms that the second one needs."""
        if self._layers is not None and self.finite:
            self._each(chunk, self._layers.optimizer.direct, scalars, NO_LAYERS)
            for piece in chunk.pieces:
                self._layers.measure(piece.segment, piece.start, piece.params, piece.total)

    def apply(self, chunk: Chunk, scalars: tuple[Any, ...], of_layers: Mapping[int, Scalars] = NO_LAYERS) -> None:
        """Updates the chunk's parameters and state, as long as all gradients were finite."""
        if not self.finite:
            return  # the next reduction reports it to all ranks, and nothing of it is saved
        update = self.optimizer.update if self._layers is None else self._layers.optimizer.follow
        self._each(chunk, update, scalars, of_layers)
        if self.guarded and not all_finite(self.reduction.updated(chunk.span.start, chunk.span.stop)):
            self.finite = False
        self.reduction.has_updated(chunk.span)

    def _each(self, chunk: Chunk, call: Callable[..., None], scalars: Scalars, layers: Mapping[int, Scalars]) -> None:
        """Calls a method of the optimizer that takes the arguments of `update` on what of the chunk isn't frozen."""
        for piece in chunk.pieces:
            if not piece.frozen:
                decay = self.optimizer.weight_decay if piece.penalized else 0.0
                call(piece.params, piece.total, piece.slots, layers.get(piece.segment, scalars), decay, chunk.spare)
