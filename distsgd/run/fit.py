"""distsgd.fit: training from Python, the same under mpirun and without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError
from distsgd.data.sources.checks import read_only
from distsgd.nn.layers import Layer
from distsgd.nn.objective import LossAndGrad, Objective
from distsgd.optim.optimizers import Optimizer
from distsgd.optim.schedules import Schedule
from distsgd.parallel import Communicator, communicator_of_this_run, is_mpi4pys, of_mpi4py
from distsgd.run.agreement import agreed
from distsgd.run.caller import as_a_guest
from distsgd.run.fit_arguments import FitArguments, listed
from distsgd.run.identity import Identity
from distsgd.run.lifecycle import Attempt, RunSpec, run
from distsgd.run.trained_model import Result
from distsgd.training.callbacks import Callback, History
from distsgd.training.metrics import Metric

if TYPE_CHECKING:
    from distsgd.run.fit_options import FitOptions


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
        watching = [history, *listed("callbacks", callbacks)]
        measured = listed("metrics", metrics)
        return FitArguments(model, arrays, params, optimizer, schedule, measured, watching, options).spec()

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


def _communicator(given: Any) -> Communicator:
    """The communicator to train in: another of distsgd's or of mpi4py's, else this run's. Collective."""
    if isinstance(given, Communicator):
        return given
    return of_mpi4py(given) if is_mpi4pys(given) else communicator_of_this_run()


def _check_communicator(given: Any) -> None:
    """Raises ConfigurationError for what is no communicator, on all ranks of this run."""
    if given is not None and not isinstance(given, Communicator) and not is_mpi4pys(given):
        raise ConfigurationError(f"fit: communicator must be one of mpi4py's, or None, got {type(given).__name__}")
