"""What a user can be told: each error is one sentence with what was expected, what came and what to do.

Rank 0 prints the sentence, every rank leaves with the error's `exit_status`. Anything that is not one of these is
a defect, of distsgd or of the user's own code, and shows its traceback.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class DistsgdError(Exception):
    """A problem that one sentence explains; the commands print it without a traceback."""

    exit_status = 1


class ConfigurationError(DistsgdError):
    """An option, a configuration file or a model doesn't make sense."""

    exit_status = 2


class DataError(DistsgdError):
    """A data set can't be read, or holds what can't be trained on."""

    exit_status = 2


class CheckpointError(DistsgdError):
    """A checkpoint is damaged, of another format, or belongs to another run."""


class RunFolderError(DistsgdError):
    """The run folder can't be written, or holds a run with another configuration."""

    exit_status = 2


class OutputError(DistsgdError):
    """A file of a run that was begun can no longer be written."""


class LauncherError(DistsgdError):
    """The MPI launcher and the MPI library don't fit together."""

    exit_status = 2


class NonFiniteError(DistsgdError):
    """Loss, gradient or parameters became NaN or infinite."""


class ReplicaError(DistsgdError):
    """Ranks that should hold the same numbers don't."""


class LaneError(DistsgdError):
    """The user's own code raised; the message holds its traceback, and says where: for a model rank, step and lane."""

    @classmethod
    def here(cls, where: str) -> LaneError:
        """The exception that is being handled, as this error."""
        return cls(f"{where}:\n{traceback.format_exc().rstrip()}")


RAISED_BY_USERS = (Exception, SystemExit)
"""What the user's own code may raise; sys.exit() on one rank would leave the others waiting."""


@contextmanager
def users_code(where: str) -> Iterator[None]:
    """What the user's own code raises inside becomes a LaneError that begins with `where`."""
    try:
        yield
    except DistsgdError:
        raise
    except RAISED_BY_USERS:
        raise LaneError.here(where) from None
