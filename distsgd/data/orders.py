"""The order in which an epoch visits its examples, where it isn't the one that `sampling` makes by sorting."""

from __future__ import annotations

from abc import ABC, abstractmethod

from distsgd.core.device import Array


class Order(ABC):
    """Which examples an epoch visits, and in which order: a pure function, so that every rank computes the same."""

    @abstractmethod
    def indices(self, epoch: int, start: int, stop: int) -> Array:
        """What the epoch visits from place `start` to before place `stop`.

        Parameters
        ----------
        epoch, start, stop : int
            Counted from 0; epochs and places may be asked for in any order.

        Returns
        -------
        array
            Positions (stop - start,) in the training set, integers.
        """
