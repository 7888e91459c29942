"""A trained model, from its checkpoint alone: what evaluate, predict and `distsgd.load` start with."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from distsgd.core.checkpoint_folder import find_checkpoint
from distsgd.core.device import CPU, Array, Device
from distsgd.core.device_options import FULL
from distsgd.core.errors import CheckpointError, ConfigurationError, DataError
from distsgd.core.layout import Layout, Views
from distsgd.core.output import say
from distsgd.core.runtime import check_memory
from distsgd.data.examples import Examples, Signature
from distsgd.data.loader import Loader
from distsgd.nn.objective import Objective, Supervised
from distsgd.nn.task import Task
from distsgd.parallel import Communicator
from distsgd.run.build import OWN_MODEL, build_loss, build_objective, build_task
from distsgd.run.config import OWN_LOSS, TrainConfig
from distsgd.run.config_file import from_mapping
from distsgd.run.devices import arrays_on, check_computes, device_for
from distsgd.run.user_code import names_code
from distsgd.training.checkpoint_store import fill_model
from distsgd.training.run_state import Metadata


@dataclass(frozen=True)
class StoredModel:
    """An objective with its trained parameters and running statistics, on every rank; these lie on the device."""

    config: TrainConfig
    signature: Signature
    task: Task
    objective: Objective
    params: Views
    state: Views
    metadata: Metadata
    device: Device = CPU

    def check(self, device: Device) -> None:
        """Raises ConfigurationError where the model can't compute on this device."""
        check_computes(device, self.objective)
        if device.precision != FULL and self.config.dtype != FULL:
            raise ConfigurationError(
                f"precision {device.precision}: goes with float32 alone, and this model is of {self.config.dtype}; "
                "leave --precision out"
            )

    def on(self, device: Device) -> StoredModel:
        """A model of the host, with its arrays on this device.

        Raises ConfigurationError where it can't compute there, OutOfMemoryError where there is no room.
        """
        self.check(device)
        if device.host_memory:
            return self
        params, state = arrays_on(device, self.params, self.state)
        return replace(self, params=params, state=state, device=device)

    def loader(self, examples: Examples, *, with_targets: bool = False) -> Loader:
        """What feeds these examples to the model. Raises DataError where they don't fit it."""
        config = self.config
        dtype = np.dtype(config.dtype)
        loader = Loader(examples, self.objective, dtype, config.seed, with_targets=with_targets, device=self.device)
        loader.check()
        self.signature.check_axes(examples.x.shape[1:])
        return loader

    def check_targets(self, name: str, y: Array) -> None:
        """Raises DataError where targets are others than those that the model was trained on; `name` is the data's."""
        signature, classes = self.signature, self.signature.num_classes
        trained = "values" if classes is None else f"integer labels from 0 to {classes - 1}"
        if classes is not None and y.dtype.kind == "f":
            raise DataError(f"{name}: the model was trained on {trained}, the targets are floats; give y.astype(int)")
        takes_integers = self.task.kind == "regression" or self.objective.inputs_as_stored
        if classes is None and not takes_integers and y.dtype.kind != "f":
            shape = ("n", *signature.target_shape)
            remedy = (
                "np.eye(classes)[y]" if self.task.kind == "classification" and len(shape) > 1 else "y.astype(float)"
            )
            raise DataError(
                f"{name}: the model was trained on floats ({', '.join(map(str, shape))}), the targets are integers; "
                f"give {remedy}"
            )
        if y.shape[1:] not in (signature.target_shape, (*signature.target_shape, 1)):
            raise DataError(
                f"{name}: the model was trained on targets of shape {signature.target_shape} an example, the data has "
                f"{y.shape[1:]}; give the same"
            )
        if classes is not None and len(y) and not 0 <= y.min() <= y.max() < classes:
            row = int(np.argmax((y.reshape(len(y)) < 0) | (y.reshape(len(y)) >= classes)))
            raise DataError(
                f"{name}: the model was trained on {trained}, example {row} has {int(y[row])}; remove the examples of "
                "other classes"
            )


