"""distsgd.fit: training from Python, the same under mpirun and without."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.core.layout import Views
from distsgd.core.output import say_lines
from distsgd.core.runtime import single_threaded_blas
from distsgd.data.examples import Examples, Signature
from distsgd.data.loader import Loader
from distsgd.data.sources.checks import as_array, check_finite, read_only
from distsgd.nn.layers import Layer
from distsgd.nn.objective import FunctionObjective, LossAndGrad, Objective
from distsgd.nn.task import Task
from distsgd.optim.optimizers import OPTIMIZERS, Optimizer
from distsgd.optim.schedules import Schedule
from distsgd.parallel import Communicator, communicator_of_this_run, is_mpi4pys, of_mpi4py
from distsgd.run.agreement import add_versions, agreed
from distsgd.run.build import OWN_MODEL, as_objective, build_loss, build_objective
from distsgd.run.caller import as_a_guest, numpys_defaults
from distsgd.run.config import HYPER_PARAMETERS, OF_SCHEDULES, OPTIONS, TrainConfig, own_optimizer, resolved
from distsgd.run.config_file import SHORT, check_known, from_mapping
from distsgd.run.digests import array_text, fingerprint
from distsgd.run.identity import Identity
from distsgd.run.lifecycle import Attempt, RunSpec, run
from distsgd.run.placement import split_data
from distsgd.run.summary import last_line
from distsgd.run.user_code import allow_code, names_code
from distsgd.training.callbacks import Callback, History
from distsgd.training.evaluator import predict_all
from distsgd.training.metrics import Metric

if TYPE_CHECKING:
    from distsgd.run.fit_options import FitOptions
    from distsgd.run.folder import RunFolder


@dataclass
class Result:
    """What `fit` returns, on every rank.

    Parameters
    ----------
    params : dict of str to array
        The best parameters by name; the last ones where nothing was validated.
    state : dict of str to array
        Running statistics by name.
    summary : dict
        What summary.json says: `status`, losses, metrics, `parameters_sha256`.
    history : list of dict
        The records of metrics.jsonl, on rank 0; empty on the others.
    task : Task
        What the outputs stand for: `result.task.labels(result.predict(x))` are labels.
    validation_rows : array or None
        The rows of the training examples that were split off for validation; None where none were.
    """

    params: dict[str, Array]
    state: dict[str, Array]
    summary: dict[str, Any]
    history: list[dict[str, Any]]
    task: Task
    validation_rows: Array | None
    _objective: Objective = field(repr=False)
    _signature: Signature = field(repr=False)

    def __repr__(self) -> str:
        """The last line of the command line, without the folder: status, scores, hash."""
        sizes = sum(array.size for array in self.params.values())
        return f"<Result of {sizes:,} parameters; {last_line(self.summary, '', quiet=True)}>"

    def predict(self, x: Array) -> Array:
        """Predict with these parameters, in this process alone.

        Parameters
        ----------
        x : array
            Examples (n, …), as those that the model was trained on; n may be 0.

        Returns
        -------
        array
            Probabilities or values (n, outputs).

        Raises
        ------
        DataError
            Where the examples have another shape, or values that are no numbers or aren't finite.
        """
        x, dtype = as_array(x, "x", "predict"), next(iter(self.params.values())).dtype
        if x.shape == (0,):  # an empty list
            x = x.reshape(0, *self._signature.example_shape)
        if x.ndim == 0:
            raise DataError("predict: x must be an array of examples, (n, …), got a single value; make it x[None]")
        params, state = (Views(arrays, np.empty(0)) for arrays in (self.params, self.state))
        loader = Loader(self._signature.examples(x), self._objective, dtype, 0, with_targets=False)
        with numpys_defaults(), single_threaded_blas():
            check_finite("predict: x", x, dtype)
            loader.check()
            self._signature.check_axes(x.shape[1:])
            if doubt := self._signature.doubt(x):
                warnings.warn(doubt, stacklevel=2)
            return predict_all(loader, params, state)


def fit(
    model: Layer | Objective | LossAndGrad | str,
    train: tuple[Any, ...],
    validation: tuple[Any, ...] | None = None,
    *,
    test: tuple[Any, ...] | None = None,
    params: Mapping[str, Array] | None = None,
    optimizer: Optimizer | str | None = None,
    schedule: Schedule | str | None = None,
    metrics: Sequence[Metric] = (),
    callbacks: Sequence[Callback] = (),
    communicator: Communicator | Any | None = None,
    **options: Unpack[FitOptions],
) -> Result:
    """Train a model on the ranks of this job, or in this process alone. Every rank passes the same arguments.

    BLAS has one thread in the whole process as long as any fit runs. Without MPI, several threads may call fit at the
    same time; under mpirun one call at a time uses the ranks.

    Parameters
    ----------
    model : Layer, Objective, function or str
        A layer; the name of a model; an objective; or a function `(params, grads, batch) -> (loss_sum, count)`, with
        its initial parameters in `params`.
    train, validation, test : tuple of arrays
        (x, y) or (x, y, weights), with the examples along the first axis: x of shape (n, …), y of shape (n,) or (n, k),
        weights of shape (n,). They are used where they lie, and read-only until fit returns. Validation is split off
        the training set where it is None (`validation_fraction=0` for none).
    params : mapping of str to array, optional
        The initial parameters by name, of a model that is a function.
    optimizer, schedule : Optimizer, Schedule or str, optional
        Such as `distsgd.Adam(1e-3)`, or a name.
    metrics : sequence of Metric
        What is measured besides the loss and the usual metrics.
    callbacks : sequence of Callback
        Called on rank 0; the only argument that ranks may be given differently.
    communicator : mpi4py communicator, optional
        For a group of ranks that trains alone, such as `MPI.COMM_WORLD.Split(color)`.
    **options
        Any option of `python -m distsgd.train`, with underscores: `epochs=10, batch_size=256, lr=0.1`. With
        `out="folder"` the run leaves its folder there and resumes from it, and `plot=True` draws into it.
        `quiet=False` prints the command line's header, rows, progress bar and scores, in a notebook too; by default
        nothing is printed.

    Returns
    -------
    Result
        The best parameters (the last where nothing was validated), the records and the summary, on every rank.

    Raises
    ------
    ConfigurationError, DataError
        With one sentence, on all ranks, also where one of them alone is wrong.
    Interrupted
        Where a batch system's SIGTERM or SIGUSR1 has stopped a run with `out` after a step, with a checkpoint.
    Exception
        What your own code raises inside, as it is, on all ranks.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.eye(4, dtype=np.float32), np.arange(4)
    >>> result = fit("softmax", (x, y), epochs=1, batch_size=4, validation_fraction=0)
    >>> result.predict(x).shape
    (4, 4)
    """
    arrays = {"train": train, "validation": validation, "test": test}
    history = History()

    def look() -> tuple[RunSpec, Identity]:
        _check_communicator(given)
        watching = [history, *_listed("callbacks", callbacks)]
        measured = _listed("metrics", metrics)
        return _Arguments(model, arrays, params, optimizer, schedule, measured, watching, options).spec()

    def train_as_agreed() -> Attempt | None:
        spec = agreed(ranks, "fit", look)
        with read_only(train, validation, test):
            if spec.folder is None:
                return run(ranks, spec)
            from distsgd.run.signals import run_until_signalled

            return run_until_signalled(ranks, spec)

    given, ranks = communicator, _communicator(communicator)
    attempt = as_a_guest(ranks, train_as_agreed)
    assert attempt is not None, "fit goes through a run that is finished, too"
    return _result(attempt, history)


def _result(attempt: Attempt, history: History) -> Result:
    """What fit returns: copies, for the step's memory is the run's."""
    step = attempt.trainer.step
    params, state = (
        {name: array.copy() for name, array in arrays.items()} for arrays in (step.host_params(), step.running)
    )
    data = attempt.data
    rows = None if data.split is None else data.split.validation
    return Result(params, state, attempt.summary, history.records, attempt.task, rows, step.objective, data.signature)


NOT_FOR_FIT = {"dataset", "data_dir", "model", "validation", "test", "callback", "dry_run", "check_gradient"}
"""Options of the command line that fit doesn't have, or has as an argument of another type."""


