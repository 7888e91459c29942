"""Whether an attempt is of the same run as a checkpoint: the user's own model, loss, schedule, optimizer and metrics.

What distsgd has itself is in the configuration, and compared there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distsgd.core.checkpoint import Checkpoint
from distsgd.core.device import Array
from distsgd.core.errors import RunFolderError
from distsgd.core.runtime import cpu_probe
from distsgd.core.version import __version__
from distsgd.nn.objective import Supervised
from distsgd.optim.registry import OPTIMIZERS
from distsgd.optim.schedules import Schedule
from distsgd.run.build import OWN_MODEL
from distsgd.run.compared import digests
from distsgd.run.compared.reads import comparable
from distsgd.run.compared.substance import Digests, described
from distsgd.run.config import OWN_LOSS, TrainConfig
from distsgd.run.user_code import CodeName, import_function
from distsgd.training.checkpoint_store import fill_model
from distsgd.training.metrics.base import Metric
from distsgd.training.run_state import Metadata
from distsgd.training.step import TrainingStep

_REMEDY = (
    "give it the same, choose another folder with --out, move that run aside with --resume never, or start from its "
    "parameters with --init-from"
)
_COMPUTED = "computed by"
_WHAT = {
    "structure": "a model of another structure", "source": "a model with other source", "loss": "another loss",
    "initial": "a model with other initial values", "schedule": "another schedule", "optimizer": "another optimizer",
    "metrics": "other metrics", "params": "other initial values",
}  # fmt: skip


def refuse_another(theirs: Digests, mine: Digests) -> list[str]:
    """Raises RunFolderError where a run was begun with something else; returns lines about what can't be compared."""
    notes = []
    for aspect, what in _WHAT.items():
        then, now = theirs.get(aspect, {}), mine.get(aspect, {})
        if aspect == "initial" and then.get(_COMPUTED) != now.get(_COMPUTED):
            continue
        if not all(map(comparable, then.values())):
            notes.append(f"note: another version of Python began the run, so its {aspect} is not compared")
            continue
        parts = sorted(part for part in then.keys() | now.keys() if then.get(part) != now.get(part))
        if parts:
            named = f" ({', '.join(parts[:3])}{', …' if len(parts) > 3 else ''})" if aspect != "initial" else ""
            raise RunFolderError(f"the run in this folder began with {what}{named}; {_REMEDY}")
    return notes


def identity_of(
    config: TrainConfig,
    step: TrainingStep,
    schedule: Schedule | None,
    metrics: Sequence[Metric],
    checkpoint: Checkpoint | None,
    params: Mapping[str, Array] | None = None,
) -> Digests:
    """What an attempt is given by its user, before it is restored from the checkpoint: the user's own schedule and
    metrics, and what is own of a step's. On rank 0."""
    objective, given = step.objective, dict[str, Any]()
    own = config.model == OWN_MODEL or isinstance(config.model, CodeName)
    if own:
        given = {"model": objective}
        if isinstance(objective, Supervised):
            given = {"model": objective.model, "loss": objective.loss}
    elif config.loss == OWN_LOSS and isinstance(objective, Supervised):
        given = {"loss": objective.loss}
    if isinstance(config.model, CodeName):
        given["builder"] = import_function(config.model, "model")
    if schedule is not None:
        given["schedule"] = schedule
    if type(step.optimizer) not in OPTIMIZERS.values():
        given["optimizer"] = step.optimizer
    if metrics:
        given["metrics"] = metrics
    if params is not None:
        given["params"] = dict(params)
    found = described(given)
    if config.init_from is not None:
        found["initial"] = _initial_from(config.init_from, step, checkpoint)
    elif own:
        by = f"{__version__} {np.__version__} {cpu_probe()} {step.device.description}"
        found["initial"] = _initial(step.host_params().flat, by)
    return found


def _initial(flat: Array, by: str) -> dict[str, str]:
    """Of initial values, and of what computed them: other versions and kernels may compute other ones."""
    return {"values": digests.digest(digests.array_text(flat)), _COMPUTED: digests.digest(by)}


def _initial_from(path: str, step: TrainingStep, checkpoint: Checkpoint | None) -> dict[str, str]:
    """Of the parameters in --init-from, which the first attempt has in place; a later one reads no file that is named
    as it was."""
    params = step.host_params()
    if checkpoint is None:
        return _initial(params.flat, "")
    began = Metadata.from_document(checkpoint.document)
    known = (began.identity or {}).get("initial")
    if known is not None and (began.config or {}).get("init_from") == path:
        return known
    from distsgd.core.checkpoint_folder import find_checkpoint

    read = step.layout.views(np.zeros_like(params.flat))
    fill_model(read, find_checkpoint(Path(path), prefer="best").group("parameters"), path)
    return _initial(read.flat, "")
