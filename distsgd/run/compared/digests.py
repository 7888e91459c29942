"""Short texts of single things (numbers, arrays, code), equal wherever the same thing is made.

They hold no address and no number of an object, and don't depend on the process or on the order of a set.
"""

from __future__ import annotations

import dis
import hashlib
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from distsgd.core.errors import DataError
from distsgd.core.fast_digest import digest_of
from distsgd.data.checks import is_mapped
from distsgd.data.targets import blocks, sampled_rows

if TYPE_CHECKING:
    from distsgd.data.examples import Examples

MOST_PARTS = 100
"""Of an aspect; those beyond are one."""
_LONGEST = 80
"""Characters of a text; of a longer one the beginning stays, and a digest of all of it."""
_DIGITS = 16
_HASHED_INPUTS, _HASHED_BYTES = 4096, 1 << 30
_PLAIN = {type(None), bool, int, float, complex, str, bytes, types.EllipsisType, types.NotImplementedType}
_KINDS_OF_CODE = 0x04 | 0x08 | 0x20 | 0x80 | 0x100 | 0x200
"""Of a code's flags: *args, **keywords, generators and coroutines; the others say where it was written."""
_INSTALLED = {"site-packages", "dist-packages"}


def digest(text: str) -> str:
    """16 hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]


def short(text: str) -> str:
    """The text, or where it is long its beginning, its length, and a digest of all of it."""
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST // 2]}… ({len(text):,} characters, digest {digest(text)})"


def title(kind: type) -> str:
    """`numpy.ndarray`; of Python's own classes and the program's the name alone."""
    module = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}."
    return f"{module}{kind.__qualname__}"


def plain_text(value: Any) -> str | None:
    """The text of a single value, None for an object that has parts."""
    if type(value) in _PLAIN:
        is_long = type(value) is int and value.bit_length() > 1000
        return hex(value) if is_long else repr(value)  # which refuses thousands of digits
    if isinstance(value, np.generic) and not value.dtype.hasobject:
        return f"{value.dtype} {value!s}"
    if isinstance(value, np.dtype):
        return f"dtype {value}"
    if isinstance(value, PurePath):
        return f"{type(value).__name__}({str(value)!r})"
    if isinstance(value, types.ModuleType):
        return f"module {value.__name__}"
    return None


def array_text(array: np.ndarray[Any, Any]) -> str:
    """`float32 (600, 20), contents 1a2b3c4d5e6f7a8b`; of an array of objects the dtype and the shape alone."""
    kind = f"{array.dtype} {array.shape}"
    if array.dtype.hasobject:
        return kind
    return f"{kind}, contents {digest_of(array).hex()}"


def as_array(value: Any) -> np.ndarray[Any, Any] | None:
    """NumPy's arrays, and those of other libraries where they come to the host; None for what is no array."""
    if isinstance(value, np.ndarray):
        return value
    kind = type(value)
    if hasattr(kind, "__cuda_array_interface__") and hasattr(kind, "get"):
        return np.asarray(value.get())
    if hasattr(kind, "__array__") and hasattr(value, "shape") and hasattr(value, "dtype"):
        try:
            return np.asarray(value)
        except Exception:  # it lies on a GPU, or holds nothing yet
            return None
    return None


def code_text(code: types.CodeType) -> str:
    """What a function's code does, not where it stands."""
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & _KINDS_OF_CODE)
    names = (code.co_names, code.co_varnames, code.co_cellvars, code.co_freevars)
    constants = ", ".join(map(_constant_text, code.co_consts))
    return f"{counts} {names} {code.co_code.hex()} {code.co_exceptiontable.hex()} ({constants})"


def _constant_text(constant: Any) -> str:
    if isinstance(constant, types.CodeType):
        return f"<{code_text(constant)}>"
    if isinstance(constant, tuple):
        return f"({', '.join(map(_constant_text, constant))})"
    if isinstance(constant, frozenset):
        return f"{{{', '.join(sorted(map(_constant_text, constant)))}}}"
    return plain_text(constant) or repr(constant)


def codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code of the functions and classes in it."""
    for item in code.co_consts:
        if isinstance(item, types.CodeType):
            yield item
            yield from codes_in(item)


@lru_cache(1000)
def global_names(code: types.CodeType) -> tuple[tuple[str, ...], ...]:
    """The global names that a function's code reads, each with the attributes that it reads of it: (module, name)."""
    chains: list[list[str]] = []
    reading = False
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            chains.append([instruction.argval])
            reading = True
        elif reading and instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            chains[-1].append(instruction.argval)
        else:
            reading = False
    inner = [chain for item in code.co_consts if isinstance(item, types.CodeType) for chain in global_names(item)]
    return tuple(dict.fromkeys([*map(tuple, chains), *inner]))