def _communicator(given: Any) -> Communicator:
    """The communicator to train in: another of distsgd's or of mpi4py's, else this run's. Collective."""
    if isinstance(given, Communicator):
        return given
    return of_mpi4py(given) if is_mpi4pys(given) else communicator_of_this_run()


def _check_communicator(given: Any) -> None:
    """Raises ConfigurationError for what is no communicator, on all ranks of this run."""
    if given is not None and not isinstance(given, Communicator) and not is_mpi4pys(given):
        raise ConfigurationError(f"fit: communicator must be one of mpi4py's, or None, got {type(given).__name__}")


@dataclass(frozen=True)
class _Arguments:
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
        sets = {name: _examples(given, name) for name, given in self.arrays.items()}
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


def _listed(name: str, given: Any) -> tuple[Any, ...]:
    """A list's items, or any other iterable's, which may be gone through once."""
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise ConfigurationError(f"fit: {name} must be a list, got {type(given).__name__}; put it in brackets")
    return tuple(given)


def _examples(arrays: tuple[Any, ...] | None, name: str) -> Examples | None:
    if arrays is None:
        return None
    if not isinstance(arrays, tuple | list) or len(arrays) not in (2, 3):
        raise ConfigurationError(f"fit: {name} must be (x, y) or (x, y, weights)")
    parts = zip(("x", "y", "weights"), arrays, strict=False)
    x, y, *rest = (as_array(array, f"{name} {part}") for part, array in parts)
    if x.ndim == 0 or y.ndim == 0:
        single = "a single number" if x.dtype != object else f"a {type(arrays[0]).__name__}; make it a list"
        raise ConfigurationError(f"fit: {name} must be arrays of examples, got {single}")
    if y.dtype.kind in "biu":
        y = y.reshape(len(y)).astype(np.int64, copy=False) if y.size == len(y) else y
    return Examples(x, y, rest[0] if rest else None, 255.0 if x.dtype == np.uint8 else 1.0)
