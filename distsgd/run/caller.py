"""What `fit` and `predict` do with the process that calls them: what they set for their own time, and how errors leave.

The process belongs to the caller. Inside, NumPy reports floating-point errors as it does by default, BLAS has one
thread, a signal prints stacks, and a crash under mpirun says where; afterwards all is as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import numpy as np

from distsgd.core.errors import ConfigurationError, DistsgdError, UserCodeError, as_raised
from distsgd.core.processes import stacks_when_asked
from distsgd.core.runtime import single_threaded_blas
from distsgd.core.status_table import Phase
from distsgd.parallel import communicator_for, release
from distsgd.parallel.communicator import Communicator
from distsgd.training.intervals import parse_duration

T = TypeVar("T")
_DEFAULTS = {"divide": "warn", "over": "warn", "invalid": "warn", "under": "ignore"}
_NOTHING = nullcontext()


def numpys_defaults() -> AbstractContextManager[object]:
    """NumPy's own reaction to floating-point errors inside: `np.errstate(all="raise")` is about the caller's code, and
    an exponential that underflows is no error of a loss. What the caller ignores stays ignored."""
    given = np.geterr()
    if given == _DEFAULTS:
        return _NOTHING
    kinds = {kind: "ignore" if how == "ignore" else _DEFAULTS[kind] for kind, how in given.items()}
    return np.errstate(**kinds)  # type: ignore[arg-type]


@contextmanager
def used_by_one_fit(communicator: Communicator) -> Iterator[None]:
    """Reserves these ranks for one fit of this process. Raises ConfigurationError where another fit uses them."""
    if communicator.in_use is None:
        yield
        return
    if not communicator.in_use.acquire(blocking=False):
        raise ConfigurationError(
            "fit: another fit is in flight on these ranks, and the messages of two would mix; call one when the "
            "other has returned, on all ranks in the same order"
        )
    try:
        yield
    finally:
        communicator.in_use.release()


def ranks_for(given: Any, stall_timeout: Any = None) -> Communicator:
    """The ranks that `communicator=given` names, which wait for each other from now on as long as `stall_timeout`
    says. Collective.

    What is wrong with either is raised later, where all ranks raise it.
    """
    limit = None
    if stall_timeout is not None:
        try:
            limit = parse_duration(stall_timeout, "stall_timeout")
        except (ConfigurationError, TypeError, AttributeError):
            limit = None
    ranks = communicator_for(given, limit)
    if limit is not None:
        ranks.watch(limit)
    return ranks


def as_a_guest(communicator: Communicator, function: Callable[[], T]) -> T:
    """function(), with these ranks and this process for its time; then a group of ranks is released. Collective.

    An exception of the user's own code arrives as itself: the object on the rank where it was raised, a copy on the
    others. Where nothing catches what is raised here, one rank reports it and all end.
    """

    def settled() -> T:
        try:
            with stacks_when_asked(), single_threaded_blas():
                return function()
        except BaseException:
            communicator.heartbeat.set_phase(Phase.OUTSIDE)  # where it failed before training, nothing has ended it
            raise

    return guest_call(communicator, settled, last=True)  # outside of both: not every exception can be passed through


def guest_call(communicator: Communicator, function: Callable[[], T], last: bool = False) -> T:
    """As `as_a_guest`, for one call of several: BLAS and signals stay, and so do the ranks where it isn't the last."""
    try:
        with numpys_defaults(), used_by_one_fit(communicator):
            if communicator.size == 1:
                return function()
            from distsgd.parallel.unhandled import crashes_shown

            with crashes_shown(communicator):
                result = function()
        if last:
            release(communicator)
        return result
    except SystemExit:
        raise
    except BaseException as error:
        if communicator.size == 1 and not isinstance(error, UserCodeError):
            raise
        caught = error
    if last and isinstance(caught, DistsgdError):  # others may be of this rank alone
        release(communicator)
    raised = as_raised(caught) if isinstance(caught, UserCodeError) else caught
    if communicator.size > 1:
        from distsgd.parallel.unhandled import end_all_where_unhandled

        end_all_where_unhandled(communicator, caught, raised)
    try:
        raise raised
    finally:
        del caught, raised  # the traceback holds this frame
