"""How a command begins and ends: before NumPy loads, on all ranks, with one message and one exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from distsgd.core import runtime
from distsgd.core.deferred_numpy import defer_numpy, numpy_is_loaded
from distsgd.core.errors import DistsgdError, UserCodeError
from distsgd.core.output import report_error, say, say_traceback, status_after_output
from distsgd.core.processes import open_closed_streams, print_stacks_when_asked

if TYPE_CHECKING:
    from distsgd.parallel import Communicator

_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")


def run_command(command: Callable[[Communicator, Sequence[str]], int], *, alike: bool = True) -> int:
    """Runs `command(communicator, arguments)` on all ranks and returns the exit status, the same on each.

    alike   whether all ranks must have the same command line, code and version

    NumPy loads when the command has chosen the kernels of all hosts, or else when it first uses NumPy.

    An error that one sentence explains is printed by rank 0 alone. Everything else is a defect: it shows its
    traceback and ends all ranks.
    """
    open_closed_streams()
    print_stacks_when_asked()
    sys.excepthook = say_traceback
    runtime.prepare()
    defer_numpy()
    try:
        from distsgd.parallel import start

        communicator = start()
    except DistsgdError as error:
        if launcher_rank() == 0:
            report(error)
        return error.exit_status
    if communicator.size > 1:
        from distsgd.parallel.unhandled import abort_on_unhandled_errors

        abort_on_unhandled_errors(communicator)
    try:
        if alike:
            from distsgd.cli.agreement import agree_on_command

            agree_on_command(communicator, sys.argv[1:])
        # Where something has loaded NumPy before, such as a sitecustomize.py, its BLAS has its own number of threads.
        with runtime.single_threaded_blas() if alike and numpy_is_loaded() else nullcontext():
            status = command(communicator, sys.argv[1:])
    except DistsgdError as error:
        interrupt = error.error if isinstance(error, UserCodeError) else None
        if communicator.size == 1 and isinstance(interrupt, KeyboardInterrupt):
            raise interrupt from None  # the process ends by the signal
        if communicator.is_root:
            report(error)
        status = error.exit_status
    except (SystemExit, KeyboardInterrupt) as stop:
        if communicator.size == 1:
            raise
        rank = communicator.rank
        where = f"rank {rank} on {communicator.hosts[rank]}"
        say(f"distsgd: error: {where} was ended by {type(stop).__name__}", sys.stderr)
        communicator.abort(1)  # the others would wait for this one
        return 1
    status = communicator.broadcast_object(status_after_output(status))
    communicator.barrier()
    return status


def report(error: DistsgdError) -> None:
    """Prints the error's sentence."""
    if str(error):
        report_error(error)


def launcher_rank() -> int:
    """This process's rank as the launcher says, 0 without one."""
    for variable in _RANK_VARIABLES:
        if os.environ.get(variable, "").isdigit():
            return int(os.environ[variable])
    return 0
