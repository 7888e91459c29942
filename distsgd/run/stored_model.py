"""A trained model, from its checkpoint alone: what evaluate and predict start with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from distsgd.core.checkpoint_folder import find_checkpoint
from distsgd.core.device import Array
from distsgd.core.errors import CheckpointError, ConfigurationError
from distsgd.core.layout import Layout, Views
from distsgd.core.runtime import check_memory
from distsgd.data.examples import Examples, Signature
from distsgd.data.loader import Loader
from distsgd.nn.objective import Objective
from distsgd.nn.task import Task
from distsgd.parallel import Communicator
from distsgd.run.build import OWN_MODEL, build_objective, build_task
from distsgd.run.config import TrainConfig
from distsgd.run.config_file import from_mapping
from distsgd.run.user_code import names_code
from distsgd.training.checkpoint_store import fill_model
from distsgd.training.run_state import Metadata


@dataclass(frozen=True)
class StoredModel:
    """An objective with its trained parameters and running statistics, on every rank."""

    config: TrainConfig
    signature: Signature
    task: Task
    objective: Objective
    params: Views
    state: Views
    split: str | None = None

    def loader(self, examples: Examples, *, with_targets: bool = False) -> Loader:
        """What feeds these examples to the model. Raises DataError where they don't fit it."""
        config = self.config
        loader = Loader(examples, self.objective, np.dtype(config.dtype), config.seed, with_targets=with_targets)
        loader.check()
        self.signature.check_axes(examples.x.shape[1:])
        return loader


def load_model(communicator: Communicator, path: str, code: str | None) -> StoredModel:
    """The model of the run folder or checkpoint at `path`. Collective.

    code   file.py:function, where the run's model is the user's own: a checkpoint names code, but never runs it
    """

    def read() -> tuple[dict[str, Any], Signature, Metadata]:
        found = find_checkpoint(Path(path), prefer="best")
        arrays.update({name: found.group(name) for name in ("parameters", "statistics")})
        metadata = Metadata.from_document(found.document)
        if metadata.config is None:
            raise CheckpointError(f"{path}: the checkpoint says nothing of its configuration; it is of no whole run")
        return metadata.config, metadata.known_signature(path), metadata

    arrays: dict[str, Mapping[str, Array]] = {}
    options, signature, metadata = communicator.on_root(read)
    config = from_mapping({key: value for key, value in options.items() if value is not None}, path)
    if names_code(config.model) or config.model == OWN_MODEL:
        if code is None and config.model == OWN_MODEL:
            raise ConfigurationError(f"{path} was trained with a model of your own; add --model file.py:function")
        if code is None:
            raise ConfigurationError(
                f"{path} was trained with {config.model}; to run that code, add --model {config.model}"
            )
        config = replace(config, model=code)
    elif code is not None:
        raise ConfigurationError(f"model: {path} was trained with {config.model}, and not with {code}; leave it out")
    objective = build_objective(communicator, config, signature)
    dtype = np.dtype(config.dtype)
    shapes = {"parameters": objective.parameter_shapes(), "statistics": objective.state_shapes()}
    layouts = {name: Layout.of(named) for name, named in shapes.items()}
    size = sum(layout.size for layout in layouts.values())
    communicator.everywhere(lambda: check_memory(size * dtype.itemsize, f"a model of {size:,} parameters"))
    views = {name: layout.views(np.zeros(layout.size, dtype)) for name, layout in layouts.items()}

    def fill() -> None:
        for name, view in views.items():
            fill_model(view, arrays[name], path)

    communicator.on_root(fill)
    for view in views.values():
        communicator.transport.broadcast(view.flat)
    task = metadata.task or build_task(config, signature, objective)  # older checkpoints hold none
    return StoredModel(config, signature, task, objective, views["parameters"], views["statistics"], metadata.split)
