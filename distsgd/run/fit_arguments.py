"""What `fit` was given, checked and made into a RunSpec."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from distsgd.core.errors import ConfigurationError
from distsgd.core.output import say_lines
from distsgd.data.examples import Examples, Signature
from distsgd.data.sources.checks import as_array, stored_array
from distsgd.nn.layers import Layer
from distsgd.nn.objective import Objective
from distsgd.optim.optimizers import OPTIMIZERS, Optimizer
from distsgd.optim.schedules import Schedule
from distsgd.parallel import Communicator
from distsgd.run.agreement import add_versions
from distsgd.run.build import OWN_MODEL, as_objective, build_loss, build_objective
from distsgd.run.config import HYPER_PARAMETERS, OF_SCHEDULES, OPTIONS, TrainConfig, own_optimizer, resolved
from distsgd.run.config_file import SHORT, check_known, from_mapping
from distsgd.run.digests import array_text, fingerprint
from distsgd.run.identity import Identity
from distsgd.run.lifecycle import Attempt, RunSpec
from distsgd.run.placement import split_data
from distsgd.run.summary import last_line
from distsgd.run.user_code import allow_code, names_code
from distsgd.training.callbacks import Callback
from distsgd.training.metrics import Metric

if TYPE_CHECKING:
    from distsgd.run.folder import RunFolder

NOT_FOR_FIT = {"dataset", "data_dir", "model", "validation", "test", "callback", "dry_run", "check_gradient"}
"""Options of the command line that fit doesn't have, or has as an argument of another type."""


@dataclass(frozen=True)
class FitArguments:
    """What one rank's fit was given, checked as far as that is possible without the others."""

    model: Any
    arrays: Mapping[str, Any]
    params: Any
    optimizer: Any
    schedule: Any
    metrics: Sequence[Any]
    callbacks: Sequence[Any]
    options: Mapping[str, Any]

    def spec(self) -> tuple[RunSpec, Identity]:
        """What these arguments ask for, and their identity. Callbacks have none: rank 0's alone are called."""
        self._check()
        config = self._config()
        as_stored = isinstance(self.model, Objective) and self.model.inputs_as_stored
        sets = {name: _examples(given, name, as_stored) for name, given in self.arrays.items()}
        if sets["train"] is None:
            raise ConfigurationError("fit: train must be (x, y) or (x, y, weights), got None")
        optimizer = self.optimizer if isinstance(self.optimizer, Optimizer) else own_optimizer(config)
        identity = self._identity(config, optimizer, sets)
        names, contents = {"": "the arrays"} | {name: name for name in sets}, fingerprint(sets)
        spec = RunSpec(
            config,
            None if config.out is None else _folder(config),
            lambda communicator, decided: split_data(communicator, decided, names, sets, contents=contents),
            self._objective,
            optimizer,
            self.schedule if isinstance(self.schedule, Schedule) else None,
            self.metrics,
            lambda communicator: [*_progress(communicator, config), *self.callbacks],
        )
        return (spec if config.quiet else replace(spec, before_training=_announce, ended=_say_end)), identity

    def _check(self) -> None:
        """Raises ConfigurationError for an argument of the wrong kind, and for options that fit doesn't have."""
        expected: list[tuple[str, Any, type]] = [("metrics", item, Metric) for item in self.metrics]
        expected += [("callbacks", item, Callback) for item in self.callbacks]
        objects = (("optimizer", self.optimizer, Optimizer), ("schedule", self.schedule, Schedule))
        expected += [given for given in objects if not isinstance(given[1], str | None)]
        for name, value, kind in expected:
            if not isinstance(value, kind):
                raise ConfigurationError(f"fit: {name} must be an instance of distsgd's {kind.__name__}, got {value!r}")
        if self.params is not None and not isinstance(self.params, Mapping):
            raise ConfigurationError(f"fit: params must be arrays by name, got {type(self.params).__name__}")
        if self.params is not None and isinstance(self.model, str | Layer | Objective):
            raise ConfigurationError(
                "fit: params are the initial values of a model that is a function; this model makes its own, "
                "init_from= takes a run's"
            )
        if isinstance(self.model, str) and names_code(self.model):
            raise ConfigurationError(
                f"fit: {self.model} is for the command line; import that function, and give what it returns"
            )
        for name in (SHORT.get(given, given) for given in self.options):
            check_known(name, "fit", OPTIONS.keys() - NOT_FOR_FIT)
            given = {"optimizer": (self.optimizer, HYPER_PARAMETERS), "schedule": (self.schedule, OF_SCHEDULES)}
            for what, (one, options) in given.items():
                if isinstance(one, Optimizer | Schedule) and name in options:
                    raise ConfigurationError(f"fit: {name} is the {what}'s; give it there, as {type(one).__name__}(…)")

    def _config(self) -> TrainConfig:
        optimizer = self.optimizer
        options = {key: value.item() if isinstance(value, np.generic) else value for key, value in self.options.items()}
        named = {key: name for key in ("optimizer", "schedule", "model") if isinstance(name := getattr(self, key), str)}
        defaults = {"model": OWN_MODEL, "quiet": True}
        config = allow_code(from_mapping({**defaults, **options, **named, "dataset": "arrays"}, "fit"))
        if not isinstance(optimizer, Optimizer):
            return resolved(config)
        kinds = [name for name, kind in OPTIMIZERS.items() if type(optimizer) is kind]
        own = re.sub(r" at 0x[0-9a-f]+", "", repr(optimizer))  # a run has the same name wherever its objects lie
        return replace(resolved(config, optimizer), optimizer=kinds[0] if kinds else own)

    def _identity(self, config: TrainConfig, optimizer: Optimizer, sets: Mapping[str, Examples | None]) -> Identity:
        """All that ranks must be given alike."""
        model, params = self.model, self.params
        identity = Identity()
        add_versions(identity)
        identity.add("model", model)
        identity.add("params", params)
        shapes = model.parameter_shapes() if isinstance(model, Objective | Layer) else params or {}
        identity.say("order of parameters", ", ".join(map(str, shapes)))
        objects = {"optimizer": optimizer, "schedule": self.schedule}
        for option in OPTIONS:
            own = objects.get(option)
            if option not in NOT_FOR_FIT:
                identity.add(option, getattr(config, option) if own is None or _is_named(own) else own)
        for number, metric in enumerate(self.metrics):
            identity.add(f"metrics[{number}]", metric)
        for name, part in sets.items():
            _add_examples(identity, name, part)
        return identity

    def _objective(self, communicator: Communicator, config: TrainConfig, data: Signature) -> Objective:
        model = self.model
        if isinstance(model, Objective):
            return model
        if isinstance(model, str):
            return build_objective(communicator, config, data)
        if self.params is not None:
            from distsgd.nn.function_objective import FunctionObjective

            return FunctionObjective(model, self.params)
        return as_objective(model, build_loss(config, data), data)


