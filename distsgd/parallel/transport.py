"""The transport's interface: collectives of flat arrays, without pickling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from distsgd.core.device import Array


@dataclass(frozen=True)
class Parts:
    """The slices of a buffer, one for each rank. Made once: making thousands of slices takes time."""

    counts: tuple[int, ...]
    starts: tuple[int, ...]

    def __getitem__(self, rank: int) -> slice:
        return slice(self.starts[rank], self.starts[rank] + self.counts[rank])

    @property
    def end(self) -> int:
        """The end of the last slice, where slices are consecutive."""
        return self.starts[-1] + self.counts[-1]

    @classmethod
    def consecutive(cls, counts: Iterable[int]) -> Parts:
        """Consecutive slices of these lengths."""
        lengths = tuple(counts)
        return cls(lengths, tuple(accumulate(lengths[:-1], initial=0)))


class Transport(ABC):
    """Sends flat arrays between the ranks of a communicator.

    All ranks call each collective, in the same order. A communicator's own transport sends arrays of the host's memory;
    ranks on other devices have another one for arrays there.

    Attributes
    ----------
    description : str
        How arrays travel between devices, for a message; empty where they don't.
    is_asynchronous : bool
        Whether collectives return before the arrays have arrived, and run without the host.
    mpi : mpi4py.MPI.Comm or None
        What sends in the end; None where that isn't MPI.
    """

    description: str = ""
    is_asynchronous: bool = False
    mpi: Any = None

    @abstractmethod
    def broadcast(self, array: Array) -> None:
        """Overwrite `array` with rank 0's, which has the same shape and dtype."""

    @abstractmethod
    def alltoall(self, send: Array, sent: Parts, receive: Array, received: Parts) -> None:
        """Send different bytes to each rank.

        Parameters
        ----------
        send, sent
            Rank r receives the bytes `sent[r]` of `send`. These slices may be empty, and may overlap.
        receive, received
            What rank r sends here is written into the bytes `received[r]` of `receive`.
        """

    @abstractmethod
    def allgather_slices(self, flat: Array, counts: Sequence[int]) -> None:
        """Fill in place the slices of `flat` that other ranks own; rank r owns the next `counts[r]` elements."""

    def launched(self) -> None:  # noqa: B027 (only an asynchronous transport has something to do)
        """Note that a recorded step has launched messages; see `synchronize`."""

    def synchronize(self) -> None:  # noqa: B027
        """Wait until all arrays have arrived, where collectives are asynchronous.

        This rank has no work of its own queued after the messages, so that the watchdog knows which ranks it waits for.
        """

    def channels(self, heartbeat: Any) -> Any:
        """`Channels` for messages that end later, whose waits this heartbeat shows; None where there are none."""
        return None

    def close(self) -> None:  # noqa: B027
        """Release what this rank holds for arrays on its device."""
