"""What a run came to: the summary, and the line that says the same."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np

from distsgd.core.device import Array, to_host
from distsgd.core.errors import visible
from distsgd.core.output import counted, field, field_of_path, number
from distsgd.core.version import __version__
from distsgd.data.examples import Signature
from distsgd.nn.objective import Supervised
from distsgd.nn.task import Task, predicted_classes, true_classes
from distsgd.run.config import TrainConfig
from distsgd.training.metrics.base import Metric, Value
from distsgd.training.trainer import StopReason, Trainer

if TYPE_CHECKING:
    from distsgd.training.metrics.classes import ConfusionMatrix
    from distsgd.training.metrics.regression import R2

EXIT_STATUS = {"completed": 0, "early_stopped": 0, "stopped": 75, "failed": 1}


def parameters_sha256(params: Array, running: Array) -> str:
    """sha256 of the flat little-endian buffer of the parameters, then of the running statistics."""
    digest = hashlib.sha256()
    for flat in (params, running):
        digest.update(np.ascontiguousarray(flat).astype(flat.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def finish(
    trainer: Trainer, reason: StopReason, confusion: ConfusionMatrix | None, doubt_of_bits: str | None = None
) -> dict[str, Any]:
    """Puts the best parameters in place, scores the test set and returns the summary, on every rank. Collective.

    `doubt_of_bits` says why they may not be the same on any number of ranks.
    """
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
    found = trainer.communicator.on_root(lambda: _summary(trainer, reason, train_loss, summary, matrices))
    return found | ({"same_bits": True} if doubt_of_bits is None else {"same_bits": False, "doubt": doubt_of_bits})


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
        **_wire(trainer),
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
            **trainer.speed.of_attempt,
        },
    }


def _wire(trainer: Trainer) -> dict[str, Any]:
    """What is rounded, where anything is."""
    groups = trainer.step.reduction.partition.wire_groups
    return {"wire": "bfloat16", "wire_groups": groups} if groups else {}


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


@final
@dataclass(frozen=True)
class _Variety(Metric):
    """Whether labels vary, the predicted and the true ones: how often each of their bits is set.

    The bits of several answers are the answers, those of a class the digits of its number.
    """

    name = "variety"
    task: Task

    @property
    def bits(self) -> int:
        return self.task.num_classes if self.task.kind == "multilabel" else self.task.num_classes.bit_length()

    def width(self) -> int:
        return 2 * (1 + self.bits)

    def sums(self, outputs: Array, y: Array) -> Array:
        """(examples with a prediction, bits of the predicted labels, examples, bits of the true ones)."""
        if self.task.kind == "multilabel":
            found = [outputs > self.task.output_threshold, y > 0.5]
        else:
            labels = [predicted_classes(outputs, self.task.output_threshold), true_classes(y)]
            found = [(one[one >= 0] >> np.arange(self.bits)[:, None] & 1).astype(bool) for one in labels]
        return np.concatenate([[bits.shape[1], *np.count_nonzero(bits, axis=1)] for bits in found]).astype(np.float64)

    def value(self, sums: Array) -> Value:
        """For predictions and targets: [-1 where there are none, else 0, the bits of all]; empty where they vary."""
        rows: list[list[int]] = sums.reshape(2, -1).astype(np.int64).tolist()
        return [[-(not count), *bits] if {*bits} <= {0, count} else [] for count, *bits in rows]


def doubt(trainer: Trainer, task: Task, summary: Mapping[str, Any]) -> str | None:
    """A sentence where the model predicts the same for all validation examples, or no more than their mean. Collective.

    Not of values that a loss of the user's own takes: its outputs may be others on purpose.
    """
    objective = trainer.step.objective
    if not summary["steps"] or summary["status"] == StopReason.STOPPED.value or "validation" not in trainer.evaluators:
        return None  # of a run that continues, the end will say it
    if task.kind == "regression":
        from distsgd.nn.losses.regression import SquaredError

        own = not isinstance(objective, Supervised) or not isinstance(objective.loss, SquaredError)
        return None if own else _no_better_than_the_mean(trainer, summary)
    if task.kind == "other":
        return None
    same, matrix = "", (summary.get("confusion_matrix") or {}).get("validation")
    if matrix:
        predicted = [label for label in range(len(matrix)) if any(row[label] for row in matrix)]
        if len(predicted) < 2 and sum(map(any, matrix)) > 1:
            same = f"are taken for class {', '.join(map(str, predicted)) or 'NaN'}"
    else:
        same = _same(trainer, task)
    if not same:
        return None
    return f"warning: all validation examples {same}; --standardize, another learning rate or more epochs may help"


def _same(trainer: Trainer, task: Task) -> str:
    """What all validation examples are taken for, by one more look at them; nothing where that varies. Collective."""
    found = trainer.scores.of("validation", (_Variety(task),)).get("validation_variety")
    if not isinstance(found, list) or found[1] or not isinstance(found[0], list) or not found[0]:
        return ""
    none, *counts = found[0]
    bits = [int(count > 0) for count in counts]
    if task.kind == "multilabel":
        return f"get the same answers, {' '.join(map(str, bits[:20]))}{' …' * (len(bits) > 20)}"
    label = sum(bit << place for place, bit in enumerate(bits))
    return f"are taken for class {'NaN' if none else label}"


def _no_better_than_the_mean(trainer: Trainer, summary: Mapping[str, Any]) -> str | None:
    """A sentence where R² is below 0; 0 is that of targets that are all equal. Collective."""
    from distsgd.training.metrics.regression import R2

    r2, which = summary.get("validation_r2"), ""
    usual = next((one for one in trainer.evaluators["validation"].metrics if isinstance(one, R2)), None)
    if not isinstance(r2, float):
        return None
    if usual is not None and usual.num_outputs > 1:
        worse = trainer.scores.of("validation", (_Below(usual),))["validation_below"]
        assert isinstance(worse, list) and isinstance(worse[0], list)
        if not worse[0]:
            return None
        which = f" of output {', '.join(map(str, worse[0][:10]))}"
    elif r2 >= 0:
        return None
    return (
        f"warning: the model predicts the validation targets{which} no better than their mean (R² {number(r2)}); "
        "--standardize and --standardize-targets, another learning rate or more epochs may help"
    )


@final
@dataclass(frozen=True)
class _Below(Metric):
    """Which of several outputs have an R² below 0."""

    name = "below"
    r2: R2

    def width(self) -> int:
        return self.r2.width()

    def sums(self, outputs: Array, y: Array) -> Array:
        return self.r2.sums(outputs, y)

    def value(self, sums: Array) -> Value:
        columns = sums[1:].reshape(3, self.r2.num_outputs).T
        one = type(self.r2)()
        scores = [one.value(np.array([sums[0], *column])) for column in columns]
        return [[place for place, score in enumerate(scores) if isinstance(score, float) and score < 0]]


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


def described(
    config: TrainConfig, signature: Signature, task: Task, params: Mapping[str, Array], summary: Mapping[str, Any]
) -> str:
    """A trained model in five lines of text."""
    size = counted(sum(array.size for array in params.values()), "parameter")
    names = ", ".join(task.names[:10]) + (", …" if len(task.names) > 10 else "")
    classes = f" of {task.num_classes} classes" if task.num_classes else ""
    examples = f"; examples of shape {signature.example_shape}, targets of shape {signature.target_shape}"
    status = "not ended"
    if "epochs" in summary:
        best = summary.get("best_epoch")
        status = f"{summary['status']}: {counted(summary['epochs'], 'epoch')}, {counted(summary['steps'], 'step')}"
        status += "" if best is None else f"; the parameters are those of epoch {best}"
    scores = [f"{name} {text}" for name in ("train", "validation", "test") if (text := _scores(summary, f"{name}_"))]
    lines = {
        f"{visible(config.model)}, {size}, {config.dtype}": "",
        "task": f"{task.kind}{classes}{f' ({visible(names)})' if names else ''}{examples}",
        "status": status,
        "scores": "; ".join(scores) or "none",
        "parameters_sha256": summary.get("parameters_sha256", "unknown"),
    }
    return "\n".join(f"  {name}: {text}" if text else name for name, text in lines.items())


def _scores(summary: Mapping[str, Any], beginning: str) -> str:
    """The scores of one set, in a line."""
    found = {name.removeprefix(beginning): value for name, value in summary.items() if name.startswith(beginning)}
    return ", ".join(
        f"{name.replace('_', ' ')} {number(value)}" for name, value in found.items() if isinstance(value, float)
    )
