"""What a run came to: the summary, and the line that says the same."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from distsgd.core.device import Array, to_host
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


def last_line(summary: Mapping[str, Any], folder: str | None) -> str:
    """What rank 0 prints last."""
    shown = [f"{summary['status']}: {summary['epochs']} epochs, {summary['steps']} steps"]
    for name in ("train_loss", "validation_loss", "validation_accuracy", "validation_r2", "test_loss", "test_accuracy"):
        if isinstance(summary.get(name), float):
            shown.append(f"{name} {summary[name]:.4f}")
    if summary.get("best_epoch") is not None:
        shown.append(f"best_epoch {summary['best_epoch']}")
    shown.append(f"parameters_sha256 {summary['parameters_sha256']}")
    return ", ".join(shown) + (f" ({folder})" if folder else "")