def global_name(value: Any) -> str | None:
    """Where Python finds this object by name, such as `numpy.exp`; None where it doesn't."""
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if not isinstance(name, str):
        return None
    own = getattr(value, "__module__", None) or getattr(getattr(value, "__objclass__", None), "__module__", None)
    for module in dict.fromkeys((own, "numpy", "builtins")):
        found: Any = sys.modules.get(module) if isinstance(module, str) else None
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is value:
            return f"{module}.{name}"
    return None


def is_library(module: str) -> bool:
    """Whether a module was installed, and not written for this program: then its name stands for what is in it."""
    top = module.partition(".")[0]
    if top == "distsgd" or top in sys.stdlib_module_names:
        return True
    if top == "__main__":
        return False
    file = getattr(sys.modules.get(module) or sys.modules.get(top), "__file__", None)
    return isinstance(file, str) and is_installed(Path(file))


def is_installed(file: Path) -> bool:
    """Whether a file lies where packages are installed."""
    return not _INSTALLED.isdisjoint(file.parts)


def fingerprint(
    sets: Mapping[str, Examples | None],
    *,
    in_memory: bool = False,
    sampled: bool = False,
    in_files: bool | None = None,
) -> str:
    """16 hexadecimal digits of shapes, dtypes, targets, weights and inputs of each set.

    Of inputs that are mapped or larger than 1 GiB, up to 4,096 evenly spread examples: reading all of them may take as
    long as an epoch. With `in_memory`, no contents of what is mapped. With `sampled`, of all inputs up to 4,096
    examples in runs, so that sets in memory have the digits that they have in files. `in_files` says whether inputs
    count as mapped, whatever they are.
    """
    found = hashlib.sha256()
    for name, part in sets.items():
        if part is None:
            continue
        found.update(f"{name} {part.x.shape} {part.x.dtype} {part.y.shape} {part.y.dtype} ".encode())
        for array in (part.x, part.y, part.weights):
            if array is None or (in_memory and is_mapped(array)):
                continue
            if array is part.x and sampled:
                array = array[sampled_rows(len(array))]
            elif array is part.x and (
                array.nbytes > _HASHED_BYTES or (is_mapped(array) if in_files is None else in_files)
            ):
                array = array[np.linspace(0, len(array) - 1, min(len(array), _HASHED_INPUTS)).astype(np.int64)]
            for _, block in blocks(array):
                found.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    return found.hexdigest()[:_DIGITS]


def changed_since(sets: Mapping[str, Examples | None], contents: str) -> Callable[[], DataError | None]:
    """What says whether arrays in memory have changed since now, when their fingerprint is this: a view can be written
    to, and so can another library's array. The stamps of mapped files are compared, and not their contents."""
    given = [array for part in sets.values() if part is not None for array in (part.x, part.y, part.weights)]
    has_maps = any(array is not None and is_mapped(array) for array in given)
    before = fingerprint(sets, in_memory=True) if has_maps else contents

    def changed() -> DataError | None:
        if fingerprint(sets, in_memory=has_maps) == before:
            return None
        return DataError(
            "fit: the arrays were changed while it trained, and checkpoints that it has saved may be of either; leave "
            "them as they are, and begin anew (with resume='never' where out names a folder)"
        )

    return changed


def digest_of_rows(rows: Any) -> str:
    """The same of row indices, whatever their integer type."""
    return hashlib.sha256(np.asarray(rows).astype("<i8", casting="same_kind").tobytes()).hexdigest()[:_DIGITS]


def bounded(parts: Mapping[str, str]) -> dict[str, str]:
    """As many digests as a checkpoint takes; a text of bytecode stays, for it says which Python has made it."""

    def kept(name: str) -> str:
        return name if len(name) <= 100 else f"…{name[-60:]} {digest(name)}"

    found = {kept(name): text if text.startswith("code of ") else digest(text) for name, text in parts.items()}
    names = list(found)
    if len(names) > MOST_PARTS:
        rest = "\0".join(f"{name}\0{found.pop(name)}" for name in names[MOST_PARTS - 1 :])
        found["the rest"] = digest(rest)
    return found
