"""A barrier of the ranks of one host: each counts in shared memory at how many it has been."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary, proxy, ref

import numpy as np

from distsgd.core.runtime import affinity
from distsgd.core.status_table import Collective
from distsgd.parallel.communicator import Communicator
from distsgd.parallel.shared_memory import shared_array

IN_ORDER = ("x86_64", "AMD64", "i386", "i686")
"""Processors on which others see what one stores in the order in which it stores it."""
_LINE = 8
"""int64 words from one rank's count to the next: a line of the cache for each."""
_LOOKS = 50
"""How often a rank looks, without a pause, whether another has come: for some microseconds."""
_YIELDS = (0.0001, 0.002)
"""Seconds that it then looks and lets other threads run in between: where cores are few, and where all have one."""
_PAUSES = (0.00002, 0.00025)
"""Seconds that it sleeps from then on before it looks again: at first, and at most."""
_MOST = 32
"""Ranks up to which each looks at each: MPI's barrier grows with the logarithm of their number."""
_yield: Callable[[], object] = getattr(os, "sched_yield", lambda: time.sleep(0))
_BARRIER = int(Collective.BARRIER)


_barriers: WeakKeyDictionary[Communicator, ref[SharedBarrier]] = WeakKeyDictionary()
"""Those that are in use: their memory is freed with what uses them, also where a communicator leads to its user."""


def has_core_each(masks: Sequence[tuple[int, ...]], others: int = 0) -> bool:
    """Whether the processors that ranks may run on are enough for them, and for so many other threads."""
    return len({core for mask in masks for core in mask}) >= len(masks) + others


def shared_barrier(communicator: Communicator, others: int = 0) -> SharedBarrier:
    """The barrier of these ranks: one for all that they do, so that ranks with different things to do meet there, too.

    Collective.

    Parameters
    ----------
    communicator
        The ranks, all on one host.
    others
        Threads of the host that compute beside the ranks. Where there are not enough cores, ranks that wait sleep.
    """
    barrier = _barriers[communicator]() if communicator in _barriers else None
    counts = communicator.allgather_object(-1 if barrier is None else barrier.count)
    if barrier is None or min(counts) < 0:  # a rank may have freed it before others
        barrier = SharedBarrier(communicator)
        _barriers[communicator] = ref(barrier)
    else:
        barrier.count_from(max(counts))
    barrier.share_cores_with(others)
    return barrier


class SharedBarrier:
    """Called by all ranks of a host, it returns when all have called it.

    What a rank has stored before, the others see afterwards. Where processors don't promise that for plain stores,
    where memory can't be shared, and among many ranks, it is the communicator's own barrier. What a signal's handler
    raises within the barrier is raised when all ranks have come, so that all have called it as often.
    """

    def __init__(self, communicator: Communicator) -> None:
        self._communicator = proxy(communicator)  # or neither would be freed
        words, is_shared = shared_array(communicator, (communicator.size, _LINE), np.dtype(np.int64))
        known = communicator.allgather_object((affinity(), platform.machine() in IN_ORDER))
        self._masks = [mask for mask, _ in known]
        self._own: memoryview | None = None
        self._yields, self.count, self._asks = 0.0, 0, False
        if is_shared and len(known) <= _MOST and all(in_order for _, in_order in known):
            counts = [memoryview(line[:1]) for line in words]
            self._own = counts.pop(communicator.rank)
            self._others = counts
        self.enter, self.exit = communicator.heartbeat.enter, communicator.heartbeat.exit

    def share_cores_with(self, others: int) -> None:
        """From now on so many threads compute beside the ranks."""
        self._yields = _YIELDS[has_core_each(self._masks, others)]

    def count_from(self, count: int) -> None:
        """All ranks have come so often: one of them may have left the barrier early, with an error."""
        self.count = count
        if self._own is not None:
            self._own[0] = count

    def __call__(self) -> None:
        """Waits for all ranks."""
        if self._own is None:
            self._communicator.barrier()
            return
        self.enter(_BARRIER)
        raised: BaseException | None = None
        try:
            self.count += 1
            while True:
                try:
                    self._own[0] = self.count
                    if self._have_come():
                        break
                    self._wait()
                except BaseException as error:
                    if self._asks:
                        self._asks = False
                        raise
                    raised = error
        finally:
            self.exit()
        if raised is not None:
            raise raised

    def _have_come(self) -> bool:
        """Whether all are here, after some looks without a pause."""
        count = self.count
        for other in self._others:
            for _ in range(_LOOKS):
                if other[0] >= count:
                    break
            else:
                return False
        return True

    def _wait(self) -> None:
        """Until all are here, or a signal's handler raises."""
        began = time.perf_counter()
        while time.perf_counter() - began < self._yields:
            if self._have_come():
                return
            _yield()
        pause = _PAUSES[0]
        while not self._have_come():
            time.sleep(pause)
            pause = min(1.2 * pause, _PAUSES[1])
            if pause == _PAUSES[1]:
                self._asks = True
                self._communicator.progress()
                self._asks = False
