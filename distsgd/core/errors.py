"""What a user can be told: each error is one sentence with what was expected, what came and what to do.

Rank 0 prints the sentence, every rank leaves with the error's `exit_status`. Anything that is not one of these is
a defect, of distsgd or of the user's own code, and shows its traceback.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

_LONGEST = 2000
"""Characters of a sentence. A file may bring a name of any length."""


def visible(text: str, *, lines: bool = False) -> str:
    """The text with what isn't printable escaped: a name may hold line ends, colours, or a terminal's commands.

    `lines`: line ends and tabs stay, for a traceback or a table.
    """
    kept = "\n\t" if lines else ""
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode("ascii") for c in text)


def one_line(text: str) -> str:
    """The text in one line, with what isn't printable escaped, and not too long."""
    shown = visible(text)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST // 2]} … {shown[-_LONGEST // 2 :]}"


def first_line(error: BaseException) -> str:
    """What an error of a library says first, or its name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class DistsgdError(Exception):
    """A problem that one sentence explains; the commands print it without a traceback."""

    exit_status = 1

    def __str__(self) -> str:
        return one_line(super().__str__())


class ConfigurationError(DistsgdError):
    """An option, a configuration file or a model doesn't make sense."""

    exit_status = 2


class UnknownNameError(ConfigurationError, KeyError):
    """There is no array of this name."""

    def __str__(self) -> str:
        return one_line(str(self.args[0]))  # a KeyError's own text is in quotation marks


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


class OutOfMemoryError(DistsgdError):
    """An array found no room."""


class UserCodeError(DistsgdError):
    """The user's own code raised; the message holds its traceback, and says where: for a model rank, step and
    microbatch.
    """

    def __str__(self) -> str:
        return visible(Exception.__str__(self), lines=True)

    @classmethod
    def here(cls, where: str) -> UserCodeError:
        """The exception that is being handled, as this error."""
        advice = MIXED_ADVICE if arrays_were_mixed(sys.exception()) else ""
        return cls(f"{where}:\n{traceback.format_exc().rstrip()}{advice}")


MIXED_ADVICE = (
    "\nAn array of NumPy met one of the GPU: make arrays with distsgd.core.device.array_module(batch.x), and copy "
    "others there once, with its asarray"
)

_REFUSED = ("Unsupported type <class 'numpy.", "expected cupy.", "Implicit conversion to a NumPy array")
"""What CuPy says of arrays of NumPy: in ufuncs, in products, and where it is to become one."""


def arrays_were_mixed(error: BaseException | None) -> bool:
    """Whether CuPy refused an array of NumPy, or to become one unasked."""
    return isinstance(error, TypeError) and any(words in str(error) for words in _REFUSED)


def lack_of_memory(error: BaseException, where: str) -> OutOfMemoryError | None:
    """The sentence of an array that found no room, on the host or on a GPU; None for any other error.

    What CuPy and CUDA raise is known by name, so that neither has to be there.
    """
    text = one_line(str(error)).rstrip(".")
    of_cuda = type(error).__name__ in ("CUDARuntimeError", "CUDADriverError") and "memory" in text.lower()
    if of_cuda or (isinstance(error, MemoryError) and type(error).__module__.startswith("cupy")):
        return OutOfMemoryError(
            f"{where}: the GPU is out of memory ({text}); use a smaller minibatch or model, more microbatches, which "
            "it computes one after the other, or fewer ranks that share it"
        )
    if isinstance(error, MemoryError):
        asked = f" ({text})" if text else ""
        return OutOfMemoryError(
            f"{where}: out of memory{asked}; use fewer ranks on a host, or a smaller model, minibatch or data set"
        )
    return None


RAISED_BY_USERS = (Exception, SystemExit)
"""What the user's own code may raise; sys.exit() on one rank would leave the others waiting."""


def users_error(error: BaseException, where: str) -> DistsgdError:
    """What the user's own code has raised, as it is being handled: a UserCodeError that begins with `where`, or one
    sentence where memory didn't suffice."""
    return lack_of_memory(error, where) or UserCodeError.here(where)


@contextmanager
def users_code(where: str) -> Iterator[None]:
    """What the user's own code raises inside becomes an error that begins with `where`."""
    try:
        yield
    except DistsgdError:
        raise
    except RAISED_BY_USERS as error:
        raise users_error(error, where) from None
