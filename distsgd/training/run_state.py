"""The schema of a checkpoint's document: what a run is, and where it stands between two steps.

Checkpoints come from outside: `from_document` checks that each entry is there and has its type.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distsgd.core.device import Array
from distsgd.core.errors import CheckpointError
from distsgd.data.examples import Signature
from distsgd.data.features import Ranges, Standardization
from distsgd.nn.task import Task
from distsgd.training.non_finite import NonFinite

_NONE = type(None)
_MOST = 1 << 56
"""More than any count: the watchdog's table has 64 bits for a step and a phase."""
_MOST_ASPECTS, _MOST_TEXTS, _LONGEST = 16, 4000, 200
"""Of a run's identity."""
_METADATA: dict[str, tuple[type, ...]] = {
    "config": (dict,), "schedule_epochs": (float, int, _NONE), "signature": (dict,), "task": (dict,),
    "contents": (str,), "split": (str,), "examples": (list,), "probe": (str,), "device": (str,), "identity": (dict,),
    "kernels": (str,), "validation_rows": (str,),
}  # fmt: skip
_PROGRESS: dict[str, tuple[type, ...]] = {
    "step": (int,), "updates": (int,), "loss_sum": (float,), "count": (int,), "train_loss": (float, _NONE),
    "best": (dict, _NONE), "scores": (dict, _NONE), "skipped": (list,),
}  # fmt: skip


@dataclass(frozen=True)
class Metadata:
    """What a run is, in all of its checkpoints; None for what a checkpoint doesn't say.

    config           the configuration's identity
    schedule_epochs  the horizon of the first start
    task             what its outputs stand for
    contents         the fingerprint of the data
    split            of the rows that are split off for validation, their digest
    examples         how many there are for training, validation and test
    probe            of the CPU's bits
    device           what kind of device computes, None for the CPU
    identity         digests of the user's own model, loss, schedule, optimizer and metrics, by aspect and part
    kernels          the family of the CPU's kernels
    validation_rows  of the same rows alone, their digest
    """

    config: dict[str, Any] | None = None
    schedule_epochs: float | None = None
    signature: Signature | None = None
    task: Task | None = None
    contents: str | None = None
    split: str | None = None
    examples: list[int] | None = None
    probe: str | None = None
    device: str | None = None
    identity: dict[str, dict[str, str]] | None = None
    kernels: str | None = None
    validation_rows: str | None = None

    def to_document(self) -> dict[str, Any]:
        """The entries of a document."""
        entries = vars(self)
        if self.signature is not None:
            entries = entries | {"signature": _document_of(self.signature)}
        if self.task is not None:
            entries = entries | {"task": self.task.to_document()}
        return {key: value for key, value in entries.items() if value is not None}

    def known_signature(self, path: str | Path) -> Signature:
        """The signature of the data. Raises CheckpointError where the checkpoint at `path` doesn't hold it."""
        if self.signature is None:
            raise CheckpointError(f"{path}: the checkpoint says nothing of its examples; it is of no whole run")
        return self.signature

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Metadata:
        """Raises CheckpointError where an entry is of a wrong type."""
        entries = {key: _checked(document, key, kinds) for key, kinds in _METADATA.items() if key in document}
        if "signature" in entries:
            entries["signature"] = _signature(entries["signature"])
        if "task" in entries:
            entries["task"] = Task.from_document(entries["task"])
        if not all(_is_count(number) for number in entries.get("examples", ())):
            raise _wrong("examples", entries["examples"])
        if not _is_identity(entries.get("identity", {})):
            raise _wrong("identity", entries["identity"])
        horizon = entries.get("schedule_epochs")
        if horizon is not None and not 0 < horizon < math.inf:
            raise _wrong("schedule_epochs", horizon)
        return cls(**entries)


@dataclass
class RunState:
    """Where a run stands between two steps.

    updates           made in these steps, which is what Adam counts: a skipped minibatch made none
    loss_sum, count   of the current epoch so far
    train_loss        of the last record
    best              the record of the best validation; best_params and best_running are on rank 0 alone
    scores            the numbers of the last validation's record, which a target is compared with
    skipped           minibatches that are not to be used, and why, by their step from 1
    rule              the stopping rule's state, as it was saved
    """

    metadata: Metadata = field(default_factory=Metadata)
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
    rule: dict[str, Any] | None = None

    def to_document(self) -> dict[str, Any]:
        """The document of a checkpoint of the whole run."""
        return {
            **self.metadata.to_document(),
            **{key: getattr(self, key) for key in _PROGRESS},
            "skipped": [found.record() for found in self.skipped.values()],
            "rule": self.rule,
        }

    def best_document(self) -> dict[str, Any]:
        """The document of a checkpoint of the best model so far."""
        step = self.best["step"] if self.best else self.step
        return {**self.metadata.to_document(), "step": step, "best": self.best}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> RunState:
        """Raises CheckpointError where an entry of a whole run is missing, or of a wrong type."""
        entries = {key: _checked(document, key, kinds) for key, kinds in _PROGRESS.items()}
        step, best = entries["step"], entries["best"]
        for key in ("step", "updates", "count"):
            if not _is_count(entries[key], step if key == "updates" else _MOST):
                raise _wrong(key, entries[key])
        if best is not None and not all(_is_count(best.get(key), step) for key in ("step", "epoch")):
            raise CheckpointError("the checkpoint's best validation has no step and epoch; it was not written whole")
        entries["skipped"] = {found.step: found for found in map(_skipped, entries["skipped"])}
        if any(type(score) is not float for score in (entries["scores"] or {}).values()):
            raise _wrong("scores", entries["scores"])
        rule = _checked(document, "rule", (dict, _NONE)) if "rule" in document else None
        if not all(map(_is_of_a_rule, (rule or {}).values())):
            raise _wrong("rule", rule)
        return cls(Metadata.from_document(document), rule=rule, **entries)


