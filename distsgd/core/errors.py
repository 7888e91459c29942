"""The errors of distsgd: each is one sentence with what was expected, what came and what to do.

Rank 0 prints the sentence, and every rank exits with the error's `exit_status`. Any other exception is a defect, of
distsgd or of the user's own code, and shows its traceback.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

_LONGEST = 2000
"""Characters of a sentence. A file may contain a name of any length."""


def visible(text: str, *, lines: bool = False) -> str:
    """Escape characters that aren't printable: a name may contain line ends, colours, or a terminal's commands.

    `lines`: line ends and tabs stay, for a traceback or a table.
    """
    kept = "\n\t" if lines else ""
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode("ascii") for c in text)


def one_line(text: str) -> str:
    """The text in one line of limited length, with characters that aren't printable escaped."""
    shown = visible(text)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST // 2]} … {shown[-_LONGEST // 2 :]}"


def text_of(error: BaseException) -> str:
    """The error's message. The `__str__` of a user's class may itself raise: then a text that says so."""
    try:
        return str(error)
    except BaseException:
        return f"<{type(error).__name__}, whose __str__ failed>"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's class where the message is empty."""
    return (text_of(error).splitlines() or [type(error).__name__])[0]


def pip_install(extra: str) -> str:
    """The command that installs one of distsgd's extras into the environment of this process.

    Where distsgd is installed, from an index, a wheel or a checkout, pip takes that installation and adds what the
    extra needs; without one it must not ask an index for a package of that name.
    """
    import shlex
    import shutil
    from importlib.metadata import PackageNotFoundError, distribution
    from importlib.util import find_spec
    from pathlib import Path

    pip = "pip"
    if find_spec("pip") is None and shutil.which("uv"):
        pip = "uv pip"  # uv's environments hold no pip
    elif shutil.which("pip") != str(Path(sys.executable).with_name("pip")):  # it isn't active
        pip = f"{shlex.quote(sys.executable)} -m pip"
    try:
        distribution("distsgd")
    except PackageNotFoundError:
        return f"{pip} install -e {shlex.quote(f'{Path(__file__).parents[2]}[{extra}]')}"
    return f"{pip} install 'distsgd[{extra}]'"


class DistsgdError(Exception):
    """The base class of distsgd's errors: a problem that one sentence explains, printed without a traceback.

    Attributes
    ----------
    exit_status : int
        The commands' exit status after this error: 1 for a failure, 2 for a wrong use or input.
    """

    exit_status = 1

    def __str__(self) -> str:
        return one_line(super().__str__())


class ConfigurationError(DistsgdError):
    """An option, an argument, a configuration file or a model is invalid."""

    exit_status = 2


class UnknownNameError(ConfigurationError, KeyError):
    """There is no array of this name. Also a KeyError."""

    def __str__(self) -> str:
        return one_line(str(self.args[0]))  # a KeyError's own text is in quotation marks


class DataError(DistsgdError):
    """A data set can't be read, or contains values that can't be trained on."""

    exit_status = 2


class CheckpointError(DistsgdError):
    """A checkpoint is damaged, has another format, belongs to another run, or can't be written."""


class NoCheckpointError(CheckpointError):
    """There is no checkpoint at the path that was given."""

    exit_status = 2


class RunFolderError(DistsgdError):
    """The run folder can't be written, or holds a run with another configuration."""

    exit_status = 2


class OutputError(DistsgdError):
    """A file of a run that has begun can no longer be written."""


class LauncherError(DistsgdError):
    """The MPI launcher is missing, can't start ranks, or doesn't match the MPI library."""

    exit_status = 2


class NonFiniteError(DistsgdError):
    """A loss, a gradient or a parameter is NaN or infinite."""


class ReplicaError(DistsgdError):
    """Ranks that must have the same parameters or values differ."""


class OutOfMemoryError(DistsgdError, MemoryError):
    """An array doesn't fit in the free memory of the host or of the device. Also a MemoryError."""


class Interrupted(SystemExit):
    """A batch system's signal has stopped `fit` after a step, with a checkpoint: the same call continues.

    Raised on all ranks, where `fit` has a run folder and runs under a batch system or under the launch command. Where
    nothing catches it, the process leaves with exit status 75 and without a traceback. It is no `Exception`, as
    KeyboardInterrupt is none: a loop over fits that survives failures doesn't survive the request to stop.

    Parameters
    ----------
    text : str
        Which signal it was, and where the checkpoint is.

    Attributes
    ----------
    exit_status : int
        75.

    Examples
    --------
    >>> try:
    ...     raise Interrupted("stopped by SIGUSR1")
    ... except Interrupted as stop:
    ...     print(stop.exit_status, stop)
    75 stopped by SIGUSR1
    """

    exit_status = 75

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = self.exit_status


