"""The state that a run resumes from with the same bits, to and from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from distsgd.core.checkpoint import Checkpoint, understanding
from distsgd.core.device import Array, host_copy
from distsgd.core.errors import CheckpointError
from distsgd.core.layout import Layout
from distsgd.parallel import Communicator
from distsgd.training.early_stopping import StoppingRule
from distsgd.training.non_finite import PARAMETERS, NonFinite
from distsgd.training.run_state import RunState
from distsgd.training.step import TrainingStep


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
        communicator.broadcast(step.running.flat)
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
