"""distsgd.load: trained models from their run folders, in any process and without MPI."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError, RunFolderError
from distsgd.core.files import expanded
from distsgd.core.layout import Views
from distsgd.nn.batch import Batch
from distsgd.nn.function_objective import FunctionObjective
from distsgd.nn.layers import Layer
from distsgd.nn.losses.base import Loss, LossFunction
from distsgd.nn.objective import LossAndGrad, Objective
from distsgd.parallel.serial import SerialCommunicator
from distsgd.run.build import OWN_MODEL, as_loss, as_objective, build_loss, build_objective
from distsgd.run.caller import numpys_defaults
from distsgd.run.config import OWN_LOSS
from distsgd.run.files.folder import RunFolder
from distsgd.run.files.records import without_checksum
from distsgd.run.trained.ensemble import Ensemble
from distsgd.run.trained.stored_model import Stored, read_stored
from distsgd.run.trained.trained_model import TrainedModel, options_of_run

PathLike: TypeAlias = str | os.PathLike[str]
_NAMED = 4
"""How many parameters a sentence names."""


@overload
def load(  # type: ignore[overload-overlap]  # a str is a sequence of str, too
    path: PathLike,
    *,
    model: Layer | Objective | LossAndGrad | None = None,
    loss: Loss | LossFunction | None = None,
    outputs: Callable[[Views, Batch], Array] | None = None,
) -> TrainedModel: ...


@overload
def load(
    path: Sequence[PathLike],
    *,
    model: Layer | Objective | LossAndGrad | None = None,
    loss: Loss | LossFunction | None = None,
    outputs: Callable[[Views, Batch], Array] | None = None,
) -> Ensemble: ...


def load(
    path: PathLike | Sequence[PathLike],
    *,
    model: Layer | Objective | LossAndGrad | None = None,
    loss: Loss | LossFunction | None = None,
    outputs: Callable[[Views, Batch], Array] | None = None,
) -> TrainedModel | Ensemble:
    """A trained model, from its run folder or a checkpoint. Starts no MPI, and runs no code that the files name.

    Parameters
    ----------
    path : str, or list of str
        A run folder or a checkpoint; of several, an ensemble whose predictions are the mean of theirs.
    model : Layer, Objective or function, optional
        The model, where the run's was the user's own; of a run that was trained with a name it is built from that.
    loss : Loss or function, optional
        The loss, where the run's was an object or a function of the user's own.
    outputs : function, optional
        `outputs(params, batch)` of a model that is a function, for predictions and metrics.

    Returns
    -------
    TrainedModel or Ensemble
        With the parameters that `evaluate` and `predict` take: the best, or the last where nothing was validated.

    Raises
    ------
    ConfigurationError
        Where the run has a model or a loss of the user's own, and none is given; where one is given and it has none.
    CheckpointError
        Where there is no checkpoint, it is damaged, or its parameters have other names or shapes than the model.

    Examples
    --------
    >>> import tempfile
    >>> import distsgd
    >>> x, y = np.eye(4, dtype=np.float32), np.arange(4)
    >>> folder = tempfile.mkdtemp()
    >>> result = distsgd.fit("softmax", x, y, epochs=1, batch_size=4, out=folder)
    >>> bool((distsgd.load(folder).predict(x) == result.predict(x)).all())
    True
    """
    given = {"model": model, "loss": as_loss(loss), "outputs": outputs}
    if isinstance(path, str | os.PathLike):
        return _loaded(os.fspath(path), given, required=True)
    if not isinstance(path, Sequence) or not all(isinstance(one, str | os.PathLike) for one in path) or not path:
        raise ConfigurationError(f"load: expected the path of a run, or a list of paths, got {path!r}")
    paths = [os.fspath(one) for one in path]
    members = [_loaded(one, given, required=False) for one in paths]
    return Ensemble(members, paths)


def _loaded(path: str, given: dict[str, Any], *, required: bool) -> TrainedModel:
    """One model; what is given has to be of use where it is `required`, and else where the run needs it."""
    alone = SerialCommunicator()
    stored = read_stored(alone, path)
    if not required and not stored.is_users:
        given = given | {"model": None, "outputs": None}
        given |= {} if stored.config.loss == OWN_LOSS else {"loss": None}
    with numpys_defaults():
        objective = _objective(alone, stored, **given)
        found = stored.loaded(alone, objective)
    config, summary, history = found.config, dict[str, Any](), list[dict[str, Any]]()
    folder = expanded(path)
    options = {key: value for key, value in options_of_run(config).items() if key in (found.metadata.config or {})}
    if folder.is_dir():
        options = _options(folder) or options
        summary = RunFolder(folder).read_summary() or {}
        if not summary and os.path.lexists(folder / "summary.json"):
            warnings.warn(f"load: {folder / 'summary.json'} is no summary; it was changed or cut short", stacklevel=3)
        history = read_history(folder)
    params, state = ({name: array.copy() for name, array in views.items()} for views in (found.params, found.state))
    return TrainedModel(
        params=params, state=state, config=options, summary=summary, history=history, task=found.task,
        _config=config, _signature=found.signature, _objective=objective, _metadata=found.metadata, _path=path,
    )  # fmt: skip


def _options(folder: Path) -> dict[str, Any] | None:
    """The options in the folder's config.toml, None where there is none."""
    from distsgd.run.config_file import read_toml

    path = folder / "config.toml"
    return options_of_run(read_toml(path)) if os.path.lexists(path) else None


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The records of a run folder, as `fit` returns them; a warning, and none, where the file is damaged."""
    from distsgd.run.picture_material import read_records

    try:
        records, damage = read_records(folder / "metrics.jsonl")
    except RunFolderError as error:
        records, damage = [], str(error)
    if damage:
        warnings.warn(f"load: {damage}", stacklevel=4)
    return [without_checksum(record) for record in records]


def _objective(alone: SerialCommunicator, stored: Stored, model: Any, loss: Any, outputs: Any) -> Objective:
    """The run's model, built from its name or given as an object."""
    config, signature, path = stored.config, stored.signature, stored.path
    if loss is not None and not isinstance(loss, Loss):
        raise ConfigurationError(f"load: loss must be an instance of distsgd's Loss, got {loss!r}")
    own_loss = config.loss == OWN_LOSS
    if not stored.is_users:
        if model is not None or outputs is not None:
            raise ConfigurationError(f"load: {path} was trained with {config.model}; leave model= and outputs= out")
        _check_loss(stored, loss, needed=own_loss)
        return build_objective(alone, config, signature, loss)
    if model is None:
        what = "a model of your own" if config.model == OWN_MODEL else f"the model of {config.model}"
        also = ", and loss=" if own_loss else ""
        raise ConfigurationError(
            f"load: {path} was trained with {what}; give model={also}: the layer, objective or function with the "
            f"parameters {_parameters(stored)}"
        )
    if outputs is not None and isinstance(model, Layer | Objective):
        raise ConfigurationError("load: outputs= is for a model that is a function; leave it out")
    if isinstance(model, Objective):
        _check_loss(stored, loss, needed=False)
        return model
    if isinstance(model, Layer):
        _check_loss(stored, loss, needed=own_loss)
        return as_objective(model, loss or build_loss(config, signature), signature)
    if not callable(model):
        raise ConfigurationError(f"load: model must be a layer, an objective or a function, got {model!r}")
    _check_loss(stored, loss, needed=False)
    return FunctionObjective(model, dict(stored.arrays["parameters"]), outputs)


def _check_loss(stored: Stored, loss: Loss | None, *, needed: bool) -> None:
    """Raises ConfigurationError where a loss is missing, or would change nothing."""
    if needed and loss is None:
        raise ConfigurationError(f"load: {stored.path} was trained with a loss of your own; give loss=")
    if loss is not None and not needed:
        known = "its model's own loss" if stored.config.loss in ("auto", OWN_LOSS) else stored.config.loss
        raise ConfigurationError(f"load: {stored.path} was trained with {known}; leave loss= out")


def _parameters(stored: Stored) -> str:
    """The names and shapes of the stored parameters."""
    arrays = stored.arrays["parameters"]
    found = [f"{name} {np.shape(arrays[name])}" for name in list(arrays)[:_NAMED]]
    return ", ".join(found) + (f" and {len(arrays) - _NAMED} more" if len(arrays) > _NAMED else "")
