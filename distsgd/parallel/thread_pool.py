"""The threads of one rank, which compute its microbatches concurrently: NumPy releases the interpreter lock in large
operations.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import copy

from distsgd.core.components import Component, not_thread_safe

WORK_THAT_PAYS = 30_000_000
"""Floating-point operations per microbatch above which a second thread saves time: on 2 cores, a microbatch of 1.5 ms
gains, one of 0.05 ms loses.
"""


def worker_count(threads: int, microbatches: int, multiply_adds: int, examples_per_microbatch: int) -> int:
    """How many threads should share a rank's microbatches: at most one each, and one in all where they are small.

    `multiply_adds` are those of forward, for one example.
    """
    # 2 each for the output, the gradient of the input and the gradient of the weights.
    work = 6 * multiply_adds * examples_per_microbatch
    return max(1, min(threads, microbatches)) if work >= WORK_THAT_PAYS else 1


class Workers:
    """`count` workers that run the same function at the same time, worker 0 in the calling thread."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count - 1, thread_name_prefix="distsgd-microbatch") if count > 1 else None

    def run(self, function: Callable[[int], None]) -> None:
        """Call function(worker) on all workers, wait for all, and raise the first worker's exception."""
        others = [self._pool.submit(function, worker) for worker in range(1, self.count)] if self._pool else []
        try:
            function(0)
        finally:
            for future in others:
                future.exception()  # waits
        for future in others:
            future.result()

    def that_may_call(self, *components: Component) -> Workers:
        """These workers, or worker 0 alone where one of the components doesn't declare `thread_safe`.

        One thread, rather than a lock: calls come in the same order in every run, and from the thread that runs the
        user's own code. The bits don't depend on which worker computes what.
        """
        if self.count == 1 or not not_thread_safe(*components):
            return self
        alone = copy(self)
        alone.count = 1
        return alone

    def note(self, *components: Component) -> str | None:
        """A line that names the components that only one worker may call, where there are any."""
        names = not_thread_safe(*components)
        if self.count == 1 or not names:
            return None
        return (
            f"note: only one of the {self.count} threads of a rank calls {', '.join(names)}; declare thread_safe=True "
            "where several may call it at the same time, or start more ranks"
        )

    def close(self) -> None:
        """Ends the threads."""
        if self._pool is not None:
            self._pool.shutdown()
