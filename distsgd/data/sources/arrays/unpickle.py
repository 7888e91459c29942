"""NumPy arrays out of a pickle, and little else: no name in the file is ever imported, none of its calls is made.

The pickle machine is Python's own, cut down to the opcodes that plain arrays need; the few NumPy names they refer to
stand for functions of this module. So a file made to harm meets no code but this.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import DataError
from distsgd.data.sources.streams import Stream

_OPCODES = (
    "PROTO FRAME STOP MARK POP DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 "
    "STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 LIST EMPTY_LIST "
    "APPEND APPENDS DICT EMPTY_DICT SETITEM SETITEMS GLOBAL STACK_GLOBAL REDUCE BUILD "
    "PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET"
)
"""The instructions of the pickle machine that plain arrays need; any other is refused."""
_READS = 250_000
"""Instructions and their operands: a few bytes of gzip can hold a billion. 10,000 labels and file names, as a part of
CIFAR-10 has, take less than half of it."""
_KEYS = 100
"""Keys of all dicts; a part of CIFAR-10 has four. They are texts alone: Python hashes these with a secret, while a file
could hold any number of whole numbers, or of tuples, whose hashes are equal or take for ever."""
_AXES = 8
"""Axes of an array, and members of a tuple."""
_DEPTH = 2
"""How deep tuples may lie in each other: a tuple of pairs of arrays is two deep. One list may be in all places."""
_MOST = 1 << 1024
"""Of a whole number, so that it can be shown."""
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")


class _Dtype:
    """Stands for numpy.dtype: called with its text, then given the byte order."""

    __slots__ = ("dtype",)

    def __init__(self, text: object, *_: object) -> None:
        # Text alone is shown: tuples that hold one another twice are short in the file, and endless as text.
        if not isinstance(text, str) or not _DTYPE.fullmatch(text):
            shown = repr(text[:20]) if isinstance(text, str) else f"a {type(text).__name__}"
            raise ValueError(f"an array of {shown}, not of integers or floats")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise ValueError("a dtype without a byte order")
        self.dtype = self.dtype.newbyteorder(order)


class _PickledArray:
    """Stands for an array: empty at first, then given (version, shape, dtype, Fortran order, data)."""

    __slots__ = ("array",)

    def __init__(self, array: Array | None = None) -> None:
        self.array = array

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("an array without shape, dtype and data")
        _, shape, dtype, fortran, data = state
        self.array = _array(data, dtype, shape, bool(fortran))


def _array(data: object, dtype: object, shape: object, fortran: bool) -> Array:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray) or not isinstance(shape, tuple):
        raise ValueError("an array without shape, dtype and data")
    if len(shape) > _AXES or not all(isinstance(n, int) and 0 <= n < 1 << 56 for n in shape):
        raise ValueError(f"a shape that isn't made of at most {_AXES} lengths")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if fortran else "C")


def _frombuffer(data: object, dtype: object, shape: object, order: object) -> _PickledArray:
    return _PickledArray(_array(data, dtype, shape, order == "F"))


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "an operand of _reconstruct, which nothing calls",
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _PickledArray(),
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
}


class _LimitedReader:
    """The file as the pickle machine sees it: no more than `limit` bytes in all, whatever a length field holds."""

    def __init__(self, stream: Stream, limit: int, where: str) -> None:
        self._stream, self._left, self.limit, self._where = stream, limit, limit, where
        self._reads_left = _READS

    def read(self, count: int) -> bytes:
        self._reads_left -= 1  # each instruction is a read of one byte
        if self._reads_left < 0:
            raise DataError(
                f"{self._where}: expected a pickle of at most {_READS} instructions, as arrays need; use .npz"
            )
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


def _load_bytearray8(machine: Any) -> None:
    # The inherited one makes a buffer of the promised length before it reads.
    (length,) = struct.unpack("<Q", machine.read(8))
    machine.append(machine.read(length))


def _load_frame(machine: Any) -> None:
    # The inherited one reads the whole frame into memory, twice; a frame is nothing but a hint to do so.
    machine.read(8)


def _load_put(machine: Any) -> None:
    # The inherited one takes a number of any length, and numbers whose hashes are equal make its memo slow.
    index = int(machine.readline()[:-1])
    if not 0 <= index < 1 << 32:
        raise ValueError("a memo index of more than 32 bits")
    machine.memo[index] = machine.stack[-1]


def _load_dict(machine: Any) -> None:
    items = machine.pop_mark()
    machine.check_keys(items[::2])
    machine.append(dict(zip(items[::2], items[1::2], strict=True)))


def _load_setitem(machine: Any) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _set_items(machine, [key, value])


def _load_setitems(machine: Any) -> None:
    _set_items(machine, machine.pop_mark())


def _set_items(machine: Any, items: list[Any]) -> None:
    found = machine.stack[-1]
    if not isinstance(found, dict):
        raise ValueError("items of something that isn't a dict")
    machine.check_keys(items[::2])
    found.update(zip(items[::2], items[1::2], strict=True))


def _load_build(machine: Any) -> None:
    # The inherited one sets attributes of anything on the stack, of this module's functions too.
    state = machine.stack.pop()
    if not isinstance(machine.stack[-1], _Dtype | _PickledArray):
        raise ValueError("a state of something that isn't an array")
    if isinstance(state, tuple) and state and isinstance(state[-1], str):
        # Python 3 reads a Python-2 string as text: one character, Latin-1, is one byte. (Of a dtype it is the flags.)
        state = (*state[:-1], machine.encode(state[-1]))
    machine.stack[-1].__setstate__(state)


class _Unpickler(pickle._Unpickler):
    """Python's pickle machine (the one written in Python: its memo is a dict, so a huge index costs nothing)."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **{getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _OPCODES.split()},
        pickle.BYTEARRAY8[0]: _load_bytearray8,
        pickle.BUILD[0]: _load_build,
        pickle.FRAME[0]: _load_frame,
        pickle.PUT[0]: _load_put,
        pickle.DICT[0]: _load_dict,
        pickle.SETITEM[0]: _load_setitem,
        pickle.SETITEMS[0]: _load_setitems,
    }

    def __init__(self, reader: _LimitedReader, where: str) -> None:
        super().__init__(reader, encoding="latin1")
        self._where, self._text_left, self._keys_left = where, reader.limit, _KEYS

    def check_keys(self, keys: list[Any]) -> None:
        """Raises ValueError for keys that aren't text, before any is hashed, and for too many."""
        for key in keys:
            if not isinstance(key, str | bytes):
                raise ValueError(f"a {type(key).__name__} where a name was expected")
        self._keys_left -= len(keys)
        if self._keys_left < 0:
            raise ValueError(f"more than {_KEYS} keys")

    def find_class(self, module: str, name: str) -> Any:
        known = (module.replace("numpy._core", "numpy.core"), name)  # NumPy 2's name of it
        found = self.encode if known == ("_codecs", "encode") else _ADMITTED.get(known)
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