def _announce(communicator: Communicator, attempt: Attempt) -> bool:
    """Prints the header; True, to train. Collective."""
    from distsgd.run.announce import announce

    announce(communicator, attempt)
    return True


def _say_end(attempt: Attempt) -> None:
    """Prints the scores, and why the run has ended, on rank 0."""
    folder = attempt.spec.folder
    say_lines(last_line(attempt.summary, "" if folder is None else str(folder.place()), quiet=False))


def _progress(communicator: Communicator, config: TrainConfig) -> Sequence[Callback]:
    if config.quiet or not communicator.is_root:
        return ()
    from distsgd.run.progress import make_progress

    return make_progress(quiet=False)


def _folder(config: TrainConfig) -> RunFolder:
    from distsgd.run.folder import run_folder

    return run_folder(config)


def _is_named(value: Any) -> bool:
    """Whether the options say all about this optimizer or schedule."""
    return isinstance(value, str) or type(value) in OPTIMIZERS.values()


def _add_examples(identity: Identity, name: str, part: Examples | None) -> None:
    arrays = {} if part is None else {"x": part.x, "y": part.y, "weights": part.weights}
    given = {key: array for key, array in arrays.items() if array is not None}
    identity.say(name, f"({', '.join(given)})" if given else "None")
    for key, array in given.items():
        identity.say(f"{name} {key}", array_text(array))


def listed(name: str, given: Any) -> tuple[Any, ...]:
    """A list's items, or any other iterable's, which may be gone through once."""
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise ConfigurationError(f"fit: {name} must be a list, got {type(given).__name__}; put it in brackets")
    return tuple(given)


def _examples(arrays: tuple[Any, ...] | None, name: str, as_stored: bool) -> Examples | None:
    if arrays is None:
        return None
    if not isinstance(arrays, tuple | list) or len(arrays) not in (2, 3):
        raise ConfigurationError(f"fit: {name} must be (x, y) or (x, y, weights)")
    parts = zip(("x", "y", "weights"), arrays, strict=False)
    read = stored_array if as_stored else as_array
    x, y, *rest = (read(array, f"{name} {part}") for part, array in parts)
    if x.ndim == 0 or y.ndim == 0:
        single = "a single number" if x.dtype != object else f"a {type(arrays[0]).__name__}; make it a list"
        raise ConfigurationError(f"fit: {name} must be arrays of examples, got {single}")
    if as_stored:
        return Examples(x, y, rest[0] if rest else None, as_stored=True)
    if y.dtype.kind in "biu":
        y = y.reshape(len(y)).astype(np.int64, copy=False) if y.size == len(y) else y
    return Examples(x, y, rest[0] if rest else None, 255.0 if x.dtype == np.uint8 else 1.0)
