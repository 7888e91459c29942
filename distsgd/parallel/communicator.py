"""The communicator's interface: a group of ranks, collectives of objects, and agreement on errors."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

from distsgd.core.errors import DistsgdError, raise_first, users_code
from distsgd.core.status_table import Heartbeat, private_heartbeat
from distsgd.parallel.transport import Transport

T = TypeVar("T")


class Communicator(ABC):
    """A group of ranks.

    All ranks call each collective, in the same order. Methods whose names end in `_object` pickle what they send: use
    them for small objects, between processes of one run.

    Attributes
    ----------
    rank : int
        The number of this process in the group, from 0 to `size - 1`.
    size : int
        The number of ranks.
    hosts : tuple of str
        The host name of each rank.
    is_root : bool
        Whether this is rank 0.
    transport : Transport
        Sends flat arrays of the host's memory between these ranks.
    """

    rank: int
    size: int
    hosts: tuple[str, ...]
    transport: Transport
    heartbeat: Heartbeat = private_heartbeat()
    """Reports to the watchdog what this rank does; without a watchdog no code reads it."""
    in_use: threading.Lock | None = None
    """Held by the fit that uses these ranks; None where nothing is sent: then several fits may use them at once."""

    def watch(self, limit: float, stacks: bool = False) -> None:  # noqa: B027 (one rank waits for no other)
        """End the job when a rank waits for over `limit` seconds, 0 for never; `stacks`: print all stacks first."""

    @abstractmethod
    def broadcast_object(self, value: T) -> T:
        """Return rank 0's value, on every rank.

        Parameters
        ----------
        value
            Any object that can be pickled; only rank 0's is sent.
        """

    @abstractmethod
    def allgather_object(self, value: T) -> list[T]:
        """Return every rank's value as a list in rank order, on every rank.

        Parameters
        ----------
        value
            Any object that can be pickled.
        """

    @abstractmethod
    def gather_object(self, value: T) -> list[T] | None:
        """Return every rank's value as a list in rank order on rank 0, and None on the other ranks.

        Parameters
        ----------
        value
            Any object that can be pickled.
        """

    @abstractmethod
    def barrier(self) -> None:
        """Wait until all ranks have entered the barrier."""

    def progress(self) -> None:  # noqa: B027 (nothing is on its way)
        """Let messages travel on that this rank has begun to send, while it waits for another rank elsewhere."""

    @abstractmethod
    def node(self) -> Communicator:
        """Return the communicator of the ranks on this rank's host, in rank order. Collective."""

    @abstractmethod
    def abort(self, status: int) -> None:
        """End all ranks at once with this exit status."""

    @property
    def is_root(self) -> bool:
        """Whether this is rank 0, which decides, writes and prints."""
        return self.rank == 0

    def on_root(self, function: Callable[[], T]) -> T:
        """Call a function on rank 0, and return its result on every rank. Collective.

        Parameters
        ----------
        function
            Called without arguments, on rank 0 alone. Its result can be pickled.

        Raises
        ------
        DistsgdError
            What the function raises, on every rank: a DistsgdError unchanged, any other exception as a UserCodeError
            with its traceback.
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
        """Call a function on every rank, and return each rank's own result. Collective.

        Raises
        ------
        DistsgdError
            What the lowest rank that failed raises, on every rank; see `on_root`.
        """
        value: Any = None
        error: DistsgdError | None = None
        try:
            with users_code(f"rank {self.rank} on {self.hosts[self.rank]} failed"):
                value = function()
        except DistsgdError as raised:
            error = raised
        raise_first(self.allgather_object(error), error, self.rank)
        return value  # type: ignore[no-any-return]
