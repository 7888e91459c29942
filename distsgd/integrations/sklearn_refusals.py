"""How errors and warnings of the estimators leave: by scikit-learn's classes, and under mpirun once for all ranks."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import distsgd
from distsgd import Callback, ConfigurationError, DataError, DistsgdError, Layer, Result


class RefusedValue(ConfigurationError, ValueError):
    """A parameter, an argument or an array is wrong. Also a ValueError, as scikit-learn's checks raise."""


class RefusedType(ConfigurationError, TypeError):
    """An argument is of a type that the estimator doesn't take, such as a sparse matrix. Also a TypeError."""


_OTHER_BEGINNINGS = {
    "params: ": "warm_start: the parameters of the fit before are of another model: ",
    "classes: ": "model: its loss doesn't say that outputs are classes, for which declared_task=distsgd.Task("
    "'classification', number) is: classes: ",
}
"""Of sentences of `fit`, with what they are about here."""


def in_joblib_thread() -> bool:
    """Whether this is a thread that joblib has started to do several things at the same time."""
    if threading.current_thread() is threading.main_thread():
        return False
    from joblib.parallel import get_active_backend

    return bool(get_active_backend()[0].nesting_level)


def rank_and_size(communicator: Any) -> tuple[int, int]:
    """This process's number among the ranks that train together, and how many they are. Collective as a fit is."""
    if isinstance(communicator, str) and communicator == "self":
        return 0, 1
    if hasattr(communicator, "rank") and hasattr(communicator, "size"):
        return communicator.rank, communicator.size
    return distsgd.rank(), distsgd.size()


@contextmanager
def checks(size: int) -> Iterator[None]:
    """Inside, what scikit-learn's checks raise becomes, on several ranks, an error that one of them reports."""
    try:
        yield
    except DistsgdError:
        raise
    except (ValueError, TypeError) as error:
        if size == 1:
            raise
        kind = RefusedValue if isinstance(error, ValueError) else RefusedType
        raise kind(" ".join(str(error).split())) from None


def as_scikit_learns(error: Exception) -> Exception:
    """A refusal of distsgd's as one that is a ValueError, too; its attributes stay, so that one rank reports it."""
    if isinstance(error, ValueError | TypeError) or not isinstance(error, ConfigurationError | DataError):
        return error
    text = str(error)
    for beginning, other in _OTHER_BEGINNINGS.items():
        if text.startswith(beginning):
            text = other + text.removeprefix(beginning)
    refused = RefusedValue(text)
    refused.__dict__.update(error.__dict__)
    return refused


def fit_as_prepared(prepare: Callable[[], Mapping[str, Any]], communicator: Any, size: int) -> Result:
    """`fit` with the arguments that `prepare` returns. Collective.

    What `prepare` raises on one of several ranks, `fit` raises on all of them, and where nothing catches it one rank
    reports it.
    """
    arguments: Mapping[str, Any]
    try:
        arguments = prepare()
    except Exception as error:
        refused = as_scikit_learns(error)
        if size == 1:
            raise refused from None
        arguments = {"model": "softmax", "x": None, "callbacks": _raising(refused)}
    try:
        return distsgd.fit(**arguments, communicator=communicator)
    except (ConfigurationError, DataError) as error:
        refused = as_scikit_learns(error)
    raise refused  # outside of the handler: an error of several ranks ends with its last reference


def _raising(error: Exception) -> Iterator[Callback]:
    """Callbacks that can't be listed: `fit` does it where all ranks learn what one of them raises."""
    raise error
    yield


_FRAMEWORKS = threading.RLock()


def one_at_a_time(model: Any) -> AbstractContextManager[object]:
    """Inside, no other thread trains a model of another framework: their random numbers are the whole process's."""
    return nullcontext() if isinstance(model, str | Layer) else _FRAMEWORKS


@contextmanager
def warnings_of_one(rank: int) -> Iterator[None]:
    """Inside, only rank 0 shows warnings; where the program makes errors of them, all ranks raise them."""
    if not rank:
        yield
        return
    with warnings.catch_warnings(record=True):
        yield


class AsWarnings(Callback):
    """Makes Python's warnings of what a fit would print, so that programs can filter them."""

    def on_note(self, text: str) -> bool:
        if not text.startswith("note: the targets are "):  # the estimator itself says whether they are classes
            known = text.removeprefix("warning: ").replace("--standardize", "a StandardScaler")
            warnings.warn(known, UserWarning, stacklevel=1)
        return True
