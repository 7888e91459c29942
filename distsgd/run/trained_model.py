"""A trained model in Python: what `fit` returns."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import DataError
from distsgd.core.layout import Views
from distsgd.core.runtime import single_threaded_blas
from distsgd.data.examples import Signature
from distsgd.data.loader import Loader
from distsgd.data.sources.checks import as_array, check_finite
from distsgd.nn.objective import Objective
from distsgd.nn.task import Task
from distsgd.run.caller import numpys_defaults
from distsgd.run.summary import last_line
from distsgd.training.evaluator import predict_all


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
