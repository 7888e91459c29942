"""The state that a run resumes from with the same bits, to and from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distsgd.core.checkpoint import Checkpoint, read_checkpoint, understanding
from distsgd.core.device import Array, host_copy
from distsgd.core.errors import CheckpointError
from distsgd.core.layout import Layout
from distsgd.parallel import Communicator
from distsgd.training.early_stopping import StoppingRule
from distsgd.training.non_finite import PARAMETERS, NonFinite
from distsgd.training.step import TrainingStep

_SCALARS = ("step", "updates", "loss_sum", "count", "train_loss", "best", "scores")
_NOT_METADATA = (*_SCALARS, "skipped", "rule", "format", "sha256")


@dataclass
class Progress:
    """Where a run stands between two steps.

    updates           made in these steps, which is what Adam counts: a skipped minibatch made none
    loss_sum, count   of the current epoch so far
    train_loss        of the last record
    best              the record of the best validation; best_params and best_running are on rank 0 alone
    scores            the numbers of the last validation's record, which a target is compared with
    skipped          minibatches that are not to be used, and why, by their step from 1
    metadata             other entries of the checkpoint: the configuration, this CPU's probe
    """

    step: int = 0
    updates: int = 0
    loss_sum: float = 0.0
    count: int = 0
    train_loss: float | None = None
    best: dict[str, Any] | None = None
    best_params: Array | None = None
    best_running: Array | None = None
    scores: dict[str, float] | None = None
    skipped: dict[int, NonFinite] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


def take(
    step: TrainingStep, progress: Progress, rule: StoppingRule | None, slots: list[Array]
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
    document = {
        **progress.metadata,
        "step": progress.step,
        "updates": progress.updates,
        "loss_sum": progress.loss_sum,
        "count": progress.count,
        "train_loss": progress.train_loss,
        "best": progress.best,
        "scores": progress.scores,
        "skipped": [found.record() for found in progress.skipped.values()],
        "rule": None if rule is None else rule.state(),
    }
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
    handed = progress.best["step"] if progress.best else progress.step
    return Checkpoint(arrays, document), Checkpoint(model, {**progress.metadata, "step": handed, "best": progress.best})


def restore(
    communicator: Communicator, step: TrainingStep, rule: StoppingRule | None, checkpoint: Checkpoint | None
) -> Progress:
    """Puts rank 0's checkpoint (None elsewhere) in place on all ranks. Collective."""

    slots: list[Array] | None = None
    progress, params = Progress(), step.params_buffer()

    def read() -> dict[str, Any]:
        nonlocal slots, progress
        assert checkpoint is not None
        with understanding("the checkpoint"):
            slots, progress = _read(step, rule, checkpoint, params.flat)
        return {key: getattr(progress, key) for key in (*_SCALARS, "skipped", "metadata")}

    entries = communicator.on_root(read)
    if not communicator.is_root:
        progress = Progress(**entries)
    step.load(params)
    step.reduction.load_slots(slots)
    if len(step.running):
        communicator.transport.broadcast(step.running.flat)
    return progress


def _read(
    step: TrainingStep, rule: StoppingRule | None, checkpoint: Checkpoint, params: Array
) -> tuple[list[Array], Progress]:
    """Fills rank 0's `params` and statistics; returns the optimizer's slots and the progress."""
    document = checkpoint.document
    fill_model(params, step.layout, checkpoint.group("parameters"), "parameters")
    running = running_layout(step)
    fill_model(step.running.flat, running, checkpoint.group("statistics"), "statistics")
    slots = []
    for name in step.optimizer.slots:
        flat = np.empty_like(params)
        fill_model(flat, step.layout, checkpoint.group(f"optimizer/{name}"), f"optimizer state {name}")
        slots.append(flat)
    try:
        progress = Progress(**{key: document[key] for key in _SCALARS})
        progress.skipped = {record["step"]: NonFinite.of(record) for record in document["skipped"]}
    except KeyError as error:
        raise CheckpointError(f"the checkpoint lacks {error}; it was not written as a whole run") from None
    progress.metadata = {key: value for key, value in document.items() if key not in _NOT_METADATA}
    best = checkpoint.group("best/parameters")
    if progress.best is not None:
        if not all(isinstance(progress.best.get(key), int) for key in ("step", "epoch")):
            raise CheckpointError("the checkpoint's best validation has no step and epoch; it was not written whole")
        progress.best_params = np.empty_like(params)
        progress.best_running = np.empty_like(step.running.flat)
        fill_model(progress.best_params, step.layout, best, "best parameters")
        fill_model(progress.best_running, running, checkpoint.group("best/statistics"), "best statistics")
    if rule is not None and document.get("rule") is not None:
        rule.restore(document["rule"])
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


def find_model(path: Path) -> Checkpoint:
    """The checkpoint at this path, or the best one of the run folder at it. Raises CheckpointError."""
    try:
        if path.is_file():
            return read_checkpoint(path)
        for name in ("best", "last"):
            inside = path / "checkpoints" / f"{name}.safetensors"
            if inside.is_file():
                return read_checkpoint(inside)
    except OSError as error:
        raise CheckpointError(f"could not read {path}: {error.strerror or error}") from None
    raise CheckpointError(f"{path} is neither a checkpoint nor a run folder with checkpoints; name one of the two")
