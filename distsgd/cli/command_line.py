"""Makes a configuration from arguments: defaults < TOML file < command line. Rank 0 alone does this."""

from __future__ import annotations

import io
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from distsgd.core.errors import ConfigurationError, DistsgdError, visible
from distsgd.core.version import __version__
from distsgd.run.config import TrainConfig
from distsgd.run.config_file import RENAMED, read_toml
from distsgd.run.user_code import allow_code, code_in, texts_of

T = TypeVar("T")
_WRONG_VALUE = re.compile(r"Error parsing (--[\w-]+): no type matching (\S+) could be instantiated from \['(.*)'\]")
_NO_NUMBER = re.compile(r"Error parsing (--[\w-]+): (invalid literal for int|could not convert string).*'(.*)'")
_WORDS = {"FLOAT": "a number", "INT": "a whole number", "STR": "text", "{full}": "full"}
_SHORT = re.compile(r"^--lr(=.*)?$")


class Finished(DistsgdError):
    """The command line asked for a text alone, such as --help; it has been printed."""

    exit_status = 0


def parse_arguments(kind: type[T], arguments: Sequence[str], *, prog: str, default: T | None = None) -> T:
    """A dataclass from command-line arguments. Raises ConfigurationError with one sentence, or Finished.

    default   values from a file, for options that aren't given. Those that name code are dropped: only the command
              line's own names of code are imported.
    """
    import tyro

    arguments = [_SHORT.sub(lambda found: "--learning-rate" + (found[1] or ""), argument) for argument in arguments]
    _check_lists_are_given_once(kind, arguments)
    if default is not None and {"--help", "-h"} & set(arguments):
        default = _printable(default)
    output = io.StringIO()
    try:
        with redirect_stderr(output):
            if default is None:
                return allow_code(tyro.cli(kind, args=arguments, prog=prog))
            return allow_code(tyro.cli(kind, args=arguments, prog=prog, default=_without_code(default)))
    except SystemExit as stop:
        if not stop.code:
            raise Finished from None
        problem = _unknown_option(kind, output.getvalue()) or _sentence(output.getvalue())
        raise ConfigurationError(f"{problem} (see {prog} --help)") from None


def _without_code(default: T) -> T:
    """The defaults of these options in place of what names code."""
    own = {field.name: field.default for field in fields(default)}  # type: ignore[arg-type]
    return replace(default, **{option: own[option] for option in code_in(default)})  # type: ignore[type-var]


def _names(arguments: Sequence[str]) -> list[str]:
    """The options that are given, by their names with dashes: whatever begins with two dashes is one, or refused."""
    return [argument.partition("=")[0].replace("_", "-") for argument in arguments if argument.startswith("--")]


def _printable(default: T) -> T:
    """The same with what isn't printable escaped: --help shows the values of a configuration file as defaults."""

    def printable(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(printable, value))
        return visible(value) if isinstance(value, str) else value

    shown = {field.name: printable(getattr(default, field.name)) for field in fields(default)}  # type: ignore[arg-type]
    return replace(default, **shown)  # type: ignore[type-var]


def _check_lists_are_given_once(kind: type, arguments: Sequence[str]) -> None:
    """Raises ConfigurationError for a list that is given twice: its first values would be lost silently."""
    lists = {f"--{field.name}".replace("_", "-") for field in fields(kind) if "tuple" in str(field.type)}
    given = _names(arguments)
    for name in lists:
        if given.count(name) > 1:
            raise ConfigurationError(f"{name} is given {given.count(name)} times; give it once, with all its values")


def parse_positional(kind: type[T], arguments: Sequence[str], prog: str) -> T:
    """As parse_arguments, for options whose annotations say `tyro.conf.Positional`.

    Their modules don't import tyro, which only rank 0 needs; it gets its name there here.
    """
    import tyro

    vars(sys.modules[kind.__module__])["tyro"] = tyro
    return parse_arguments(kind, arguments, prog=prog)


def _unknown_option(kind: type[Any], box: str) -> str | None:
    """The sentence about the first option that `kind` hasn't, None where the problem is another."""
    found = re.search(r"Unrecognized options: (--[\w-]+)", box)
    if found is None:
        return None
    renamed = RENAMED.get(found[1].removeprefix("--").replace("-", "_"))
    if renamed is not None:
        return f"the option {found[1]} is now called --{renamed}; give it by that name"
    names = [f"--{name.replace('_', '-')}" for name in get_type_hints(kind)]
    close = get_close_matches(found[1].replace("_", "-"), names, n=1)
    return f"unknown option {found[1]}" + (f"; did you mean {close[0]}?" if close else "")


def _sentence(box: str) -> str:
    """The message inside the box that tyro draws around it."""
    lines = [line.strip("│╭╮╰╯─ ").strip() for line in box.splitlines()]
    kept: list[str] = []
    for line in lines[1:]:
        if not line and kept:
            break
        if line.startswith(("Argument helptext", "For full helptext")):
            break
        if line and not line.startswith("- "):
            kept.append(line)
    text = " ".join(kept)
    found = _WRONG_VALUE.match(text)
    if found is not None:
        kinds = [_WORDS.get(kind, kind) for kind in found[2].split("|") if kind != "{None}"]
        return f"{found[1]}: expected {' or '.join(kinds)}, got {found[3]!r}"
    found = _NO_NUMBER.match(text)
    if found is not None:
        return f"{found[1]}: expected {'a whole number' if 'int' in found[2] else 'a number'}, got {found[3]!r}"
    return text.split(" (default")[0].rstrip(".") or "the arguments could not be understood"


def load_config(arguments: Sequence[str]) -> TrainConfig:
    """The configuration of `python -m distsgd.train ARGUMENTS`."""
    arguments = list(arguments)
    path = _take_config(arguments)
    if "--version" in arguments:
        print(f"distsgd {__version__}")
        raise Finished
    default = TrainConfig() if path is None else read_toml(Path(path))
    config = parse_arguments(TrainConfig, arguments, prog="python -m distsgd.train", default=default)
    if path is not None:
        _check_code_is_repeated(default, path, arguments)
    return config


def _take_config(arguments: list[str]) -> str | None:
    """Removes `--config PATH` or `--config=PATH` and returns the path."""
    for index, argument in enumerate(arguments):
        if argument == "--config":
            if index + 1 >= len(arguments):
                raise ConfigurationError("--config: expected the path of a TOML file after it")
            path = arguments[index + 1]
            del arguments[index : index + 2]
            return path
        if argument.startswith("--config="):
            del arguments[index]
            return argument.removeprefix("--config=")
    return None


def _check_code_is_repeated(default: TrainConfig, path: str, arguments: Sequence[str]) -> None:
    """Raises ConfigurationError for an option of the file that names code, and that the command line doesn't give."""
    given = _names(arguments)
    for option, value in code_in(default).items():
        if f"--{option}" not in given:
            values = " ".join(map(shlex.quote, texts_of(value)))
            raise ConfigurationError(
                f"{path} names code, {option} = {value!r}; to run it, add --{option} {values} to the command line"
            )
