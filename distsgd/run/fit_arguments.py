"""What `fit` was given, checked and made into a RunSpec."""

from __future__ import annotations

import functools
import os
import re
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from distsgd.core.components import check_name, field_names
from distsgd.core.errors import ConfigurationError
from distsgd.core.output import say_lines
from distsgd.data.examples import Signature
from distsgd.nn.layers import Layer
from distsgd.nn.losses import LOSSES
from distsgd.nn.losses.base import Loss
from distsgd.nn.objective import Objective
from distsgd.optim.optimizers import Optimizer
from distsgd.optim.registry import OPTIMIZERS
from distsgd.optim.schedules import Schedule
from distsgd.parallel import Communicator
from distsgd.run.build import OF_LOSSES, OWN_MODEL, as_objective, build_loss, build_objective
from distsgd.run.compared.agreement import add_versions
from distsgd.run.compared.identity import Identity
from distsgd.run.config import HYPER_PARAMETERS, OF_SCHEDULES, OPTIONS, OWN_LOSS, TrainConfig, own_optimizer, resolved
from distsgd.run.config_file import SHORT, check_known, from_mapping
from distsgd.run.data.given import sets_given
from distsgd.run.files.summary import last_line
from distsgd.run.lifecycle import Attempt, RunSpec
from distsgd.run.user_code import allow_code, names_code
from distsgd.training.callbacks import Callback
from distsgd.training.metrics.base import Metric, UserMetric

if TYPE_CHECKING:
    from distsgd.run.files.folder import RunFolder

NOT_FOR_FIT = {
    "dataset", "data_dir", "x", "y", "weights", "group", "axis", "stream", "readers", "model", "validation", "test",
    "callback", "dry_run", "check_gradient",
}  # fmt: skip
"""Options of the command line that fit doesn't have, or has as an argument of another type."""


