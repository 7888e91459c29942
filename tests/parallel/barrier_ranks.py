"""The program of test_barrier.py: ranks meet many times, some of them late, in `SharedBarrier`.

Prints one line a rank: `right`, or what it saw.
"""

from __future__ import annotations

import signal
import sys
import time

import numpy as np
from mpi4py import MPI

from distsgd.parallel import Communicator, start
from distsgd.parallel.shared_barrier import SharedBarrier, shared_barrier
from distsgd.parallel.shared_memory import shared_array

MEETINGS, WIDTH, INTERRUPTIONS = 3000, 513, 400
LATE = {500: 0.0, 1000: 0.0005, 1500: 0.005, 2000: 0.05}
"""Seconds that one rank comes late, by meeting."""


def too_late(*_: object) -> None:
    raise TimeoutError


def interrupted(ranks: Communicator, barrier: SharedBarrier) -> str | None:
    """What is wrong where a signal's handler raises on the first rank while it waits for the last; None for nothing."""
    arrived, _ = shared_array(ranks, (ranks.size,), np.dtype(np.int64))
    if ranks.is_root:
        signal.signal(signal.SIGALRM, too_late)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
    time.sleep(0.3 * (ranks.rank == ranks.size - 1 > 0))
    arrived[ranks.rank] = 1
    try:
        barrier()
    except TimeoutError:
        return None if ranks.is_root and arrived.all() else "raised before all had come"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        barrier()
    return "not raised" if ranks.is_root and ranks.size > 1 else None


def interrupted_early(ranks: Communicator, barrier: SharedBarrier) -> str | None:
    """The same in the first microseconds, many times; what is raised before the barrier begins is another matter."""
    arrived, _ = shared_array(ranks, (ranks.size,), np.dtype(np.int64))
    if ranks.is_root:
        signal.signal(signal.SIGALRM, too_late)
    seen = None
    for meeting in range(1, INTERRUPTIONS + 1 if ranks.size > 1 else 1):
        time.sleep(0.0005 * (ranks.rank == ranks.size - 1 > 0))
        arrived[ranks.rank] = meeting
        before = barrier.count
        try:
            if ranks.is_root:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + meeting % 40))
            barrier()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except TimeoutError:
            if barrier.count == before:
                barrier()
            elif not (arrived >= meeting).all():
                seen = f"raised early in meeting {meeting}"
        barrier()
    return seen


def main() -> None:
    ranks = start()
    barrier = shared_barrier(ranks)
    numbers, is_shared = shared_array(ranks, (ranks.size, WIDTH), np.dtype(np.int64))
    assert is_shared
    seen = "right"
    for meeting in range(MEETINGS):
        if meeting % ranks.size == ranks.rank:
            time.sleep(LATE.get(meeting - ranks.rank, 0.0))
        numbers[ranks.rank] = meeting
        barrier()
        if not (numbers == meeting).all():
            seen = f"{numbers.min(axis=1)} in meeting {meeting}"
        barrier()
    seen = interrupted(ranks, barrier) or interrupted_early(ranks, barrier) or seen
    # A message that needs its sender's help on the way, while that one already waits for its receiver.
    message = np.full(4_000_000, ranks.rank + 1.0)
    if ranks.is_root:
        sent = [MPI.COMM_WORLD.Isend(message, dest=rank) for rank in range(1, ranks.size)]
    else:
        MPI.COMM_WORLD.Recv(message, source=0)
    barrier()
    if ranks.is_root:
        MPI.Request.Waitall(sent)
    if not (message == 1).all():
        seen = "another message"
    sys.stdout.write(f"{seen}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
