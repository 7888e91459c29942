"""NumPy arrays out of a pickle, and little else: no name in the file is ever imported, none of its calls is made.

The pickle machine is Python's own, cut down to the opcodes that plain arrays need; the few NumPy names they refer to
stand for functions of this module. So a file made to harm meets no code but this.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import DataError
from distsgd.data.sources.streams import Stream

_CONTROL_AND_NUMBERS = (
    pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.DUP, pickle.NONE, pickle.NEWTRUE,
    pickle.NEWFALSE, pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG, pickle.LONG1,
    pickle.LONG4,
)  # fmt: skip
_BYTES = (
    pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.BINBYTES, pickle.SHORT_BINBYTES,
    pickle.BINBYTES8, pickle.BYTEARRAY8,
)  # fmt: skip
_TEXT_AND_SEQUENCES = (
    pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8, pickle.TUPLE,
    pickle.EMPTY_TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.LIST, pickle.EMPTY_LIST,
)  # fmt: skip
_CALLS_AND_MEMO = (
    pickle.APPEND, pickle.APPENDS, pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE, pickle.BUILD, pickle.PUT,
    pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.GET, pickle.BINGET, pickle.LONG_BINGET,
)  # fmt: skip
_DICTS = (pickle.DICT, pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS)
_OPCODES = frozenset((*_CONTROL_AND_NUMBERS, *_BYTES, *_TEXT_AND_SEQUENCES, *_CALLS_AND_MEMO))
_OPCODE_LIMIT = 250_000
"""Instructions of the pickle machine. 10,000 labels and file names, as a part of CIFAR-10 has, take 70,000."""
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")


class _Dtype:
    """Stands for numpy.dtype: called with its text, then given the byte order."""

    __slots__ = ("dtype",)

    def __init__(self, text: object, *_: object) -> None:
        if not isinstance(text, str) or not _DTYPE.fullmatch(text):
            raise ValueError(f"an array of {text!r}, not of integers or floats")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise ValueError("a dtype without a byte order")
        self.dtype = self.dtype.newbyteorder(order)


class _PickledArray:
    """Stands for an array: empty at first, then given (version, shape, dtype, Fortran order, data)."""

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array: Array | None = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("an array without shape, dtype and data")
        _, shape, dtype, fortran, data = state
        self.array = _array(data, dtype, shape, bool(fortran))


def _array(data: object, dtype: object, shape: object, fortran: bool) -> Array:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray) or not isinstance(shape, tuple):
        raise ValueError("an array without shape, dtype and data")
    if not all(isinstance(n, int) and n >= 0 for n in shape) or len(shape) > 8:
        raise ValueError(f"an array of shape {shape}")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: object) -> _PickledArray:
    return _PickledArray()


def _ndarray(*_: object) -> None:
    raise ValueError("a call of numpy.ndarray")


def _frombuffer(data: object, dtype: object, shape: object, order: object) -> _PickledArray:
    found = _PickledArray()
    found.array = _array(data, dtype, shape, order == "F")
    return found


_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _ndarray,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
}


class _LimitedReader:
    """The file as the pickle machine sees it: no more than `limit` bytes in all, whatever a length field holds."""

    def __init__(self, stream: Stream, limit: int, where: str) -> None:
        self._stream, self._left, self.limit, self._where = stream, limit, limit, where

    def read(self, count: int) -> bytes:
        if count > self._left:
            raise self._too_long()
        found = self._stream.read(count)
        self._left -= len(found)
        return found

    def readline(self) -> bytes:
        found = self._stream.readline(self._left + 1)
        self._left -= len(found)
        if self._left < 0:
            raise self._too_long()
        return found

    def _too_long(self) -> DataError:
        return DataError(
            f"{self._where}: expected a whole pickle of at most {self.limit} bytes, it says more; make it again, or "
            "use .npz"
        )


class _Counted(dict[int, Callable[[Any], None]]):
    """What the machine does for each opcode, for so many of them: a few bytes of gzip can hold a billion."""

    def __init__(self, does: dict[int, Callable[[Any], None]], where: str) -> None:
        super().__init__(does)
        self._left, self._where = _OPCODE_LIMIT, where

    def __getitem__(self, code: int) -> Callable[[Any], None]:
        self._left -= 1
        if self._left < 0:
            raise DataError(
                f"{self._where}: expected a pickle of at most {_OPCODE_LIMIT} instructions, as arrays need; use .npz"
            )
        return super().__getitem__(code)


def _load_bytearray8(machine: Any) -> None:
    # The inherited one makes a buffer of the promised length before it reads.
    (length,) = struct.unpack("<Q", machine.read(8))
    machine.append(machine.read(length))


def _load_frame(machine: Any) -> None:
    # The inherited one reads the whole frame into memory, twice; a frame is nothing but a hint to do so.
    machine.read(8)


def _load_build(machine: Any) -> None:
    # The inherited one sets attributes of anything on the stack, of this module's functions too.
    state = machine.stack.pop()
    if not isinstance(machine.stack[-1], _Dtype | _PickledArray):
        raise ValueError("a state of something that isn't an array")
    if isinstance(state, tuple) and state and isinstance(state[-1], str):
        # Python 3 reads a Python-2 string as text: one character, Latin-1, is one byte. (Of a dtype it is the flags.)
        state = (*state[:-1], machine.encode(state[-1]))
    machine.stack[-1].__setstate__(state)


def _dispatch(opcodes: Collection[bytes]) -> dict[int, Callable[[Any], None]]:
    """What the pickle machine does for each of these opcodes."""
    inherited = {code: does for code, does in pickle._Unpickler.dispatch.items() if bytes([code]) in opcodes}
    own = {pickle.BYTEARRAY8[0]: _load_bytearray8, pickle.BUILD[0]: _load_build, pickle.FRAME[0]: _load_frame}
    return inherited | own


class _ArrayUnpickler(pickle._Unpickler):
    """Python's pickle machine (the one written in Python: its memo is a dict, so a huge index costs nothing)."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = _dispatch(_OPCODES)

    def __init__(self, reader: _LimitedReader, where: str) -> None:
        super().__init__(reader, encoding="latin1")
        self._where, self._text_left = where, reader.limit
        self.dispatch = _Counted(type(self).dispatch, where)  # type: ignore[misc]

    def find_class(self, module: str, name: str) -> Any:
        found = self.encode if (module, name) == ("_codecs", "encode") else _ADMITTED.get((module, name))
        if found is None:
            called = f"{module}.{name}"[:100]
            raise DataError(
                f"{self._where}: expected a pickle of NumPy arrays alone, it calls for {called!r}; "
                "don't trust this file, and save the arrays with numpy.savez"
            )
        return found

    def encode(self, text: object, encoding: object = "latin1") -> bytes:
        """Text of one byte a character as these bytes: how protocols 0 to 2 store bytes, and Python 2 everything."""
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise ValueError("text in another encoding than Latin-1")
        self._text_left -= len(text)  # the same text again and again is no more bytes in the file, but in memory
        if self._text_left < 0:
            raise ValueError("more bytes than are in the file")
        return text.encode("latin-1")