@dataclass(frozen=True)
class FitArguments:
    """What one rank's fit was given, checked as far as that is possible without the others."""

    model: Any
    arrays: Mapping[str, Any]
    group: Any
    params: Any
    outputs: Any
    loss: Any
    optimizer: Any
    schedule: Any
    metrics: Sequence[Any]
    callbacks: Sequence[Any]
    options: Mapping[str, Any]

    def spec(self) -> tuple[RunSpec, Identity]:
        """What these arguments ask for, and their identity. Callbacks have none: rank 0's alone are called."""
        self._check()
        optimizer = self._own_optimizer()
        config = self._config(optimizer)
        as_stored = isinstance(self.model, Objective) and self.model.inputs_as_stored
        given = sets_given(self.arrays, self.group, config, as_stored)
        optimizer = optimizer or own_optimizer(config)
        identity = self._identity(config, optimizer)
        given.identify(identity)
        spec = RunSpec(
            config,
            None if config.out is None else _folder(config),
            given.loader(),
            self._objective,
            optimizer,
            self.schedule if isinstance(self.schedule, Schedule) else None,
            self.params if isinstance(self.model, str | Layer | Objective) else None,
            metrics_of(self.metrics, "fit")[1],
            lambda communicator: [*_progress(communicator, config), *self.callbacks],
        )
        return (spec if config.quiet else replace(spec, before_training=_announce, ended=_say_end)), identity

    def _check(self) -> None:
        """Raises ConfigurationError for an argument of the wrong kind, and for options that fit doesn't have."""
        expected: list[tuple[str, Any, type]] = [("callbacks", item, Callback) for item in self.callbacks]
        objects = [("loss", self.loss, Loss), ("schedule", self.schedule, Schedule)]
        if not _is_class(self.optimizer):
            objects.append(("optimizer", self.optimizer, Optimizer))
        expected += [given for given in objects if not isinstance(given[1], str | None)]
        _refuse_anothers(self.model, self.loss)
        for name, value, kind in expected:
            if not isinstance(value, kind):
                raise ConfigurationError(
                    f"fit: {name} must be an instance of distsgd's {kind.__name__}, got {_short(value)}"
                )
        self._check_model()
        for name in (SHORT.get(given, given) for given in self.options):
            check_known(name, "fit", OPTIONS.keys() - NOT_FOR_FIT)
            given = {"optimizer": (self.optimizer, HYPER_PARAMETERS), "schedule": (self.schedule, OF_SCHEDULES)}
            for what, (one, options) in given.items():
                if isinstance(one, Optimizer | Schedule) and name in options:
                    raise ConfigurationError(f"fit: {name} is the {what}'s; give it there, as {type(one).__name__}(…)")
        if self.arrays["validation"] is not None and self.options.get("validation_fraction"):
            raise ConfigurationError("validation_fraction: would change nothing beside validation data; leave it out")

    def _check_model(self) -> None:
        """Raises ConfigurationError for arguments that don't go with the model."""
        if self.params is not None and not isinstance(self.params, Mapping):
            raise ConfigurationError(f"fit: params must be arrays by name, got {type(self.params).__name__}")
        for name in self.params or ():
            if not isinstance(name, str):
                raise ConfigurationError(f"fit: params: a parameter's name is text, got {_short(name)}")
        if self.params is None and isinstance(self.model, types.FunctionType | types.MethodType | functools.partial):
            raise ConfigurationError("fit: a model that is a function needs its initial values; give params={name: …}")
        if self.params is not None and self.options.get("init_from") is not None:
            raise ConfigurationError("fit: params and init_from both say what training begins with; leave one out")
        if isinstance(self.model, str) and names_code(self.model):
            raise ConfigurationError(
                f"fit: {self.model} is for the command line; import that function, and give what it returns"
            )
        if isinstance(self.loss, Loss) and not isinstance(self.model, str | Layer):
            raise ConfigurationError("fit: loss: this model has a loss of its own; leave it out")
        if self.loss == OWN_LOSS:
            raise ConfigurationError(f"fit: loss {OWN_LOSS}: give the object itself, such as distsgd.SquaredError()")
        if self.outputs is not None and (isinstance(self.model, str | Layer | Objective) or not callable(self.outputs)):
            raise ConfigurationError(
                "fit: outputs is a function (params, batch) of a model that is a function; leave it out of others"
            )

    def _own_optimizer(self) -> Optimizer | None:
        """The optimizer that was given as an object, or made of a class of the user's own; None of those with names."""
        given = self.optimizer
        if isinstance(given, Optimizer) or not _is_class(given) or given in OPTIMIZERS.values():
            return given if isinstance(given, Optimizer) else None
        named = {SHORT.get(name, name): value for name, value in self.options.items()}
        values = {name: value for name, value in named.items() if name in HYPER_PARAMETERS and value is not None}
        for name in values:
            check_name(
                f"fit: option of {given.__name__}", name, [one for one in HYPER_PARAMETERS if hasattr(given, one)]
            )
        made: Optimizer = given(**values)
        return made

    def _config(self, optimizer: Optimizer | None) -> TrainConfig:
        options = {key: _plain(key, value) for key, value in self.options.items()}
        objects = {"optimizer": self.optimizer, "schedule": self.schedule, "model": self.model, "loss": self.loss}
        named: dict[str, Any] = {key: given for key, given in objects.items() if isinstance(given, str)}
        named |= {key: name for name, kind in OPTIMIZERS.items() for key in ("optimizer",) if self.optimizer is kind}
        if isinstance(self.loss, Loss):
            named |= _named_loss(self.loss, options)
        if names := metrics_of(self.metrics, "fit")[0]:
            given = options.get("metric", ())
            named["metric"] = [*([given] if isinstance(given, str) else given), *names]
        defaults: dict[str, Any] = {"model": OWN_MODEL, "quiet": True, "validation_fraction": 0.0}
        if "patience" not in options:
            defaults["early_stopping"] = "none"
        config = allow_code(from_mapping({**defaults, **options, **named, "dataset": "arrays"}, "fit"))
        if optimizer is None:
            return resolved(config)
        kinds = [name for name, kind in OPTIMIZERS.items() if type(optimizer) is kind]
        own = re.sub(r" at 0x[0-9a-f]+", "", repr(optimizer))  # a run has the same name wherever its objects lie
        return replace(resolved(config, optimizer), optimizer=kinds[0] if kinds else own)

    def _identity(self, config: TrainConfig, optimizer: Optimizer) -> Identity:
        """All that ranks must be given alike, but the examples."""
        model, params = self.model, self.params
        identity = Identity()
        add_versions(identity)
        identity.add("model", model)
        identity.add("params", params)
        identity.add("outputs", self.outputs)
        shapes = model.parameter_shapes() if isinstance(model, Objective | Layer) else params or {}
        identity.say("order of parameters", ", ".join(map(str, shapes)))
        objects = {"optimizer": optimizer, "schedule": self.schedule, "loss": self.loss}
        for option in OPTIONS:
            own = objects.get(option)
            if option not in NOT_FOR_FIT:
                identity.add(option, getattr(config, option) if own is None or _is_named(own) else own)
        for number, metric in enumerate(metrics_of(self.metrics, "fit")[1]):
            identity.add(f"metrics[{number}]", metric)
        return identity

    def _objective(self, communicator: Communicator, config: TrainConfig, data: Signature) -> Objective:
        model, loss = self.model, self.loss if isinstance(self.loss, Loss) else None
        if isinstance(model, Objective):
            return model
        if isinstance(model, str):
            return build_objective(communicator, config, data, loss)
        if self.params is not None:
            from distsgd.nn.function_objective import FunctionObjective

            return FunctionObjective(model, self.params, self.outputs)
        return as_objective(model, loss or build_loss(config, data), data)


