"""Notices parameters whose gradient a user's function or layer doesn't write."""

from __future__ import annotations

import sys
from typing import final

from distsgd.core.device import to_host
from distsgd.core.layout import Views
from distsgd.core.output import say
from distsgd.parallel.communicator import Communicator


@final
class ZeroGradients:
    """The names of the parameters whose gradient was zero in every microbatch so far: a line reports them.

    What is looked at is the value. Whether a function writes a view can't be seen without changing what it finds there:
    a mark in place of zero would spoil `grads["w"] += …`. So the line says what is certain: the gradient is zero for
    every example of a minibatch. That is right for some models, such as one whose last layer starts at zero.
    """

    def __init__(self, names: set[str]) -> None:
        self._names = names

    def look(self, grads: Views) -> None:
        """Takes note of one microbatch's gradient."""
        self._names.difference_update([name for name in tuple(self._names) if to_host(grads[name]).any()])

    def report(self, communicator: Communicator) -> None:
        """Rank 0 prints the names that are left on all ranks. Collective."""
        left = set.intersection(*communicator.allgather_object(self._names))
        if left and communicator.is_root:
            say(
                f"note: the gradient of {', '.join(sorted(left))} is zero for every example of the first minibatch; "
                "write it in grads where that isn't what you mean, or name what isn't trained with freeze",
                sys.stderr,
            )