_OPTIONAL = ("inputs", "targets", "range", "target_mean", "features", "columns", "class_names")


def _document_of(signature: Signature) -> dict[str, Any]:
    """The entries of a signature; without what it doesn't say."""
    found = {key: value for key, value in vars(signature).items() if value not in (None, ()) or key not in _OPTIONAL}
    for key in ("inputs", "targets", "features"):
        if key in found:
            found[key] = {name: list(values) for name, values in vars(found[key]).items()}
    if signature.columns is not None:
        found["columns"] = signature.columns.to_document()
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def _standardization(found: Any, features: int) -> Standardization:
    """From its entries. Raises CheckpointError where there aren't a mean and a spread of so many features."""
    mean, spread = ((found.get(key) if isinstance(found, dict) else None) or [] for key in ("mean", "spread"))
    for one in (mean, spread):
        if type(one) is not list or len(one) != features or not all(map(_is_finite, one)):
            raise _wrong("signature", "a standardization of other features")
    if not all(value > 0 for value in spread):
        raise _wrong("signature", "a spread that is not above 0")
    return Standardization(tuple(mean), tuple(spread))


def _is_identity(found: Mapping[str, Any]) -> bool:
    """Whether this is a few short texts by aspect and part."""
    if len(found) > _MOST_ASPECTS or not all(type(parts) is dict for parts in found.values()):
        return False
    texts = [text for aspect, parts in found.items() for text in (aspect, *parts, *parts.values())]
    return len(texts) <= _MOST_TEXTS and all(type(text) is str and len(text) <= _LONGEST for text in texts)


def _ranges(found: Any, features: int) -> Ranges:
    """From its entries. Raises CheckpointError where they aren't three numbers of so many features."""
    low, high, size = ((found.get(key) if isinstance(found, dict) else None) for key in ("low", "high", "size"))
    for one in (low, high, size):
        if type(one) is not list or len(one) != features or not all(map(_is_finite, one)):
            raise _wrong("signature", "ranges of other features")
    return Ranges(*(tuple(one or ()) for one in (low, high, size)))


def _is_finite(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)


def _signature(shapes: Mapping[str, Any]) -> Signature:
    """The signature of the data from its entries. Raises CheckpointError where one is missing or wrong."""
    classes, scale = shapes.get("num_classes"), shapes.get("scale")
    axes = [shapes.get(key) for key in ("example_shape", "target_shape")]
    if not all(type(shape) is list and all(_is_count(axis) and axis for axis in shape) for shape in axes):
        raise _wrong("signature", shapes)
    if (
        not (classes is None or (_is_count(classes) and classes))
        or type(scale) is not float
        or not 0 < scale < math.inf
    ):
        raise _wrong("signature", shapes)
    more: dict[str, Any] = {}
    for key, axis in zip(("inputs", "targets"), axes, strict=True):
        if shapes.get(key) is not None:
            more[key] = _standardization(shapes[key], math.prod(axis or ()))
    ends = shapes.get("range")
    if ends is not None:
        if type(ends) is not list or len(ends) != 2 or not all(map(_is_finite, ends)):
            raise _wrong("signature", shapes)
        more["range"] = tuple(ends)
    if shapes.get("features") is not None:
        more["features"] = _ranges(shapes["features"], math.prod(axes[0] or ()))
    if shapes.get("columns") is not None:
        from distsgd.data.columns import Columns

        more["columns"] = Columns.from_document(shapes["columns"])
    names = shapes.get("class_names", [])
    if type(names) is not list or len(names) not in (0, classes) or not all(type(name) is str for name in names):
        raise _wrong("signature", shapes)
    mean = shapes.get("target_mean", [])
    if type(mean) is not list or not all(map(_is_finite, mean)) or (mean and len(mean) != math.prod(axes[1] or ())):
        raise _wrong("signature", shapes)
    more |= {"target_mean": tuple(mean), "class_names": tuple(names)}
    return Signature(tuple(axes[0] or ()), tuple(axes[1] or ()), classes, scale, **more)


def _skipped(record: Any) -> NonFinite:
    """A skipped minibatch from its record. Raises CheckpointError where an entry is missing or wrong."""
    from distsgd.core.checkpoint import understanding

    with understanding("the checkpoint's skipped minibatches"):
        found = NonFinite.of(record)
    numbers = (found.step, *(found.microbatches or ()), *found.examples)
    if type(found.what) is not str or not all(map(_is_count, numbers)):
        raise _wrong("skipped", record)
    return found


def _is_of_a_rule(value: Any) -> bool:
    return value is None or _is_count(value) or (type(value) is float and math.isfinite(value))


def _is_count(value: Any, most: int = _MOST) -> bool:
    return type(value) is int and 0 <= value <= most


def _wrong(key: str, value: Any) -> CheckpointError:
    return CheckpointError(
        f"not a checkpoint of this version of distsgd: its {key} is {reprlib.repr(value)}; use the version that wrote "
        "it, or start anew with --resume never"
    )


def _checked(document: Mapping[str, Any], key: str, kinds: tuple[type, ...]) -> Any:
    """An entry of one of these types. Raises CheckpointError for any other, and where there is none."""
    if key not in document:
        raise CheckpointError(f"the checkpoint lacks {key!r}; it was not written as a whole run")
    if type(document[key]) not in kinds:
        raise _wrong(key, document[key])
    return document[key]
