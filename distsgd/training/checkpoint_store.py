"""Where a run's checkpoints are kept, and how the ranks save and go back together."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol, final

import numpy as np

from distsgd.core.checkpoint import Checkpoint, understanding
from distsgd.core.device import Array, host_copy
from distsgd.core.errors import CheckpointError
from distsgd.core.layout import Layout
from distsgd.parallel import Communicator
from distsgd.training.callbacks import Hooks
from distsgd.training.early_stopping import StoppingRule
from distsgd.training.non_finite import PARAMETERS, NonFinite
from distsgd.training.run_state import RunState
from distsgd.training.step import TrainingStep

PATIENCE = 30.0
"""Seconds for which a checkpoint waits until the one before it is written."""


class CheckpointStore(Protocol):
    """Keeps the checkpoints of a run. Rank 0 alone calls it, and it must not communicate.

    The checkpoints that it is given are copies, which do not change later: it may write them while training continues.
    """

    def busy(self, patience: float) -> bool:
        """Whether a checkpoint is still being written, for which this waits up to `patience` seconds."""

    def save(self, checkpoint: Checkpoint, best: Checkpoint, step: int, final: bool) -> None:
        """Saves the state that the run resumes from, and its best model so far; a final one before this returns."""

    def go_back(self, step: int) -> Checkpoint | None:
        """The newest checkpoint from no later than `step`, from which the run continues; None where there is none."""


@final
class Checkpoints:
    """Saves the state of a run in rank 0's store, and brings it back on all ranks.

    store   None for a run that keeps no checkpoints
    began   when the last checkpoint began, or the attempt
    """

    def __init__(
        self,
        communicator: Communicator,
        step: TrainingStep,
        rule: StoppingRule | None,
        store: CheckpointStore | None,
        hooks: Hooks,
    ) -> None:
        self.communicator, self.step, self.rule, self.store = communicator, step, rule, store
        self._hooks = hooks
        self.began = time.monotonic()

    def is_idle(self, patience: float = 0.0) -> bool:
        """Whether rank 0's store can take a checkpoint, for which this waits up to `patience` seconds."""
        store = self.store
        if store is None:
            return True
        return self._hooks.attempt(lambda: not store.busy(patience), False, "saving a checkpoint")

    def prepare(self, final: bool) -> tuple[bool, bool]:
        """(whether the last update was finite on all ranks, whether the store can take a checkpoint). Collective."""
        self.began = time.monotonic()
        ready = self.communicator.allgather_object((self.step.finite, final or self.is_idle(PATIENCE)))
        return all(finite for finite, _ in ready), ready[0][1]

    def save(self, progress: RunState, final: bool) -> None:
        """Saves the run as it is. Collective.

        The ranks have made their update, and can't make the next one before rank 0 takes part in it: what rank 0
        copies here holds still, while the others are at their next gradients already. The final one is written when
        this returns, others in the background.
        """
        slots = self.step.reduction.gather_slots()

        def save() -> None:
            assert slots is not None, "rank 0 has gathered them"
            whole, best = take(self.step, progress, self.rule, slots)
            if self.store is not None:
                self.store.save(whole, best, progress.step, final)

        if final:
            self.communicator.on_root(save)
        else:
            self._hooks.attempt(save, None, "saving a checkpoint")

    def go_back(self, found: NonFinite, step: int) -> RunState:
        """The state of the newest checkpoint from no later than `step`, in place on all ranks. Collective."""
        found_checkpoint: list[Checkpoint] = []

        def find() -> None:
            checkpoint = None if self.store is None else self.store.go_back(step)
            if checkpoint is None:
                raise found.error("there is no checkpoint to go back to")
            found_checkpoint.append(checkpoint)

        self.communicator.on_root(find)
        self.step.reset()
        return self.restore(found_checkpoint[0] if found_checkpoint else None)

    def restore(self, checkpoint: Checkpoint | None) -> RunState:
        """Rank 0's checkpoint (None elsewhere), in place on all ranks. Collective."""
        return restore(self.communicator, self.step, self.rule, checkpoint)


