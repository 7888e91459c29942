"""What ranks need from each other: a few collectives, and agreement on errors. One implementation a file."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError, DistsgdError, users_code

T = TypeVar("T")


@dataclass(frozen=True)
class Parts:
    """Where the parts of a buffer lie, one a rank, in bytes. Kept, for making thousands of them takes time."""

    counts: tuple[int, ...]
    starts: tuple[int, ...]

    def __getitem__(self, rank: int) -> slice:
        return slice(self.starts[rank], self.starts[rank] + self.counts[rank])

    @property
    def end(self) -> int:
        """Where the last one ends, of parts that lie behind each other."""
        return self.starts[-1] + self.counts[-1]

    @classmethod
    def consecutive(cls, counts: Iterable[int]) -> Parts:
        """Parts of these lengths."""
        lengths = tuple(counts)
        return cls(lengths, tuple(accumulate(lengths[:-1], initial=0)))

    @classmethod
    def of(cls, parts: Iterable[slice]) -> Parts:
        """Parts that lie anywhere."""
        spans = [(part.stop - part.start, part.start) for part in parts]
        return cls(tuple(count for count, _ in spans), tuple(start for _, start in spans))


class Watched:
    """What the watchdog is told; where there is none, as here, nobody listens."""

    def enter(self, collective: int) -> None:
        """This rank enters a collective that isn't a method of its communicator."""

    def exit(self) -> None:
        """This rank has left it."""

    def set_phase(self, phase: int, step: int = 0) -> None:
        """This rank begins something else."""

    def progressed(self) -> None:
        """This rank has done a piece of its work, such as a chunk of examples: the others may wait on."""

    def watch(self, limit: float, stacks: bool = False) -> None:
        """From now on waiting for more than `limit` seconds ends the job, 0 for never; `stacks` prints all first."""


class Communicator(Watched, ABC):
    """A group of ranks. Collectives are called by all of them, in the same order.

    Names that end in `_object` pickle what they send: for small things, between processes of one run.
    """

    rank: int
    size: int
    hosts: tuple[str, ...]
    """The host name of each rank."""
    way: str = ""
    """How arrays of GPUs travel, in words; empty where there are none."""
    in_use: threading.Lock | None = None
    """Held by the fit that uses these ranks; None where nothing is sent, so that several may."""

    @contextmanager
    def used_by_one_fit(self) -> Iterator[None]:
        """Inside, no other fit of this process uses these ranks. Raises ConfigurationError where one does."""
        if self.in_use is None:
            yield
            return
        if not self.in_use.acquire(blocking=False):
            raise ConfigurationError(
                "fit: another fit is in flight on these ranks, and the messages of two would mix; call one when the "
                "other has returned, on all ranks in the same order"
            )
        try:
            yield
        finally:
            self.in_use.release()

    @abstractmethod
    def broadcast_object(self, value: T) -> T:
        """Rank 0's value, on every rank."""

    @abstractmethod
    def allgather_object(self, value: T) -> list[T]:
        """Every rank's value, in rank order, on every rank."""

    @abstractmethod
    def gather_object(self, value: T) -> list[T] | None:
        """Every rank's value, in rank order, on rank 0; None elsewhere."""

    @abstractmethod
    def broadcast(self, array: Array) -> None:
        """Overwrites `array` with rank 0's."""

    @abstractmethod
    def alltoall(self, send: Array, sent: Parts, receive: Array, received: Parts) -> None:
        """Sends rank r the bytes `sent[r]` of `send`, and puts what it sends here into the bytes `received[r]` of
        `receive`. Parts may be empty, and parts that are sent may overlap."""

    @abstractmethod
    def allgather_slices(self, flat: Array, counts: Sequence[int]) -> None:
        """`flat` is cut in rank order into `counts` elements; fills in place what the other ranks own."""

    def gather_slices(self, part: Array, counts: Sequence[int], whole: Array | None) -> None:
        """Fills rank 0's `whole` (None elsewhere) with all ranks' parts, of so many elements each, in rank order."""
        parts = self.gather_object(part)
        if parts is not None:
            np.concatenate(parts, out=whole)

    @abstractmethod
    def barrier(self) -> None:
        """Waits for all ranks."""

    is_asynchronous: bool = False
    """Whether arrays travel on a GPU's stream, so that the host neither waits nor has to be there."""

    def launched(self) -> None:
        """Messages were launched with a graph; see `synchronize`."""

    def synchronize(self) -> None:
        """Waits until what was sent has arrived, where a collective returns before that; to be called with no work of
        this rank's own behind it, so that the watchdog knows whom it waits for."""

    def close(self) -> None:
        """Ends what this rank holds for arrays on a GPU; none are sent any more, and all else goes on."""

    def takes_gpu_memory(self) -> bool | None:
        """Whether arrays on a GPU can be sent as they are; None where the library doesn't say."""
        return None

    @abstractmethod
    def node(self) -> Communicator:
        """The ranks on this rank's host, in rank order. Collective."""

    @abstractmethod
    def abort(self, status: int) -> None:
        """Ends all ranks at once."""

    @property
    def is_root(self) -> bool:
        """Whether this is rank 0, which decides, writes and prints."""
        return self.rank == 0

    def on_root(self, function: Callable[[], T]) -> T:
        """function()'s result from rank 0, on every rank; what it raises is raised on every rank.

        A DistsgdError comes as it is, anything else as a UserCodeError with its traceback.
        """
        outcome: tuple[Any, DistsgdError | None] = (None, None)
        if self.is_root:
            try:
                with users_code("rank 0 failed"):
                    outcome = (function(), None)
            except DistsgdError as error:
                outcome = (None, error)
        value, problem = self.broadcast_object(outcome)
        if problem is not None:
            raise problem
        return value  # type: ignore[no-any-return]

    def everywhere(self, function: Callable[[], T]) -> T:
        """function()'s result on each rank; what any rank raises is raised on all, the lowest rank's; see on_root."""
        value: Any = None
        error: DistsgdError | None = None
        try:
            with users_code(f"rank {self.rank} on {self.hosts[self.rank]} failed"):
                value = function()
        except DistsgdError as raised:
            error = raised
        for other in self.allgather_object(error):
            if other is not None:
                raise other
        return value  # type: ignore[no-any-return]
