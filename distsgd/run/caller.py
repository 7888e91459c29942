"""What `fit` and `predict` do with the process that calls them: what they set for their own time, and how errors leave.

The process belongs to the caller. Inside, NumPy reports floating-point errors as it does by default, BLAS has one
thread, a signal prints stacks, and a crash under mpirun says where; afterwards all is as before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from distsgd.core.errors import UserCodeError, as_raised
from distsgd.core.processes import stacks_when_asked
from distsgd.core.runtime import single_threaded_blas
from distsgd.parallel.communicator import Communicator

T = TypeVar("T")
_DEFAULTS = {"divide": "warn", "over": "warn", "invalid": "warn", "under": "ignore"}


def numpys_defaults() -> np.errstate:
    """NumPy's own reaction to floating-point errors inside: `np.errstate(all="raise")` is about the caller's code, and
    an exponential that underflows is no error of a loss. What the caller ignores stays ignored."""
    kinds = {kind: "ignore" if how == "ignore" else _DEFAULTS[kind] for kind, how in np.geterr().items()}
    return np.errstate(**kinds)  # type: ignore[arg-type]


def as_a_guest(communicator: Communicator, function: Callable[[], T]) -> T:
    """function(), with these ranks and this process for its time. Collective.

    An exception of the user's own code arrives as itself: the object on the rank where it was raised, a copy on the
    others. Where nothing catches what is raised here, one rank reports it and all end.
    """
    try:
        with numpys_defaults(), stacks_when_asked(), communicator.used_by_one_fit(), single_threaded_blas():
            if communicator.size == 1:
                return function()
            from distsgd.parallel.unhandled import crashes_shown

            with crashes_shown(communicator):
                return function()
    except SystemExit:
        raise
    except BaseException as error:
        if communicator.size == 1 and not isinstance(error, UserCodeError):
            raise
        caught = error
    raised = as_raised(caught) if isinstance(caught, UserCodeError) else caught
    if communicator.size > 1:
        from distsgd.parallel.unhandled import end_all_where_unhandled

        end_all_where_unhandled(communicator, caught, raised)
    try:
        raise raised
    finally:
        del caught, raised  # the traceback holds this frame
