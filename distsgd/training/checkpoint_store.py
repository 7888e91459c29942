"""Where a run's checkpoints are kept, and how the ranks save and go back together."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, final

import numpy as np

from distsgd.core.device import Array, host_copy
from distsgd.core.errors import CheckpointError
from distsgd.core.layout import Views
from distsgd.parallel import Communicator
from distsgd.training.callbacks import Hooks
from distsgd.training.early_stopping import StoppingRule
from distsgd.training.evaluator import Scores
from distsgd.training.non_finite import PARAMETERS, NonFinite
from distsgd.training.run_state import RunState
from distsgd.training.step import TrainingStep

if TYPE_CHECKING:
    from distsgd.core.checkpoint import Checkpoint

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
        scores: Scores,
        rule: StoppingRule | None,
        store: CheckpointStore | None,
        hooks: Hooks,
    ) -> None:
        self.communicator, self.step, self.rule, self.store = communicator, scores.step, rule, store
        self._scores, self._hooks = scores, hooks
        self.began = time.monotonic()

    def is_idle(self, patience: float = 0.0) -> bool:
        """Whether rank 0's store can take a checkpoint, for which this waits up to `patience` seconds."""
        store = self.store
        if store is None:
            return True
        return self._hooks.attempt(lambda: not store.busy(patience), False, "saving a checkpoint")

    def prepare(self, final: bool) -> tuple[bool, bool]:
        """(whether the last update was finite on all ranks, whether the store can take a checkpoint). Collective.

        Raises DataError, on all ranks, where the data have changed: what was computed since isn't saved.
        """
        self.began = time.monotonic()
        mine = self.step.finite, final or self.is_idle(PATIENCE), self._scores.changed_data(final)
        ready = self.communicator.allgather_object(mine)
        if changes := [change for _, _, change in ready if change is not None]:
            raise changes[0]
        return all(finite for finite, _, _ in ready), ready[0][1]

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
        from distsgd.core.checkpoint import understanding

        step, slots, whole = self.step, None, RunState()
        params = step.params_buffer()

        def read() -> RunState:
            nonlocal slots, whole
            assert checkpoint is not None
            with understanding("the checkpoint"):
                slots, whole = _read(step, self.rule, checkpoint, params)
            return replace(whole, best_params=None, best_running=None)

        progress = self.communicator.on_root(read)
        step.load(params)
        step.reduction.load_slots(slots)
        if len(step.running):
            self.communicator.transport.broadcast(step.running.flat)
        return whole if self.communicator.is_root else replace(progress)  # ranks that are threads get one object


def take(
    step: TrainingStep, progress: RunState, rule: StoppingRule | None, slots: list[Array]
) -> tuple[Checkpoint, Checkpoint]:
    """(the whole run, the best model so far); both are copies. On rank 0."""
    from distsgd.core.checkpoint import Checkpoint

    params = host_copy(step.reduction.params)
    if not np.isfinite(params).all():
        more = "a smaller learning rate or clip_norm may help; the last checkpoint stays as it was"
        raise NonFinite(progress.step, PARAMETERS).error(more)
    best = _model(step, params, step.running.flat.copy())
    arrays = dict(best)
    for name, slot in zip(_slots_of(step), slots, strict=True):
        arrays |= _named(f"optimizer/{name}", step.layout.views(slot))
    if progress.best_params is not None and progress.best_running is not None:
        best = _model(step, progress.best_params, progress.best_running)
        arrays |= _named("best", best)
    document = replace(progress, rule=None if rule is None else rule.state()).to_document()
    return Checkpoint(arrays, document), Checkpoint(best, progress.best_document())


def _read(
    step: TrainingStep, rule: StoppingRule | None, checkpoint: Checkpoint, params: Views
) -> tuple[list[Array], RunState]:
    """Fills rank 0's `params` and statistics; returns the optimizer's slots and the progress."""
    fill_model(params, checkpoint.group("parameters"), "parameters")
    fill_model(step.running, checkpoint.group("statistics"), "statistics")
    names = _slots_of(step)
    slots = [np.empty_like(params.flat) for _ in names]
    for name, slot in zip(names, slots, strict=True):
        fill_model(step.layout.views(slot), checkpoint.group(f"optimizer/{name}"), f"optimizer state {name}")
    progress = RunState.from_document(checkpoint.document)
    if progress.best is not None:
        progress.best_params, progress.best_running = np.empty_like(params.flat), np.empty_like(step.running.flat)
        best, running = step.layout.views(progress.best_params), step.statistics.layout.views(progress.best_running)
        fill_model(best, checkpoint.group("best/parameters"), "best parameters")
        fill_model(running, checkpoint.group("best/statistics"), "best statistics")
    if rule is not None and progress.rule is not None:
        rule.restore(progress.rule)
    return slots, progress


def _slots_of(step: TrainingStep) -> tuple[str, ...]:
    """The names of the arrays beside the parameters from which training continues."""
    return (*step.optimizer.slots, *step.reduction.own_slots)


def fill_model(views: Views, arrays: Mapping[str, Array], what: str) -> None:
    """Copies named arrays into views of these names. Raises CheckpointError where names, shapes or dtypes differ."""
    from distsgd.core.checkpoint import StoredArrays

    for name, view in views.items():
        found = _about(arrays, name)
        if found != (view.shape, view.dtype):
            got = "is missing" if found is None else f"has shape {found[0]} and dtype {found[1]}"
            raise CheckpointError(
                f"{what}: {name} {got} in the checkpoint, the model needs {view.shape} {view.dtype}; "
                "it was written for another model"
            )
        if isinstance(arrays, StoredArrays):
            arrays.fill(name, view)
        else:
            view[...] = arrays[name]
    extra = sorted(set(arrays) - set(views))
    if extra:
        raise CheckpointError(f"{what}: the checkpoint has {extra[0]}, the model doesn't; it is of another model")


def _about(arrays: Mapping[str, Array], name: str) -> tuple[tuple[int, ...], np.dtype[Any]] | None:
    """(shape, dtype) of a named array, None where there is none."""
    from distsgd.core.checkpoint import StoredArrays

    if isinstance(arrays, StoredArrays):
        return arrays.about(name)
    found = arrays.get(name)
    return None if found is None else (found.shape, found.dtype)


def _model(step: TrainingStep, params: Array, running: Array) -> dict[str, Array]:
    statistics = step.statistics.layout.views(running)
    return _named("parameters", step.layout.views(params)) | _named("statistics", statistics)


def _named(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {f"{prefix}/{name}": array for name, array in arrays.items()}