def _refuse_anothers(model: Any, loss: Any) -> None:
    """Raises ConfigurationError for a module or loss of PyTorch's, which TorchModel makes a model of."""
    module = getattr(sys.modules.get("torch.nn"), "Module", None)
    inner = getattr(loss, "function", loss)
    if module is not None and (isinstance(model, module) or isinstance(inner, module)):
        what = "the module" if isinstance(model, module) else "the loss"
        raise ConfigurationError(
            f"fit: {what} is PyTorch's; give TorchModel(module, loss), of distsgd.integrations.torch, and no loss="
        )


def _short(value: Any) -> str:
    """A value in one line of at most 60 characters; of PyTorch's optimizers, what to give instead of them."""
    kind = value if isinstance(value, type) else type(value)
    if kind.__module__.startswith("torch.optim"):
        return f"torch.optim.{kind.__name__}; give such as distsgd.Adam(learning_rate=0.001), or a name"
    text = "".join(one if one.isprintable() else " " for one in re.sub(r" at 0x[0-9a-f]+", "", repr(value)))
    return text if len(text) <= 60 else f"{text[:59]}…"


def _plain(name: str, value: Any) -> Any:
    """An option's value: NumPy's numbers as Python's, and a path as text where the option takes one."""
    if isinstance(value, os.PathLike) and (name in OPTIONS and OPTIONS[name].path):
        return os.fspath(value)
    return value.item() if isinstance(value, np.generic) else value


def _is_class(given: Any) -> bool:
    """Whether this is a class of optimizers."""
    return isinstance(given, type) and issubclass(given, Optimizer)


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
    from distsgd.run.files.progress import make_progress

    return make_progress(quiet=False, profile=config.profile)


def _folder(config: TrainConfig) -> RunFolder:
    from distsgd.run.files.folder import run_folder

    return run_folder(config)


def _is_named(value: Any) -> bool:
    """Whether the options say all about this optimizer or schedule."""
    return isinstance(value, str) or type(value) in OPTIMIZERS.values()


def listed(name: str, given: Any, caller: str = "fit") -> tuple[Any, ...]:
    """A list's items, or any other iterable's, which may be gone through once."""
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise ConfigurationError(f"{caller}: {name} must be a list, got {type(given).__name__}; put it in brackets")
    return tuple(given)


def _named_loss(loss: Loss, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that make an equal loss, so that a run can be loaded by them; else that it is the user's own."""
    kinds = LOSSES.items() if type(loss).__module__.startswith("distsgd.") else []
    for name, kind in kinds:
        if type(loss) is not kind:
            continue
        values = {option: getattr(loss, key) for option, key in OF_LOSSES.items() if key in field_names(kind)}
        given = {"loss": name} | {option: value for option, value in values.items() if value is not None}
        with suppress(ConfigurationError):
            config = from_mapping(given, "fit")
            if not given.keys() & options.keys() and build_loss(config, Signature((), (), None)) == loss:
                return given
    return {"loss": OWN_LOSS}


def metrics_of(given: Iterable[Any], caller: str) -> tuple[tuple[str, ...], tuple[Metric, ...]]:
    """(the metrics that are names, the others), with a Metric for each function. Raises ConfigurationError."""
    names, found = [], list[Metric]()
    for one in listed("metrics", given, caller):
        if isinstance(one, str):
            names.append(one)
        elif isinstance(one, Metric):
            found.append(one)
        elif not callable(one) or isinstance(one, type):
            raise ConfigurationError(f"{caller}: metrics must be an instance of distsgd's Metric, got {_short(one)}")
        elif (name := getattr(one, "__name__", "<")).startswith("<"):
            raise ConfigurationError(
                f"{caller}: metrics: {_short(one)} has no name for the records; give "
                "distsgd.metrics.UserMetric(name, …)"
            )
        else:
            found.append(UserMetric(name, one))
    return tuple(names), tuple(found)