class _ColumnsUnpickler(_ArrayUnpickler):
    """The same with dicts."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = _dispatch((*_OPCODES, *_DICTS))


def unpickle_arrays(stream: Stream, limit: int, where: str) -> object:
    """The arrays, in nested tuples (lists become tuples), of the pickle in `stream`, of at most `limit` bytes.

    Raises DataError for anything else in it; it names the first global that isn't admitted.
    """
    with _damage(where):
        return _unwrap(_ArrayUnpickler(_LimitedReader(stream, limit, where), where).load(), depth=0)


def unpickle_columns(stream: Stream, limit: int, where: str) -> dict[str, Array | list[int]]:
    """The arrays and the lists of whole numbers, by name, of a pickled dict of at most `limit` bytes.

    Text and lists of text in it are skipped. Raises DataError for anything else.
    """
    with _damage(where):
        found = _ColumnsUnpickler(_LimitedReader(stream, limit, where), where).load()
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__} where a dict was expected")
        columns = {_name(key): _column(value) for key, value in found.items()}
        return {name: column for name, column in columns.items() if column is not None}


@contextmanager
def _damage(where: str) -> Iterator[None]:
    """Turns what bytes made to harm raise in the machine, which is nearly anything, into a DataError."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except KeyError as problem:
        raise DataError(f"{where}: expected a pickle of NumPy arrays alone, got other objects; use .npz") from problem
    except Exception as problem:
        reason = str(problem) or type(problem).__name__
        raise DataError(f"{where}: expected a pickle of NumPy arrays, got {reason}; make it again") from problem


def _name(key: object) -> str:
    """A key as text: Python 3 keeps the keys of Python 2 as text or as bytes."""
    if isinstance(key, bytes):
        return key.decode("latin-1")
    if isinstance(key, str):
        return key
    raise ValueError(f"a {type(key).__name__} where a name was expected")


def _column(value: object) -> Array | list[int] | None:
    """An array or a list of whole numbers; None for text and for a list of text."""
    if isinstance(value, _PickledArray) and value.array is not None:
        return value.array
    if isinstance(value, str | bytes):
        return None
    if isinstance(value, list):
        kinds = set(map(type, value))
        if kinds <= {int}:
            return value
        if kinds <= {str, bytes}:
            return None
    raise ValueError(f"a {type(value).__name__} where an array or a list of numbers was expected")


def _unwrap(found: object, depth: int) -> object:
    if isinstance(found, _PickledArray) and found.array is not None:
        return found.array
    if isinstance(found, tuple | list) and len(found) <= 8 and depth < 4:
        return tuple(_unwrap(item, depth + 1) for item in found)
    raise ValueError(f"a {type(found).__name__} where an array was expected")