@dataclass(frozen=True)
class Stored:
    """What a checkpoint holds of a model, before its objective is built; `arrays` are on rank 0 alone."""

    path: str
    config: TrainConfig
    signature: Signature
    metadata: Metadata
    arrays: Mapping[str, Mapping[str, Array]]

    @property
    def is_users(self) -> bool:
        """Whether the model is the user's own: a checkpoint names code, but never runs it."""
        return names_code(self.config.model) or self.config.model == OWN_MODEL

    def loaded(self, communicator: Communicator, objective: Objective) -> StoredModel:
        """The objective with the stored arrays. Raises CheckpointError where names or shapes differ. Collective."""
        dtype, config = np.dtype(self.config.dtype), self.config
        shapes = {"parameters": objective.parameter_shapes(), "statistics": objective.state_shapes()}
        layouts = {name: Layout.of(named) for name, named in shapes.items()}
        size = sum(layout.size for layout in layouts.values())
        communicator.everywhere(lambda: check_memory(size * dtype.itemsize, f"a model of {size:,} parameters"))
        views = {name: layout.views(np.zeros(layout.size, dtype)) for name, layout in layouts.items()}

        def fill() -> None:
            for name, view in views.items():
                fill_model(view, self.arrays[name], self.path)

        communicator.on_root(fill)
        for view in views.values():
            communicator.transport.broadcast(view.flat)
        task = self.metadata.task or build_task(config, self.signature, objective)  # older checkpoints hold none
        return StoredModel(
            config, self.signature, task, objective, views["parameters"], views["statistics"], self.metadata
        )


def read_stored(communicator: Communicator, path: str) -> Stored:
    """What the run folder or checkpoint at `path` holds of a model. Collective; rank 0 reads."""

    def read() -> Metadata:
        found = find_checkpoint(Path(path), prefer="best")
        arrays.update({name: found.group(name) for name in ("parameters", "statistics")})
        metadata = Metadata.from_document(found.document)
        if (metadata.config or {}).get("loop") is not None:
            raise CheckpointError(
                f"{path} is of a loop of your own (DataParallel): it holds parameters, but no model to predict with; "
                "DataParallel.resume continues it, and init_from= of fit begins with its parameters"
            )
        if metadata.config is None:
            raise CheckpointError(f"{path}: the checkpoint says nothing of its configuration; it is of no whole run")
        metadata.known_signature(path)
        return metadata

    arrays: dict[str, Mapping[str, Array]] = {}
    metadata = communicator.on_root(read)
    options = {key: value for key, value in (metadata.config or {}).items() if value is not None}
    return Stored(path, from_mapping(options, path), metadata.known_signature(path), metadata, arrays)


def load_model(communicator: Communicator, path: str, code: str | None) -> StoredModel:
    """The model of the run folder or checkpoint at `path`. Collective.

    code   file.py:function, where the run's model is the user's own
    """
    return with_code(communicator, read_stored(communicator, path), code)


def with_code(communicator: Communicator, stored: Stored, code: str | None) -> StoredModel:
    """The model of a checkpoint, whose code is this file.py:function where it is the user's own. Collective."""
    path, config = stored.path, stored.config
    if stored.is_users:
        if code is None and config.model == OWN_MODEL:
            raise ConfigurationError(f"{path} was trained with a model of your own; add --model file.py:function")
        if code is None:
            raise ConfigurationError(
                f"{path} was trained with {config.model}; to run that code, add --model {config.model}"
            )
        config = replace(config, model=code)
    elif code is not None:
        raise ConfigurationError(f"model: {path} was trained with {config.model}, and not with {code}; leave it out")
    own_loss = config.loss == OWN_LOSS
    if own_loss and code is None:
        raise ConfigurationError(
            f"{path} was trained with a loss of your own, which has no name here; distsgd.load in Python takes loss="
        )
    config = replace(config, loss="auto") if own_loss else config
    objective = build_objective(communicator, config, stored.signature)
    if own_loss and isinstance(objective, Supervised) and objective.loss == build_loss(config, stored.signature):
        raise ConfigurationError(
            f"{path} was trained with a loss of your own; let {code} return distsgd.nn.Supervised(layer, that loss, "
            "the shape of an example)"
        )
    return replace(stored, config=config).loaded(communicator, objective)


def on_devices(
    communicator: Communicator, models: Sequence[StoredModel], name: str, precision: str
) -> list[StoredModel]:
    """The models on this rank's device by `--device` and `--precision`; rank 0 prints what is to be said of it.
    Collective."""
    device, notes = device_for(communicator, name, precision)
    for note in notes if communicator.is_root else ():
        say(note, sys.stderr)
    return communicator.everywhere(lambda: [one.on(device) for one in models])
