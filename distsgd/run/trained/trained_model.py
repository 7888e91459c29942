"""A trained model in Python: what `fit` returns, and what `distsgd.load` reads."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from distsgd.core.components import check_name
from distsgd.core.device import CPU, Array, Device
from distsgd.core.device_options import FULL, PRECISIONS
from distsgd.core.errors import ConfigurationError, DataError
from distsgd.core.layout import Views
from distsgd.core.runtime import single_threaded_blas
from distsgd.data.checks import as_array, stored_array
from distsgd.data.examples import Signature
from distsgd.data.loader import Loader
from distsgd.data.targets import check_finite
from distsgd.nn.objective import Objective
from distsgd.nn.task import Task
from distsgd.run.caller import numpys_defaults
from distsgd.run.config import NOT_WRITTEN, TrainConfig
from distsgd.run.data.given import has_columns, source_of
from distsgd.run.devices import arrays_on, device_for, short_of_memory
from distsgd.training.evaluator import predict_all
from distsgd.training.metrics.base import Metric
from distsgd.training.run_state import Metadata

if TYPE_CHECKING:
    import os

    from matplotlib.figure import Figure

    from distsgd.run.trained.stored_model import StoredModel


@dataclass(repr=False, eq=False, kw_only=True)
class TrainedModel:
    """A trained model: predictions, scores and records, in this process alone, without MPI.

    Parameters
    ----------
    params : dict of str to array
        The best parameters by name; the last ones where nothing was validated.
    state : dict of str to array
        Running statistics by name.
    config : dict
        The options that it was trained with, as `python -m distsgd.train` names them, with underscores.
    summary : dict
        What summary.json says: `status`, losses, metrics, `parameters_sha256`; empty of a run that has not ended.
    history : list of dict
        The records of metrics.jsonl, of all attempts of the run.
    task : Task
        What the outputs stand for.
    """

    params: dict[str, Array]
    state: dict[str, Array]
    config: dict[str, Any]
    summary: dict[str, Any]
    history: list[dict[str, Any]]
    task: Task
    _config: TrainConfig = field(repr=False)
    _signature: Signature = field(repr=False)
    _objective: Objective = field(repr=False)
    _metadata: Metadata = field(repr=False)
    _path: str | None = field(repr=False, default=None)
    _device: tuple[str, str] = field(repr=False, default=(CPU.name, FULL))  # by name, for pickle

    def __repr__(self) -> str:
        """Five lines: the model, its task, how far it was trained, its scores, and its hash."""
        from distsgd.run.files.summary import described

        return (
            f"{type(self).__name__}: {described(self._config, self._signature, self.task, self.params, self.summary)}"
        )

    def on(self, device: str, precision: str = FULL) -> Self:
        """The same model, which predicts and scores on another device; a model that `fit` returns or `load` reads does
        so on the CPU.

        Parameters
        ----------
        device : str
            As the option `--device`: cpu, gpu, gpu:N or auto; `gpu` is the first that this process sees.
        precision : str, default "float32"
            As the option `--precision`: what a GPU rounds numbers to as it multiplies matrices.

        Returns
        -------
        TrainedModel
            With the same `params`, which stay NumPy's arrays, and are copied to a GPU in each call.

        Raises
        ------
        ConfigurationError
            Where there is no such device, or the model can't compute there.
        """
        from distsgd.parallel.serial import SerialCommunicator

        check_name("precision", precision, PRECISIONS)
        found, notes = device_for(SerialCommunicator(), device, precision)
        for note in notes:
            warnings.warn(note, stacklevel=2)
        self._stored().check(found)
        return replace(self, _device=(found.name, precision))

    def predict(self, x: Any) -> Array:
        """Predict with these parameters.

        Parameters
        ----------
        x : array
            Examples (n, …), as those that the model was trained on; n may be 0. Of a model that was trained on columns
            with names, a frame may have them in any order, and others besides.

        Returns
        -------
        array
            Probabilities or values (n, outputs).

        Raises
        ------
        DataError
            Where the examples have another shape, or values that are no numbers or aren't finite.
        """
        return self._predicted(x, "predict", self._objective)

    def predict_proba(self, x: Any) -> Array:
        """The probability of each class, or of each answer where there are several.

        Parameters
        ----------
        x : array
            As `predict` takes it.

        Returns
        -------
        array
            Probabilities (n, classes), also of two classes with one output.

        Raises
        ------
        ConfigurationError
            Where the model's predictions are no probabilities.
        """
        from distsgd.run.trained.answers import probabilities

        return probabilities(self._predicted(x, "predict_proba", self._objective), self.task)

    def labels(self, x: Any) -> Array:
        """The class of each example.

        Parameters
        ----------
        x : array
            As `predict` takes it.

        Returns
        -------
        array
            Names of classes (n,) where they are known, an empty one where a prediction is NaN; else their numbers
            (n,), -1 where it is NaN. Of several answers, 0 or 1 (n, k).

        Raises
        ------
        ConfigurationError
            Where the model predicts values.
        """
        from distsgd.run.trained.answers import labels_of

        return labels_of(self._predicted(x, "labels", self._objective), self.task)

    def predict_interval(self, x: Any, coverage: float = 0.9) -> tuple[Array, Array]:
        """Where values lie with this probability, by a model whose loss says so: of quantiles, or of a Gaussian.

        Parameters
        ----------
        x : array
            As `predict` takes it.
        coverage : float, default 0.9
            The probability that a value lies between both.

        Returns
        -------
        lower, upper : array
            Both (n, values).

        Raises
        ------
        ConfigurationError
            Where the loss says nothing of intervals, or not of this coverage.
        """
        from distsgd.run.trained.intervals import bounds

        lower, upper = (self._predicted(x, "predict_interval", one) for one in bounds(self._objective, coverage))
        return lower, upper

    def evaluate(
        self,
        x: Any,
        y: Any = None,
        weights: Any = None,
        metrics: Sequence[Metric | str | Callable[..., Any]] = (),
        *,
        split: str | None = None,
    ) -> dict[str, Any]:
        """Score these parameters.

        Parameters
        ----------
        x, y : array
            Examples (n, …) and their targets. x may be a frame with the columns that the model was trained on; y then
            is the name of a column, or None for the one that it was trained on. A series of text has names of classes.
            x may be an `open_dataset(…)`, whose inputs are read in blocks where they are large; y and weights are then
            names, or None for its own.
        weights : array, optional
            Weights of the examples' losses (n,).
        metrics : sequence of Metric, str or function
            What is measured besides the loss and the usual metrics.
        split : str, optional
            Which examples of an opened data set, as the command evaluate takes it: test, validation, train or all.

        Returns
        -------
        dict
            `loss` and each metric by its name.

        Raises
        ------
        DataError
            Where the examples don't fit the model.
        ConfigurationError
            Where an opened data set has no such examples.
        """
        from distsgd.parallel.serial import SerialCommunicator
        from distsgd.run.data.given import examples_of
        from distsgd.run.fit_arguments import metrics_of
        from distsgd.run.trained.scoring import arrays_of, checked, score

        names, own = metrics_of(metrics, "evaluate")
        stored = self._stored().on(self._computes_on())
        if (source := source_of(x)) is not None:
            from distsgd.run.trained.held_out import read_for, score_source

            source, alone = read_for(stored, source, y, weights), SerialCommunicator()
            with numpys_defaults(), single_threaded_blas():
                return score_source(alone, stored, source, split, self._rows, self._warn_of, names, own)[2]
        if split is not None:
            raise ConfigurationError("split: is for a data set of open_dataset, and x is none; leave it out")
        given = arrays_of(stored, x, y, weights)
        with numpys_defaults(), single_threaded_blas():
            examples = checked(stored, examples_of(given, "", "evaluate", self._objective.inputs_as_stored))
            self._warn(examples.x, 3)
            return score(SerialCommunicator(), stored, examples, names, own)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw the curves of training; needs matplotlib (distsgd[plot]).

        Parameters
        ----------
        path : str, optional
            A folder, into which all pictures are drawn that need no data: curves, filters, a confusion matrix.

        Returns
        -------
        Figure
            The curves.
        """
        from distsgd.run.pictures import draw_model

        return draw_model(self.history, self.summary, self._stored(), path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a run folder that `distsgd.load` and the commands `evaluate` and `predict` read.

        Parameters
        ----------
        path : str
            A folder that is not there yet, or empty. Under mpirun, `Result.save` writes on rank 0, and the others
            don't wait for it.

        Raises
        ------
        RunFolderError
            Where there is something in that folder, or it can't be written.
        """
        from distsgd.run.trained.saving import save_model

        save_model(path, self._stored(), self.summary, self.history)

    def _stored(self) -> StoredModel:
        from distsgd.run.trained.stored_model import StoredModel

        params, state = (Views(arrays, np.empty(0)) for arrays in (self.params, self.state))
        return StoredModel(self._config, self._signature, self.task, self._objective, params, state, self._metadata)

    def _computes_on(self) -> Device:
        from distsgd.parallel.serial import SerialCommunicator

        return device_for(SerialCommunicator(), *self._device)[0]

    def _predicted(self, x: Any, caller: str, objective: Objective) -> Array:
        """What an objective predicts with these parameters, (n, outputs)."""
        read = stored_array if objective.inputs_as_stored else as_array
        if has_columns(x):
            from distsgd.run.data.frames import inputs_of

            x = inputs_of(x, self._signature, f"{caller}: ")
        elif (source := source_of(x)) is not None:
            from distsgd.run.data.opened import inputs_in

            x = inputs_in(source, self._signature, caller)
        x, dtype = read(x, "x", caller), next(iter(self.params.values())).dtype
        if self._signature.columns is not None and self._signature.columns.fill:
            from distsgd.run.data.filling import filled_in

            x = filled_in(x, self._signature.columns)
        if x.shape == (0,):  # an empty list
            x = x.reshape(0, *self._signature.example_shape)
        if x.ndim == 0:
            raise DataError(f"{caller}: x must be an array of examples, (n, …), got a single value; make it x[None]")
        example = self._signature.example_shape
        if x.shape == example and prod(x.shape[1:]) != prod(example):
            raise DataError(f"{caller}: x must be an array of examples, (n, …), got one {example}; make it x[None]")
        loader = Loader(self._signature.examples(x), objective, dtype, 0, with_targets=False)
        with numpys_defaults(), single_threaded_blas():
            for name in x.dtype.names or ("",):
                check_finite(f"{caller}: x {name}".rstrip(), x[name] if name else x, dtype)
            loader.check()
            self._signature.check_axes(x.shape[1:])
            self._warn(x, 4)
            device = self._computes_on()
            params, state = arrays_on(device, self.params, self.state)
            with short_of_memory(caller, device):
                return predict_all(replace(loader, device=device), params, state)

    def _rows(self) -> Array | None:
        """The rows of the training examples that the run held out, where they are known."""
        from distsgd.run.trained.held_out import rows_of_run

        return None if self._path is None else rows_of_run(self._path, self._stored())

    def _warn_of(self, doubt: str) -> None:
        warnings.warn(doubt, stacklevel=5)

    def _warn(self, x: Array, level: int) -> None:
        """Warns of inputs that lie elsewhere than those of training, so many calls above."""
        if doubt := self._signature.doubt(x):
            warnings.warn(doubt, stacklevel=level)


@dataclass(repr=False, eq=False, kw_only=True)
class Result(TrainedModel):
    """What `fit` returns, on every rank: the trained model.

    Parameters
    ----------
    params, state, config, summary, history, task
        As `TrainedModel` has them.
    validation_rows : array or None
        The rows of the training examples that were split off for validation; None where none were.
    """

    validation_rows: Array | None
    _writes: bool = field(repr=False, default=True)

    def _rows(self) -> Array | None:
        return self.validation_rows

    def save(self, path: str | os.PathLike[str]) -> None:
        """As `TrainedModel.save`, on rank 0; without effect on the others.

        Parameters
        ----------
        path : str
            A folder that is not there yet, or empty.
        """
        if self._writes:
            super().save(path)


def options_of_run(config: TrainConfig) -> dict[str, Any]:
    """The options of a configuration as `TrainedModel.config` has them."""
    values = {name: value for name, value in vars(config).items() if name not in NOT_WRITTEN}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
