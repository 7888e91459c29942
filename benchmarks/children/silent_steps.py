"""Times steps of distsgd as `distsgd_steps` does, on ranks of several hosts whose gradients and parameters go nowhere.

Flags and losses travel, for without them no step can end.
"""

from __future__ import annotations

from typing import Any

from distsgd.core import runtime

runtime.prepare_alone()

from distsgd.parallel.channels import MPIChannels  # noqa: E402


class Silent:
    """A message that is never in flight. What would arrive stays zero, or what it was."""

    def Start(self) -> None:  # noqa: N802
        """Sends nothing."""

    def Test(self) -> bool:  # noqa: N802
        """It isn't in flight."""
        return True

    def Free(self) -> None:  # noqa: N802
        """Holds nothing."""


def silent(*_: Any) -> Silent:
    """Takes the place of `MPIChannels.send` and `receive`."""
    return Silent()


MPIChannels.send = MPIChannels.receive = silent  # type: ignore[method-assign, assignment]

import benchmarks.children.distsgd_steps  # noqa: E402, F401
