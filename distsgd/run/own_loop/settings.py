"""What a DataParallel is made with, checked, and the step that is built from it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from distsgd.core.device import CPU, Array
from distsgd.core.errors import ConfigurationError
from distsgd.data.examples import Examples
from distsgd.optim.optimizers import Optimizer
from distsgd.optim.registry import OPTIMIZERS
from distsgd.optim.schedules import Schedule, build_schedule, has_horizon
from distsgd.parallel import Communicator, check_communicator
from distsgd.run.build import OWN_MODEL
from distsgd.run.build_trainer import build_step, check_ranks
from distsgd.run.compared.agreement import add_versions, agreed_family
from distsgd.run.compared.identity import Identity
from distsgd.run.config import TrainConfig, own_optimizer, resolved
from distsgd.run.config_file import from_mapping
from distsgd.run.own_loop.function import OwnFunction, Reduction
from distsgd.training.step import TrainingStep

_numbers = itertools.count(1)
_OWNER = "DataParallel"


@dataclass(frozen=True, eq=False)
class Settings:
    """What does not change in the life of a DataParallel."""

    params: dict[str, Array]
    optimizer: Optimizer
    reduction: Reduction
    schedule: Schedule | str
    check_reduction: bool
    config: TrainConfig

    @classmethod
    def of(
        cls,
        params: Any,
        optimizer: Any,
        reduction: Any,
        schedule: Any,
        communicator: Any,
        check_reduction: bool,
        options: Mapping[str, Any],
    ) -> tuple[Settings, Identity]:
        """The settings and their identity. Raises ConfigurationError."""
        check_communicator(communicator, _OWNER)
        if reduction not in ("sum", "mean"):
            raise ConfigurationError(
                f"{_OWNER}: reduction: expected 'sum' or 'mean', whichever your function returns over the examples of "
                f"a microbatch, got {reduction!r}"
            )
        if schedule is not None and not isinstance(schedule, Schedule | str):
            raise ConfigurationError(f"{_OWNER}: schedule must be a Schedule or a name, got {type(schedule).__name__}")
        arrays = _arrays(params)
        given = {key: value for key, value in options.items() if value is not None}
        given["dtype"] = _dtype(arrays, given.get("dtype"))
        config = _config(optimizer, schedule, given)
        made = _optimizer(optimizer, config, given.get("lr"))
        arrays = {name: array.astype(given["dtype"]) for name, array in arrays.items()}
        if bad := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
            raise ConfigurationError(f"{_OWNER}: params: {bad[0]} holds numbers that aren't finite; initialize it")
        settings = cls(arrays, made, reduction, schedule or "constant", bool(check_reduction), config)
        return settings, settings._identity()

    def _identity(self) -> Identity:
        identity = Identity()
        add_versions(identity)
        identity.add("params", self.params)
        identity.say("order of parameters", ", ".join(self.params))
        identity.add("optimizer", self.optimizer)
        identity.add("schedule", self.schedule)
        for name in ("reduction", "check_reduction"):
            identity.say(name, str(getattr(self, name)))
        for name in ("microbatches", "clip_norm", "seed", "dtype", "stall_timeout"):
            identity.say(name, str(getattr(self.config, name)))
        return identity

    @property
    def seed(self) -> int:
        """Of the order of examples and of random words."""
        return self.config.seed

    @property
    def schedule_has_horizon(self) -> bool:
        """Whether the schedule is made for a number of epochs."""
        return isinstance(self.schedule, str) and has_horizon(self.schedule)

    def placeholder(self, count: int) -> Examples:
        """So many examples without arrays: the step knows them by number alone."""
        return Examples(np.empty((count, 0), self.config.dtype), np.zeros(count, np.int64))

    def document(self) -> dict[str, Any]:
        """What a checkpoint says of them, and a run that resumes has to have alike."""
        config = self.config
        shapes = ", ".join(f"{name} {array.shape}" for name, array in self.params.items())
        return {
            "loop": _OWNER, "parameters": shapes, "optimizer": _text(self.optimizer), "schedule": _text(self.schedule),
            "reduction": self.reduction, "microbatches": config.microbatches, "clip_norm": config.clip_norm,
            "seed": config.seed, "dtype": config.dtype,
        }  # fmt: skip


def _text(value: Any) -> str:
    return value if isinstance(value, str) else re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _arrays(params: Any) -> dict[str, Array]:
    if not isinstance(params, Mapping) or not params:
        raise ConfigurationError(
            f"{_OWNER}: params must be arrays by name, got {'none' if params == {} else type(params).__name__}"
        )
    arrays = {}
    for name, value in params.items():
        array = np.asarray(value)
        if not isinstance(name, str):
            raise ConfigurationError(f"{_OWNER}: params: expected names, got {name!r}; call it {str(name)!r}")
        if isinstance(value, Mapping) or array.dtype.kind != "f":
            raise ConfigurationError(
                f"{_OWNER}: params: {name} must be an array of floats, got "
                f"{type(value).__name__ if array.dtype == object else array.dtype}; nested parameters get flat names"
            )
        arrays[name] = array
    return arrays


def _dtype(arrays: Mapping[str, Array], given: Any) -> str:
    found = {array.dtype.name for array in arrays.values()}
    if given is None and len(found) > 1:
        raise ConfigurationError(f"{_OWNER}: params are {' and '.join(sorted(found))}; say which with dtype=")
    try:
        name = np.dtype(found.pop() if given is None else given).name
    except TypeError:
        name = str(given)
    if name not in ("float32", "float64"):
        raise ConfigurationError(f"{_OWNER}: dtype: expected float32 or float64, got {name}; convert params")
    return name


def _config(optimizer: Any, schedule: Any, given: dict[str, Any]) -> TrainConfig:
    options = {key: value.item() if isinstance(value, np.generic) else value for key, value in given.items()}
    if isinstance(optimizer, Optimizer):
        if "lr" in options:
            raise ConfigurationError(f"{_OWNER}: lr is the optimizer's; give it there")
    elif isinstance(optimizer, str):
        options["optimizer"] = optimizer
    elif not (isinstance(optimizer, type) and issubclass(optimizer, Optimizer)):
        got = optimizer.__name__ if isinstance(optimizer, type) else repr(optimizer)
        raise ConfigurationError(f"{_OWNER}: optimizer must be distsgd's Optimizer, its class or its name, got {got}")
    if isinstance(schedule, str):
        options["schedule"] = schedule
    fixed = {"model": OWN_MODEL, "dataset": "arrays", "quiet": True, "device": "cpu", "threads": 1,
             "on_non_finite": "skip", "validation_fraction": 0.0}  # fmt: skip
    return from_mapping({**options, **fixed}, _OWNER)


def _optimizer(given: Any, config: TrainConfig, lr: float | None) -> Optimizer:
    if isinstance(given, Optimizer):
        return given
    if isinstance(given, str):
        return own_optimizer(resolved(config))
    known = [name for name, kind in OPTIMIZERS.items() if kind is given]
    if known:
        return own_optimizer(resolved(replace(config, optimizer=known[0])))
    made: Optimizer = given() if lr is None else given(learning_rate=lr)
    return made


def begun(communicator: Communicator, settings: Settings) -> tuple[OwnFunction, TrainingStep, int]:
    """(the objective, the step with the parameters in place, this DataParallel's number on rank 0). Collective."""
    config = settings.config
    communicator.watch(config.stall_seconds)
    check_ranks(communicator, config)
    agreed_family(communicator, config.kernels)
    function = OwnFunction(settings.params, settings.reduction, settings.check_reduction)
    step, _ = build_step(communicator, config, CPU, settings.placeholder(1), function, settings.optimizer, 1)
    return function, step, communicator.broadcast_object(next(_numbers))


def schedule_for(settings: Settings, epochs: int) -> Schedule:
    """The schedule; one by name is made for so many epochs."""
    given = settings.schedule
    return given if isinstance(given, Schedule) else build_schedule(given, epochs=float(epochs))
