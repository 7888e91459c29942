"""The wait for all ranks of a new communicator, which ends with a sentence where some of them never come."""

from __future__ import annotations

import sys
import time
from typing import Any

from distsgd.core.output import flush, leave, rank_names, say
from distsgd.parallel.watchdog import DEFAULT_LIMIT, OUTSIDE_STEPS

_CALL, _ANSWER = 32_001, 32_002
"""Tags of messages that are sent only where the job is about to end. MPI allows tags up to 32,767 everywhere."""
_SPIN = 0.002  # seconds until a rank that waits gives its processor to others
_LONGEST_PAUSE = 0.05
_ANSWERS = 2.0  # seconds


def wait_for_all(mpi: Any, comm: Any, limit: float | None = None) -> None:
    """Return when all ranks of an mpi4py communicator have called this.

    After ten times `limit` seconds (0 for never, None for the default) a rank that waits names those that have not
    come, and ends the job: they may do work of their own, as outside of training.
    """
    if comm.size == 1:
        return
    seconds = OUTSIDE_STEPS * (DEFAULT_LIMIT if limit is None else limit)
    arrived, began, waited = comm.Ibarrier(), time.monotonic(), 0.0
    while not arrived.Test():
        waited = time.monotonic() - began
        if waited > _SPIN:
            _answer(mpi, comm)
            time.sleep(min(waited / 20, _LONGEST_PAUSE))
        if seconds and waited > seconds:
            _end(mpi, comm, arrived, waited)


def _answer(mpi: Any, comm: Any) -> None:
    """Answer a rank that asks whether this one is here."""
    status = mpi.Status()
    while comm.Iprobe(tag=_CALL, status=status):
        comm.recv(source=status.source, tag=_CALL)
        comm.isend(None, dest=status.source, tag=_ANSWER)


def _end(mpi: Any, comm: Any, arrived: Any, waited: float) -> None:
    """Ask all ranks, name those that don't answer, and end the job."""
    others = [rank for rank in range(comm.size) if rank != comm.rank]
    calls = [comm.isend(None, dest=rank, tag=_CALL) for rank in others]
    missing, until = set(others), time.monotonic() + _ANSWERS
    while missing and time.monotonic() < until:
        status = mpi.Status()
        if comm.Iprobe(tag=_ANSWER, status=status):
            comm.recv(source=status.source, tag=_ANSWER)
            missing.discard(status.source)
            continue
        _answer(mpi, comm)
        if arrived.Test():
            return  # the last one has come just now
        time.sleep(_SPIN)
    here = sorted(set(range(comm.size)) - missing)
    if not missing:
        return
    del calls
    absent = sorted(missing)
    verb = ("has", "have")
    say(
        f"distsgd: error: {rank_names(absent)} of {comm.size} {verb[len(absent) > 1]} not come in {waited:.0f} s, and "
        f"{rank_names(here)} {verb[len(here) > 1]} waited: each rank of a communicator makes the same calls; give a "
        'group of ranks a communicator= of its own, or "self", or the others more time with stall_timeout',
        sys.stderr,
    )
    flush()
    try:
        mpi.COMM_WORLD.Abort(1)
    finally:
        leave(1)
