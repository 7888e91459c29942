"""Code of the user's own, named as file.py:function: which text names code, who may name it, and the importer.

Configuration files and checkpoints are data: a text in them is a plain `str`. The command line and the calling program
alone make a CodeName of it, and the importer takes nothing else.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TypeVar

from distsgd.core.errors import ConfigurationError
from distsgd.core.options import options_of

T = TypeVar("T")

_imported: dict[Path, ModuleType] = {}
_importing = threading.RLock()


def names_code(text: str) -> bool:
    """Whether this is file.py:function."""
    file, _, function = text.rpartition(":")
    return file.endswith(".py") and function.isidentifier()


class CodeName(str):
    """file.py:function, as the command line or the calling program gives it. Raises ConfigurationError for other text.

    A configuration keeps the type as it is copied and sent to other ranks; from a file comes a plain `str`.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> CodeName:
        if not names_code(text):
            raise ConfigurationError(f"expected file.py:function, got {text!r}")
        return super().__new__(cls, text)


def code_in(options: Any) -> dict[str, Any]:
    """Of a dataclass of options, those that may name code and do so, each a text or a tuple of texts."""
    found = {name: getattr(options, name) or () for name, one in options_of(options.__class__).items() if one.code}
    return {name: value for name, value in found.items() if any(map(names_code, texts_of(value)))}


def texts_of(value: str | tuple[str, ...]) -> tuple[str, ...]:
    """The texts of an option that takes one, or several."""
    return (value,) if isinstance(value, str) else value


def allow_code(options: T) -> T:
    """The options, with a CodeName for each text that names code: for those that the command line or the calling
    program itself gives, and for nothing that comes from a file."""

    def allow(text: str) -> str:
        return CodeName(text) if names_code(text) else text

    found = code_in(options)
    allowed = {name: allow(v) if isinstance(v, str) else tuple(map(allow, v)) for name, v in found.items()}
    return replace(options, **allowed) if allowed else options  # type: ignore[type-var]


def import_function(name: str, option: str) -> Any:
    """The object that a CodeName names; runs the file, once. Raises ConfigurationError where there is none, and for any
    other text, before it looks for a file."""
    if not isinstance(name, CodeName):
        raise ConfigurationError(
            f"{option}: {name!r} runs only where the command line or the calling program names it as file.py:function"
        )
    file, _, function = name.rpartition(":")
    try:
        path = Path(os.path.expanduser(file)).resolve()
        readable = path.is_file() and os.access(path, os.R_OK)
    except OSError:
        readable = False
    if not readable:
        raise ConfigurationError(f"{option}: there is no readable file {file}")
    with _importing:
        if path not in _imported:
            _imported[path] = _run(path, option)
    if not hasattr(_imported[path], function):
        raise ConfigurationError(f"{option}: {file} has no {function}")
    return getattr(_imported[path], function)


def _run(path: Path, option: str) -> ModuleType:
    """The module that this file is. A failure leaves no module."""
    code = _compile(path, option)
    specification = spec_from_file_location(path.stem, path, loader=SourceFileLoader(path.stem, str(path)))
    assert specification is not None
    module, folder = module_from_spec(specification), str(path.parent)
    is_new = sys.modules.setdefault(path.stem, module) is module
    sys.path.insert(0, folder)  # as for a script, so that it can import its neighbours
    try:
        exec(code, vars(module))
    except BaseException:
        with suppress(ValueError):
            sys.path.remove(folder)
        if is_new:
            sys.modules.pop(path.stem, None)
        raise
    return module


def _compile(path: Path, option: str) -> CodeType:
    """The file's code, from its source: another's compiled copy may lie in __pycache__. Raises ConfigurationError."""
    from distsgd.core.files import read_regular

    try:
        return compile(read_regular(path), str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        line = "" if error.lineno is None else f", line {error.lineno}"
        raise ConfigurationError(f"{option}: {path}{line} is not Python: {error.msg}") from None
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigurationError(f"{option}: {path} is not Python: {error or type(error).__name__}") from None