class UserCodeError(DistsgdError):
    """The user's own code raised an exception.

    The commands print this message: the traceback, and where the exception was raised, for a model the rank, the step
    and the microbatch. `fit` raises the exception itself, and this error on a rank that it can't be sent to.
    """

    error: BaseException | None = None
    """The user's exception: itself on the rank where it was raised, a copy on the others; None where none can be had"""
    where = ""
    """The beginning of the message."""
    is_copy = False
    """Whether another rank reports it."""

    def __str__(self) -> str:
        return visible(Exception.__str__(self), lines=True)

    def __reduce__(self) -> tuple[Any, ...]:
        # Ctrl-C is for the program of one process; to the others it is a message.
        has_copy = self.error is not None and not isinstance(self.error, KeyboardInterrupt)
        return _received, (self.args[0], self.where, _packed(self.error) if has_copy else None)

    @classmethod
    def here(cls, where: str) -> UserCodeError:
        """Turn the exception that is being handled into this error.

        Parameters
        ----------
        where : str
            The beginning of its message.

        Returns
        -------
        UserCodeError
            With the exception's traceback.
        """
        raised = sys.exception()
        advice = MIXED_ADVICE if arrays_were_mixed(raised) else ""
        found = cls(f"{where}:\n{traceback.format_exc().rstrip()}{advice}")
        found.error, found.where = raised, f"{where}{advice}"
        return found


def as_raised(caught: UserCodeError) -> BaseException:
    """The user's exception, with a note of where it was raised; `caught` itself where there is no copy of it."""
    error = caught.error
    if error is None:
        return caught
    note = f"distsgd: {caught.where}"
    with suppress(BaseException):  # of a class that refuses attributes in a way of its own
        notes = vars(error).setdefault("__notes__", [])  # add_note would call the class's __setattr__
        if note not in notes:
            notes.append(note)
    if error.__traceback__ is None:
        cause = UserCodeError(caught.args[0])  # the text of its traceback, which isn't sent
        BaseException.__setattr__(error, "__cause__", cause)
    return error


def _take_object(first: UserCodeError, own: UserCodeError) -> None:
    """Take this rank's own object of the same exception, which needs no copy."""
    if first.args[0].splitlines()[-1] == own.args[0].splitlines()[-1]:
        first.error, own.error = own.error, None


def _packed(error: BaseException | None) -> bytes | None:
    """The pickled exception; None where it can't be sent."""
    import pickle

    try:
        packed = pickle.dumps(error)
        return packed if type(pickle.loads(packed)) is type(error) else None
    except BaseException:  # of the class's own __reduce__: another rank waits for this message
        return None


def _received(text: str, where: str, packed: bytes | None) -> UserCodeError:
    """A UserCodeError of another rank. The ranks of one job trust each other, and send objects by pickle anyway."""
    import pickle

    found = UserCodeError(text)
    found.where, found.is_copy = where, True
    try:
        error = None if packed is None else pickle.loads(packed)
        found.error = error if isinstance(error, BaseException) else None
        if isinstance(error, SystemExit) and not isinstance(error.code, int | None):
            error.code = 1  # its text is printed where it was raised
    except BaseException:  # such as a class that this rank doesn't have
        found.error = None
    return found


def raise_first(errors: Sequence[DistsgdError | None], own: DistsgdError | None, rank: int) -> None:
    """Raise the error of the lowest rank that has one, where one has; `own` is this rank's, number `rank`.

    Where the user's exception was raised here as well, this rank raises its own object.
    """
    lowest = next((number for number, error in enumerate(errors) if error is not None), None)
    if lowest is None:
        return
    first = own if lowest == rank and own is not None else errors[lowest]
    assert first is not None
    if first is not own and isinstance(first, UserCodeError) and isinstance(own, UserCodeError):
        _take_object(first, own)
    raise first


MIXED_ADVICE = (
    "\nAn array of NumPy met one of the GPU: make arrays with distsgd.nn.array_module(batch.x), and copy "
    "others there once, with its asarray"
)

_REFUSED = ("Unsupported type <class 'numpy.", "expected cupy.", "Implicit conversion to a NumPy array")
"""CuPy's messages about NumPy arrays: in ufuncs, in products, and on a conversion to one."""


def arrays_were_mixed(error: BaseException | None) -> bool:
    """Whether CuPy refused a NumPy array, or an implicit conversion to one."""
    return isinstance(error, TypeError) and any(words in text_of(error) for words in _REFUSED)


def lack_of_memory(error: BaseException, where: str) -> OutOfMemoryError | None:
    """The error for an array that doesn't fit in memory, on the host or on a GPU; None for any other error.

    Errors of CuPy and CUDA are identified by name, so that neither has to be installed.
    """
    text = one_line(text_of(error)).rstrip(".")
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


REPORTED_ONLY = (Exception, SystemExit)
"""Exceptions of the user's own code that are printed, where no rank waits and the run continues. Ctrl-C ends it."""


def users_error(error: BaseException, where: str) -> DistsgdError:
    """The error for the user's exception that is being handled: an OutOfMemoryError, or a UserCodeError whose message
    begins with `where`."""
    return lack_of_memory(error, where) or UserCodeError.here(where)


@contextmanager
def users_code(where: str) -> Iterator[None]:
    """Turn exceptions of the user's own code inside into errors whose messages begin with `where`.

    All of them: after a KeyboardInterrupt or a sys.exit() on one rank the others would wait for it.
    """
    try:
        yield
    except DistsgdError:
        raise
    except BaseException as error:
        raise users_error(error, where) from None