def unpickle(stream: Stream, limit: int, where: str) -> Any:
    """What the pickle in `stream`, of at most `limit` bytes, holds, as arrays, lists of whole numbers, tuples of these
    (lists become tuples), or one dict of them by name. None stands for text and for a list of text.

    Raises DataError for anything else in it; it names the first global that isn't admitted.
    """
    try:
        return _plain(_Unpickler(_LimitedReader(stream, limit, where), where).load(), depth=0)
    except (DataError, MemoryError):
        raise
    except KeyError as problem:
        raise DataError(f"{where}: expected a pickle of NumPy arrays alone, got other objects; use .npz") from problem
    except Exception as problem:  # bytes made to harm can raise nearly anything in the machine
        reason = str(problem) or type(problem).__name__
        raise DataError(f"{where}: expected a pickle of NumPy arrays, got {reason}; make it again") from problem


def _plain(found: object, depth: int) -> object:
    if isinstance(found, _PickledArray) and found.array is not None:
        return found.array
    kinds = set(map(type, found)) if isinstance(found, list) else {type(found)}
    if kinds <= {str, bytes} and found != []:
        return None
    if isinstance(found, list) and kinds <= {int}:
        if found and not (min(found) >= -_MOST and max(found) <= _MOST):
            raise ValueError("a number of more than 1024 bits")
        return found
    if isinstance(found, dict) and depth == 0:
        return {_name(key): _plain(value, depth=_DEPTH) for key, value in found.items()}
    if isinstance(found, tuple | list) and len(found) <= _AXES and depth < _DEPTH:
        return tuple(_plain(item, depth + 1) for item in found)
    raise ValueError(f"a {type(found).__name__} where an array or a list of numbers was expected")


def _name(key: str | bytes) -> str:
    """A key as text: Python 3 keeps the keys of Python 2 as text or as bytes."""
    return key.decode("latin-1") if isinstance(key, bytes) else key
