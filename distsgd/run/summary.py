"""What a run came to: the summary, and the line that says the same."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from distsgd.core.device import Array, to_host
from distsgd.core.errors import visible
from distsgd.core.output import counted, field, field_of_path, number
from distsgd.core.version import __version__
from distsgd.training.metrics import ConfusionMatrix
from distsgd.training.trainer import StopReason, Trainer

EXIT_STATUS = {"completed": 0, "early_stopped": 0, "stopped": 75, "failed": 1}


def parameters_sha256(params: Array, running: Array) -> str:
    """sha256 of the flat little-endian buffer of the parameters, then of the running statistics."""
    digest = hashlib.sha256()
    for flat in (params, running):
        digest.update(np.ascontiguousarray(flat).astype(flat.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def finish(trainer: Trainer, reason: StopReason, confusion: ConfusionMatrix | None) -> dict[str, Any]:
    """Puts the best parameters in place, scores the test set and returns the summary, on every rank. Collective."""
    train_loss = _train_loss(trainer)
    test = trainer.finalize()
    matrices: dict[str, Any] = {}
    if confusion is not None and reason is not StopReason.STOPPED:
        for name in ("validation", "test"):
            scores = trainer.scores.of(name, (confusion,))
            if scores:
                matrices[name] = scores[f"{name}_{confusion.name}"]
    best = trainer.progress.best or trainer.last_scores
    summary = {key: value for key, value in best.items() if key.startswith("validation_")} | test
    return trainer.communicator.on_root(lambda: _summary(trainer, reason, train_loss, summary, matrices))


def _summary(
    trainer: Trainer, reason: StopReason, train_loss: float | None, scores: dict[str, Any], matrices: dict[str, Any]
) -> dict[str, Any]:
    """The summary, on rank 0."""
    progress, communicator = trainer.progress, trainer.communicator
    return {
        "status": reason.value,
        "epochs": trainer.epoch,
        "steps": progress.step,
        "train_loss": train_loss,
        "validation_loss": None,
        "validation_accuracy": None,
        "test_accuracy": None,
        **scores,
        "best_epoch": progress.best["epoch"] if progress.best else None,
        "best_step": progress.best["step"] if progress.best else None,
        "target_reached": trainer.selection.reached(progress),
        "skipped": sorted(progress.skipped),
        "microbatches": trainer.step.reduction.partition.microbatches,
        "parameters": trainer.step.layout.size,
        "parameters_sha256": parameters_sha256(to_host(trainer.step.reduction.params), trainer.step.running.flat),
        "confusion_matrix": matrices or None,
        "run": {
            "reason": _reason(trainer, reason),
            "ranks": communicator.size,
            "hosts": sorted(set(communicator.hosts)),
            "threads": trainer.step.workers.count,
            "device": str(trainer.step.device),
            "wall_seconds": time.monotonic() - trainer.speed.began,
            "examples_per_second": trainer.speed.overall(),
            "versions": versions(),
        },
    }


def _train_loss(trainer: Trainer) -> float | None:
    progress = trainer.progress
    return progress.loss_sum / progress.count + trainer.step.penalty() if progress.count else progress.train_loss


def versions() -> dict[str, str]:
    """Versions of what computes."""
    return {"distsgd": __version__, "python": platform.python_version(), "numpy": np.__version__}


def early_end(trainer: Trainer) -> str | None:
    """What ends this run early, in words; None where nothing does."""
    selection, sampler = trainer.selection, trainer.sampler
    unit = "epochs" if trainer.intervals.validate_steps == sampler.steps_per_epoch else "validations"
    return None if selection.rule is None else selection.rule.explain(selection.monitor.replace("_", " "), unit)


def _reason(trainer: Trainer, reason: StopReason) -> str | None:
    """Why this attempt ended, in words."""
    limits, target = trainer.limits, trainer.selection.target
    if reason is StopReason.EARLY_STOPPED:
        return early_end(trainer)
    if reason is StopReason.STOPPED:
        over = limits.seconds is not None and time.monotonic() - trainer.speed.began >= limits.seconds
        return "its time is over" if over else "a signal or a callback asked for it"
    if target is not None and trainer.selection.reached(trainer.progress):
        return f"{target[0].replace('_', ' ')} has reached {target[1]:g}"
    if trainer.progress.step < limits.epochs * trainer.sampler.steps_per_epoch:
        return f"the last of {counted(limits.max_steps or 0, 'step')} is done"
    return f"the last of {counted(limits.epochs, 'epoch')} is done"


def doubt(summary: Mapping[str, Any]) -> str | None:
    """A sentence where the model says the same of all validation examples, or no more than their mean."""
    if not summary["steps"]:
        return None
    r2 = summary.get("validation_r2")
    if isinstance(r2, float) and r2 < 0:  # 0 is that of targets that are all equal
        return (
            f"warning: the model predicts the validation targets no better than their mean (R² {number(r2)}); "
            "--standardize and --standardize-targets, another learning rate or more epochs may help"
        )
    matrix = (summary.get("confusion_matrix") or {}).get("validation")
    if not matrix:
        return None
    predicted = [label for label in range(len(matrix)) if any(row[label] for row in matrix)]
    if len(predicted) > 1 or sum(map(any, matrix)) < 2:
        return None
    return (
        f"warning: all validation examples are taken for class {', '.join(map(str, predicted)) or 'NaN'}; "
        "--standardize, another learning rate or more epochs may help"
    )


def last_line(summary: Mapping[str, Any], folder: str, *, quiet: bool) -> str:
    """What rank 0 prints last: one line if `quiet`, else lines of 80 columns, of which the last has the status."""
    training, validation, test = (_scores(summary, f"{name}_") for name in ("train", "validation", "test"))
    best, sha256, attempt = summary.get("best_epoch"), str(summary["parameters_sha256"]), summary.get("run")
    folder = visible(folder)
    of = "the last step" if best is None else f"epoch {best} (step {summary.get('best_step')})"
    fields = {
        "because": attempt.get("reason") if isinstance(attempt, Mapping) else None,
        "training": training and f"{training} in the last epoch",
        "scores": (validation or test) and f"of {of}, whose parameters are kept",
        "validation": validation,
        "test": test,
    }
    shown = {name: text for name, text in fields.items() if text and isinstance(text, str)}
    status = f"{summary['status']}: {counted(summary['epochs'], 'epoch')}, {counted(summary['steps'], 'step')}"
    if summary["status"] == "stopped":
        status += "; the same command continues"
    if quiet:
        place = f" ({folder})" if folder else ""
        return "; ".join([status, *map(" ".join, shown.items()), f"parameters_sha256 {sha256}{place}"])
    lines = [line for name, text in (shown | {"sha256": sha256}).items() for line in field(name, text)]
    lines += field_of_path("run", folder) if folder else []
    return "\n".join([*lines, status])


def _scores(summary: Mapping[str, Any], beginning: str) -> str:
    """The scores of one set, in a line."""
    found = {name.removeprefix(beginning): value for name, value in summary.items() if name.startswith(beginning)}
    return ", ".join(
        f"{name.replace('_', ' ')} {number(value)}" for name, value in found.items() if isinstance(value, float)
    )