def take(
    step: TrainingStep, progress: RunState, rule: StoppingRule | None, slots: list[Array]
) -> tuple[Checkpoint, Checkpoint]:
    """(the whole run, the best model so far); both are copies. On rank 0."""
    running = running_layout(step)
    params = host_copy(step.reduction.params)
    if not np.isfinite(params).all():
        more = "a smaller learning rate or clip_norm may help; the last checkpoint stays as it was"
        raise NonFinite(progress.step, PARAMETERS).error(more)
    state = step.running.flat.copy()
    arrays = {
        **_named("parameters", step.layout, params),
        **_named("statistics", running, state),
    }
    for name, slot in zip(step.optimizer.slots, slots, strict=True):
        arrays |= _named(f"optimizer/{name}", step.layout, slot)
    if progress.best_params is None or progress.best_running is None:
        best = dict(arrays)
    else:
        arrays |= _named("best/parameters", step.layout, progress.best_params)
        arrays |= _named("best/statistics", running, progress.best_running)
        best = {
            **_named("parameters", step.layout, progress.best_params),
            **_named("statistics", running, progress.best_running),
        }
    model = {name: array for name, array in best.items() if not name.startswith("optimizer/")}
    document = replace(progress, rule=None if rule is None else rule.state()).to_document()
    return Checkpoint(arrays, document), Checkpoint(model, progress.best_document())


def restore(
    communicator: Communicator, step: TrainingStep, rule: StoppingRule | None, checkpoint: Checkpoint | None
) -> RunState:
    """Puts rank 0's checkpoint (None elsewhere) in place on all ranks. Collective."""

    slots: list[Array] | None = None
    whole = RunState()
    params = step.params_buffer()

    def read() -> RunState:
        nonlocal slots, whole
        assert checkpoint is not None
        with understanding("the checkpoint"):
            slots, whole = _read(step, rule, checkpoint, params.flat)
        return replace(whole, best_params=None, best_running=None)

    progress = communicator.on_root(read)
    step.load(params)
    step.reduction.load_slots(slots)
    if len(step.running):
        communicator.transport.broadcast(step.running.flat)
    return whole if communicator.is_root else replace(progress)  # ranks that are threads get one object


def _read(
    step: TrainingStep, rule: StoppingRule | None, checkpoint: Checkpoint, params: Array
) -> tuple[list[Array], RunState]:
    """Fills rank 0's `params` and statistics; returns the optimizer's slots and the progress."""
    fill_model(params, step.layout, checkpoint.group("parameters"), "parameters")
    running = running_layout(step)
    fill_model(step.running.flat, running, checkpoint.group("statistics"), "statistics")
    slots = []
    for name in step.optimizer.slots:
        flat = np.empty_like(params)
        fill_model(flat, step.layout, checkpoint.group(f"optimizer/{name}"), f"optimizer state {name}")
        slots.append(flat)
    progress = RunState.from_document(checkpoint.document)
    best = checkpoint.group("best/parameters")
    if progress.best is not None:
        progress.best_params = np.empty_like(params)
        progress.best_running = np.empty_like(step.running.flat)
        fill_model(progress.best_params, step.layout, best, "best parameters")
        fill_model(progress.best_running, running, checkpoint.group("best/statistics"), "best statistics")
    if rule is not None and progress.rule is not None:
        rule.restore(progress.rule)
    return slots, progress


def running_layout(step: TrainingStep) -> Layout:
    """The layout of the running statistics."""
    return Layout(tuple(step.running), tuple(array.shape for array in step.running.values()))


def fill_model(flat: Array, layout: Layout, arrays: Mapping[str, Array], what: str) -> None:
    """Copies named arrays into a flat buffer. Raises CheckpointError where names, shapes or dtypes differ."""
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        found = arrays.get(name)
        if found is None or found.shape != shape or found.dtype != flat.dtype:
            got = "is missing" if found is None else f"has shape {found.shape} and dtype {found.dtype}"
            raise CheckpointError(
                f"{what}: {name} {got} in the checkpoint, the model needs {shape} {flat.dtype}; "
                "it was written for another model"
            )
        flat[layout.spans[name]] = found.ravel()
    extra = sorted(set(arrays) - set(layout.names))
    if extra:
        raise CheckpointError(f"{what}: the checkpoint has {extra[0]}, the model doesn't; it is of another model")


def _named(prefix: str, layout: Layout, flat: Array) -> dict[str, Array]:
    return {f"{prefix}/{name}": array for name, array in layout.views(flat).items()}
