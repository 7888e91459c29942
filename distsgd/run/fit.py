"""distsgd.fit: training from Python, the same under mpirun and without."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack

from distsgd.core.device import Array
from distsgd.core.layout import Views
from distsgd.data.checks import read_only
from distsgd.nn.batch import Batch
from distsgd.nn.layers import Layer
from distsgd.nn.losses.base import Loss, LossFunction
from distsgd.nn.objective import LossAndGrad, Objective
from distsgd.optim.optimizers import Optimizer
from distsgd.optim.schedules import Schedule
from distsgd.parallel import Communicator, check_communicator
from distsgd.run.build import as_loss
from distsgd.run.caller import as_a_guest, ranks_for
from distsgd.run.compared.agreement import agreed
from distsgd.run.compared.identity import Identity
from distsgd.run.data.given import training_set
from distsgd.run.fit_arguments import FitArguments, listed
from distsgd.run.lifecycle import Attempt, RunSpec, run
from distsgd.run.trained.trained_model import Result, options_of_run
from distsgd.training.callbacks import Callback, History
from distsgd.training.metrics.base import Metric

if TYPE_CHECKING:
    from distsgd.data.sources.base import DataSource
    from distsgd.run.files.folder import RunFolder
    from distsgd.run.fit_options import FitOptions, LossName

MetricFunction: TypeAlias = Callable[[Array, Array], Array | float]
"""`(outputs (k, n), targets (n,) or (k, n)) -> (n,)`: one number an example; with `per_set` one of the whole set."""


def fit(
    model: Layer | Objective | LossAndGrad | str,
    x: Any,
    y: Any = None,
    *,
    weights: Any = None,
    group: Any = None,
    validation: tuple[Any, ...] | DataSource | None = None,
    test: tuple[Any, ...] | DataSource | None = None,
    params: Mapping[str, Any] | None = None,
    outputs: Callable[[Views, Batch], Array] | None = None,
    loss: LossName | Loss | LossFunction | None = None,
    optimizer: Optimizer | type[Optimizer] | str | None = None,
    schedule: Schedule | str | None = None,
    metrics: Sequence[Metric | str | MetricFunction] = (),
    callbacks: Sequence[Callback] = (),
    communicator: Communicator | Any | None = None,
    **options: Unpack[FitOptions],
) -> Result:
    """Train a model on the ranks of this job, or in this process alone. Every rank passes the same arguments.

    Nothing is split off the examples, and nothing is stopped early, unless that is asked for. BLAS has one thread in
    the whole process as long as any fit runs. Without MPI, several threads may call fit at the same time; under mpirun
    one call at a time uses the ranks.

    Parameters
    ----------
    model : Layer, Objective, function or str
        A layer; the name of a model; an objective; or a function `(params, grads, batch) -> (loss_sum, count)`, with
        its initial parameters in `params`.
    x, y, weights : arrays
        The examples along the first axis: x of shape (n, …), y of shape (n,) or (n, k), weights of shape (n,). They
        are used where they lie, and read-only until fit returns. A tuple (x, y) or (x, y, weights) may take x's place.
        x may also be a frame or an `open_dataset(…)`, and y and weights names of its columns.
    group : array or str, optional
        What group each example is of, numbers or texts (n,), or the name of their column. What `validation_fraction`
        or `fold` splits off are whole groups then.
    validation, test : tuple of arrays, frame or DataSource
        (x, y) or (x, y, weights), or an `open_dataset(…)`, read as the training examples are.
        `validation_fraction=0.1` splits validation examples off x and y instead.
    params : mapping of str to array, optional
        The initial parameters by name: of a model that is a function, or in place of the model's own, then with running
        statistics where there are any, `{**result.params, **result.state}`.
    outputs : function, optional
        `outputs(params, batch)` returns the outputs (k, n) of a model that is a function; without it there are no
        metrics and no predictions.
    loss : str, Loss or function, optional
        What is minimized, by name, as an object, or as a function `(outputs, y) -> (losses (n,), grad (k, n))`; see
        `distsgd.nn.loss_from`. By default softmax-cross-entropy for labels, squared-error for values; of a model that
        is a function or an objective, its own; a name says there what its outputs and targets stand for.
    optimizer : Optimizer, class or str, optional
        Such as `distsgd.Adam(1e-3)`; or a name, or a class of distsgd.optim, with options such as `lr=1e-3`.
    schedule : Schedule or str, optional
        Of the learning rate.
    metrics : sequence of Metric, str or function
        What is measured besides the loss and the usual metrics; a function `(outputs, targets)` returns one number an
        example, or with `distsgd.metrics.per_set` one of the whole set. Two metrics have two names.
    callbacks : sequence of Callback
        Called on rank 0; the only argument that ranks may be given differently.
    communicator : mpi4py communicator or "self", optional
        For a group of ranks that trains alone, such as `MPI.COMM_WORLD.Split(color)`; "self" for this process alone.
    **options
        Any option of `python -m distsgd.train`, with underscores: `epochs=10, lr=0.1`. With `out="folder"` the run
        leaves its folder there and resumes from it. `quiet=False` prints what the command line does.

    Returns
    -------
    Result
        The trained model, on every rank.

    Raises
    ------
    ConfigurationError, DataError
        With one sentence, on all ranks.
    Interrupted
        Where a batch system's SIGTERM or SIGUSR1 has stopped a run with `out` after a step, with a checkpoint.
    Exception
        What your own code raises inside, as it is, on all ranks.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.eye(4, dtype=np.float32), np.arange(4)
    >>> result = fit("softmax", x, y, epochs=1, batch_size=4)
    >>> result.predict(x).shape
    (4, 4)
    """
    history = History()

    def look() -> tuple[RunSpec, Identity]:
        check_communicator(communicator)
        arrays = {"train": training_set(x, y, weights), "validation": validation, "test": test}
        watching, measured = [history, *listed("callbacks", callbacks)], listed("metrics", metrics)
        return FitArguments(
            model, arrays, group, params, outputs, as_loss(loss), optimizer, schedule, measured, watching, options
        ).spec()

    ranks = ranks_for(communicator, options.get("stall_timeout"))
    return _trained(ranks, look, history, (x, (x, y, weights), validation, test))


def _trained(
    ranks: Communicator, look: Callable[[], tuple[RunSpec, Identity]], history: History, sets: Sequence[Any]
) -> Result:
    """What comes of a run that `look` describes, with the arrays of these sets left as they are. Collective."""

    records: list[dict[str, Any]] = []

    def train_as_agreed() -> tuple[Attempt | None, list[dict[str, Any]]]:
        asked = agreed(ranks, "fit", look)

        def ended(attempt: Attempt) -> None:
            records.extend(_whole(asked.folder, history.records))  # as long as the run has its folder
            asked.ended(attempt)

        spec = replace(asked, ended=ended)
        with read_only(*sets):
            if spec.folder is None:
                attempt = run(ranks, spec)
            else:
                from distsgd.run.signals import run_until_signalled

                attempt = run_until_signalled(ranks, spec)
        return attempt, ranks.broadcast_object(records)

    attempt, found = as_a_guest(ranks, train_as_agreed)
    assert attempt is not None, "fit goes through a run that is finished, too"
    return _result(attempt, found, ranks.is_root)


def _whole(folder: RunFolder | None, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """This attempt's records after those of earlier attempts, which are in the run's folder. On rank 0."""
    if folder is None:
        return records
    from distsgd.run.files.records import without_checksum

    first = records[0]["step"] if records else None
    with suppress(OSError):
        written = [record for record in folder.read_metrics() if first is None or record.get("step", 0) < first]
        return [*map(without_checksum, written), *records]
    return records


def _result(attempt: Attempt, records: list[dict[str, Any]], is_root: bool) -> Result:
    """What fit returns: copies, for the step's memory is the run's."""
    step, data = attempt.trainer.step, attempt.data
    params, state = (
        {name: array.copy() for name, array in arrays.items()} for arrays in (step.host_params(), step.running)
    )
    return Result(
        params=params, state=state, config=options_of_run(attempt.config), summary=attempt.summary, history=records,
        task=attempt.task, validation_rows=None if data.split is None else data.split.validation[:],
        _config=attempt.config, _signature=data.signature, _objective=step.objective,
        _metadata=attempt.trainer.progress.metadata, _writes=is_root,
    )  # fmt: skip
